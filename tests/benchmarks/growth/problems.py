"""What is trained: data, a small host, where it may grow, and how it is trained.

Shapes: B batch, T tokens, D features, C classes.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from mnist1d.data import get_dataset_args, make_dataset
from torch import Tensor, nn
from torch.nn import functional

from esper.contracts import BlueprintIR, OperatorNode, SiteKind, repeat
from esper.kasmina import builtin_blueprints


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One task with its host."""

    name: str
    host: Callable[[], nn.Module]
    blueprints: Sequence[BlueprintIR]
    """What the host may grow, besides the built-in designs."""
    targets: Sequence[str]
    """The layers at which it may grow, input side first."""
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    """Draws a batch of training data."""
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    steps: int
    """Steps that the budget of training FLOPs allows the small host; the grown nets' steps cost more."""
    ramp_steps: int
    """Over so many steps a block's part rises from 0 to 1; then it is judged."""
    learning_rates: Sequence[float]
    """Every arm is run with each of them; the table has the best of each arm, by validation."""
    loss_of: Callable[[Tensor, Tensor], Tensor]
    """One loss for each sample."""
    is_classification: bool = True


def residual_mlp() -> Problem:
    """Return MNIST-1D with 40,000 samples for a pre-norm residual MLP of one block."""
    data = _mnist1d(num_samples=50_000)
    block = next(ir for ir in builtin_blueprints() if ir.name == "normalised_mlp")
    return Problem(
        name="residual MLP, MNIST-1D 40,000",
        host=lambda: ResidualMlp(num_blocks=1),
        blueprints=[repeat(block, 5)],
        targets=["stem", "blocks.*"],
        **data,
        steps=8000,
        ramp_steps=40,
        learning_rates=(2e-3, 4e-3, 8e-3),
    )


def conv() -> Problem:
    """Return MNIST-1D with 4,000 samples for three convolutions of eight channels."""
    data = _mnist1d(num_samples=5_000)
    block = next(ir for ir in builtin_blueprints() if ir.name == "residual_conv1d")
    return Problem(
        name="conv net, MNIST-1D 4,000",
        host=ConvNet,
        blueprints=[repeat(block, 4)],
        targets=["layers.1", "layers.3", "layers.5"],
        **data,
        steps=5000,
        ramp_steps=25,
        learning_rates=(8e-3, 16e-3, 32e-3),
    )


def language_model() -> Problem:
    """Return characters of the standard library's sources for a transformer of two blocks."""
    text = _sources()
    vocabulary = sorted(set(text))
    index = {character: number for number, character in enumerate(vocabulary)}
    tokens = torch.tensor([index[character] for character in text])
    cut = len(tokens) * 9 // 10
    train, held_out = tokens[:cut], tokens[cut:]

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(train) - CONTEXT - 1, (32,), generator=generator)
        return _windows(train, starts)

    middle = len(held_out) // 2
    return Problem(
        name="transformer, characters",
        host=lambda: Transformer(len(vocabulary), num_blocks=2),
        blueprints=[repeat(TRANSFORMER_BLOCK, 4)],
        targets=["embed", "blocks.*.1"],
        batch=batch,
        validation=_windows(held_out[:middle], torch.arange(0, 128 * CONTEXT, CONTEXT)),
        test=_windows(held_out[middle:], torch.arange(0, 256 * CONTEXT, CONTEXT)),
        steps=1200,
        ramp_steps=15,
        learning_rates=(1e-3, 2e-3, 4e-3),
        loss_of=_losses,
        is_classification=False,
    )


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "conv": conv,
    "mlp": residual_mlp,
    "lm": language_model,
}

CONTEXT = 64
WIDTH = 96


class ResidualMlp(nn.Module):
    """A stem, pre-norm residual blocks, a head: (B, 40) → (B, 10)."""

    def __init__(self, num_blocks: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(40, width)
        self.blocks = nn.Sequential(*(Residual(mlp(width, 2)) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.norm(self.blocks(self.stem(x))))


class ConvNet(nn.Module):
    """Three convolutions and a linear head: (B, 40) → (B, 10)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 40)),
            nn.Conv1d(1, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2, stride=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * 10, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.layers(x)


class Residual(nn.Module):
    """`h + f(h)`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, h: Tensor) -> Tensor:
        """Return features."""
        return h + self.inner(h)


def mlp(width: int, ratio: int) -> nn.Module:
    """Return a pre-norm MLP."""
    inside = ratio * width
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inside), nn.GELU(), nn.Linear(inside, width)
    )


class Attention(nn.Module):
    """Pre-norm causal self-attention."""

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self._num_heads = num_heads

    def forward(self, h: Tensor) -> Tensor:
        """Return features (B, T, D)."""
        b, t, d = h.shape
        parts = self.qkv(self.norm(h)).view(b, t, 3, self._num_heads, d // self._num_heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(b, t, d))


class Embedding(nn.Module):
    """Tokens and their places: (B, T) → (B, T, D)."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.token = nn.Embedding(num_tokens, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features."""
        return self.token(tokens) + self.place(torch.arange(tokens.shape[1]))


class Transformer(nn.Module):
    """A pre-norm causal transformer: (B, T) → (B, T, number of tokens)."""

    def __init__(self, num_tokens: int, num_blocks: int) -> None:
        super().__init__()
        self.embed = Embedding(num_tokens)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(Residual(Attention(WIDTH)), Residual(mlp(WIDTH, 4)))
                for _ in range(num_blocks)
            )
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.norm(self.blocks(self.embed(tokens))))


def _node(name: str, op: str, *inputs: str, **params: Any) -> OperatorNode:
    return OperatorNode(name=name, op=op, inputs=inputs, params=params)


TRANSFORMER_BLOCK = BlueprintIR(
    name="transformer_block",
    description="Pre-norm causal attention, then a pre-norm MLP; zero at birth.",
    kind=SiteKind.CAUSAL_SEQUENCE,
    nodes=(
        _node("norm", "layer_norm", "input"),
        _node("attend", "causal_attention", "norm", out="D", heads=4, init="zeros"),
        _node("mixed", "add", "input", "attend"),
        _node("norm2", "layer_norm", "mixed"),
        _node("up", "linear", "norm2", out="4*D"),
        _node("act", "gelu", "up"),
        _node("down", "linear", "act", out="D", init="zeros"),
        _node("both", "add", "attend", "down"),
    ),
)


def _mnist1d(*, num_samples: int) -> dict[str, Any]:
    """Return batches, validation and test data; validation is cut off the training data."""
    arguments = cast("Any", get_dataset_args())
    arguments.num_samples = num_samples
    arguments.train_split = 0.8
    made = cast("dict[str, Any]", make_dataset(arguments))
    x, y = torch.tensor(made["x"]).float(), torch.tensor(made["y"]).long()
    cut = len(x) * 9 // 10

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(cut, (128 if num_samples > 10_000 else 64,), generator=generator)
        return x[chosen], y[chosen]

    test = torch.tensor(made["x_test"]).float(), torch.tensor(made["y_test"]).long()
    return {
        "batch": batch,
        "validation": (x[cut:], y[cut:]),
        "test": test,
        "loss_of": _losses,
    }


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B,) cross-entropies of logits (B, C), or means over tokens of (B, T, C)."""
    losses = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(len(targets), -1).mean(dim=1)


def _sources() -> str:
    """Return two million characters of the standard library's sources, in order of their names."""
    folder, parts, length = Path(sysconfig.get_paths()["stdlib"]), [""], 0
    for path in sorted(folder.glob("*.py")):
        part = path.read_text(encoding="utf-8", errors="ignore")
        part = "".join(c for c in part if c == "\n" or " " <= c <= "~")
        parts.append(part)
        length += len(part)
        if length > 2_000_000:
            break
    return "".join(parts)


def _windows(tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    places = starts[:, None] + torch.arange(CONTEXT)
    return tokens[places], tokens[places + 1]
