"""Models that nobody here wrote, small and with random weights, and how each is trained.

Built from installed packages (the dependency group `hosts`) without any download; imports nothing of
Esper, on purpose. Run as a program it trains each host without Esper and prints what became of it: the
reference for the claim that a host lives as it would without.

    PYTHONPATH=packages/esper-kasmina/tests python tests/hosts/zoo.py [NAME …]

Shapes: `B` batch, `T` tokens, `V` vocabulary, `C` classes.
"""
# Packages that are not always installed, and torch, leave their types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from kasmina_hosts import digest, seed_everything
from torch import Tensor, nn

B, C, T, V = 4, 7, 8, 31
SIDE = 32
"""Pixels of an image's side: what the smallest of these models still take."""

type Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Host:
    """One model of somebody else's."""

    build: Callable[[], nn.Module]
    blocks: tuple[str, ...]
    """Its blocks as sites: each a whole module of the package's own."""
    num_layers: int
    """How many layers carry seeds by default, given an example."""
    num_blocks: int
    """How many of its blocks, or of its stages where these are the outermost, do so too."""
    inputs: Callable[[torch.Generator], Inputs]
    targets: tuple[int, ...] = (B,)
    """Shape of the classes to predict: one per sample, or one per token."""
    returns_tuples: bool = False
    """Whether its blocks return a tuple whose first element is their features."""

    def make(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build()

    def batch(self, step: int) -> Inputs:
        """Return the inputs of a step, from a stream of its own."""
        return self.inputs(torch.Generator().manual_seed(1000 + step))

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Return the loss of one step's batch."""
        scores = logits(model(**self.batch(step)))
        generator = torch.Generator().manual_seed(9000 + step)
        classes = torch.randint(0, scores.shape[-1], self.targets, generator=generator)
        return nn.functional.cross_entropy(scores.flatten(0, -2), classes.flatten())


def logits(output: Any) -> Tensor:
    """Return the scores in what a model returned."""
    return output if isinstance(output, Tensor) else output.logits


def _images(name: str, generator: torch.Generator) -> Inputs:
    return {name: torch.randn(B, 3, SIDE, SIDE, generator=generator)}


def _tokens(names: tuple[str, ...], generator: torch.Generator) -> Inputs:
    return {name: torch.randint(0, V, (B, T), generator=generator) for name in names}


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name, num_classes=C, **options)


def _torchvision(name: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("torchvision.models"), name)(
        *arguments, num_classes=C, **options
    )


def _transformers(name: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        package = importlib.import_module("transformers")
        return getattr(package, name)(getattr(package, config)(vocab_size=V, **sizes))

    return build


_of_timm = partial(_images, "x")
_words = partial(_tokens, ("input_ids",))

HOSTS: dict[str, Host] = {
    "torchvision_resnet18": Host(
        build=_torchvision("resnet18"),
        inputs=_of_timm,
        blocks=("layer*.*",),
        num_layers=20,
        num_blocks=8,
    ),
    "torchvision_vit": Host(
        build=_torchvision("VisionTransformer", SIDE, 8, 2, 2, 16, 32),
        inputs=_of_timm,
        blocks=("encoder.layers.*",),
        num_layers=7,
        num_blocks=2,
    ),
    "torchvision_swin": Host(
        build=_torchvision("SwinTransformer", [4, 4], 16, [2, 2], [2, 4], [4, 4]),
        inputs=_of_timm,
        blocks=("features.[13].*",),
        num_layers=10,
        num_blocks=5,
    ),
    "timm_resnet": Host(
        build=_timm("test_resnet"),
        inputs=_of_timm,
        blocks=("layer*.*",),
        num_layers=15,
        num_blocks=4,
    ),
    "timm_convnext": Host(
        build=_timm("convnext_atto", drop_path_rate=0.1),
        inputs=_of_timm,
        blocks=("stages.*.blocks.*",),
        num_layers=40,
        num_blocks=4,
    ),
    "timm_efficientnet": Host(
        build=_timm("efficientnet_b0", drop_path_rate=0.1),
        inputs=_of_timm,
        blocks=("blocks.*.*",),
        num_layers=81,
        num_blocks=16,
    ),
    "timm_mobilenet": Host(
        build=_timm("mobilenetv3_small_050"),
        inputs=_of_timm,
        blocks=("blocks.*.*",),
        num_layers=53,
        num_blocks=12,
    ),
    "timm_vit": Host(
        build=_timm("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, depth=2, embed_dim=48),
        inputs=_of_timm,
        blocks=("blocks.*",),
        num_layers=9,
        num_blocks=2,
    ),
    "timm_swin": Host(
        build=_timm(
            "swin_tiny_patch4_window7_224",
            **{"img_size": SIDE, "window_size": 4, "drop_path_rate": 0.1},
            **{"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
        ),
        inputs=_of_timm,
        blocks=("layers.*.blocks.*",),
        num_layers=18,
        num_blocks=2,
    ),
    "gpt2": Host(
        build=_transformers(
            *("GPT2LMHeadModel", "GPT2Config"),
            **{"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2},
            **{"bos_token_id": 0, "eos_token_id": 0},
        ),
        inputs=_words,
        targets=(B, T),
        blocks=("transformer.h.*",),
        num_layers=8,
        num_blocks=2,
    ),
    "llama": Host(
        build=_transformers(
            *("LlamaForCausalLM", "LlamaConfig"),
            **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16},
        ),
        inputs=_words,
        targets=(B, T),
        blocks=("model.layers.*.self_attn",),
        returns_tuples=True,
        num_layers=14,
        num_blocks=2,
    ),
    "bert": Host(
        build=_transformers(
            *("BertForSequenceClassification", "BertConfig"),
            **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "max_position_embeddings": 16, "num_labels": C},
        ),
        inputs=_words,
        blocks=("bert.encoder.layer.*",),
        num_layers=13,
        num_blocks=2,
    ),
    "t5": Host(
        build=_transformers(
            *("T5ForConditionalGeneration", "T5Config"),
            **{"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
            decoder_start_token_id=0,
        ),
        inputs=partial(_tokens, ("input_ids", "decoder_input_ids")),
        targets=(B, T),
        blocks=("encoder.block.*", "decoder.block.*"),
        returns_tuples=True,
        num_layers=32,
        num_blocks=4,
    ),
}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def life(
    host: Host,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 4,
    before: Callable[[int], object] | None = None,
) -> list[float]:
    """Train as any user would; `before` may meddle before each step. Returns the losses."""
    seed_everything(1)
    model.train()
    losses: list[float] = []
    for step in range(steps):
        if before is not None:
            before(step)
        optimizer.zero_grad()
        loss = host.loss(model, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def plain_life(host: Host) -> str:
    """Return the digest of a host's life without any seed."""
    model = host.make()
    optimizer = optimizer_of(model)
    return digest(model, optimizer, life(host, model, optimizer))


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({name: plain_life(HOSTS[name]) for name in sys.argv[1:] or HOSTS}))
    assert not any(name.startswith("esper") for name in sys.modules)


if __name__ == "__main__":
    main()
