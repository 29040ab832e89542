"""What is trained: data, a small host, where it may grow, nets that never do, and how all are trained."""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import dataclasses
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from mnist1d.data import get_dataset_args, make_dataset
from nets import CONTEXT, ConvNet, ResidualMlp, Transformer, image_net, plain_mlp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from esper.contracts import BlueprintIR, repeat
from esper.kasmina import builtin_blueprints


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One task with its hosts."""

    name: str
    host: Callable[[], nn.Module]
    statics: Mapping[str, Callable[[], nn.Module]]
    """Nets that never grow, by their size: what somebody would try who looks for the best one. None where
    the host is large enough, and nothing but harm can come of growth."""
    places: Sequence[str] = ()
    """Layers at which a design of several blocks may grow, input side first; see `block`."""
    block: BlueprintIR | None = None
    """That design; None where the host has no blocks."""
    mlp: tuple[int, int, int, int] | None = None
    """Inputs, width, hidden layers and outputs of a host that is a plain MLP."""
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    """Draws a batch of training data."""
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    steps: int
    """Steps that the budget of training FLOPs allows the small host; the others' steps cost more."""
    ramp_steps: int = 20
    """Over so many steps the part of `block` rises from 0 to 1; then it is judged."""
    num_seeds: int = 5
    """As many as tell the arms apart."""
    learning_rates: Sequence[float]
    """Every arm is run with each of them; the table has the best of each arm, by validation."""
    loss_of: Callable[[Tensor, Tensor], Tensor]
    """One loss for each sample."""
    is_classification: bool = True


def residual_mlp() -> Problem:
    """Return MNIST-1D with 40,000 samples for a pre-norm residual MLP of one block."""
    return Problem(
        name="residual MLP, MNIST-1D 40,000",
        host=lambda: ResidualMlp(num_blocks=1),
        statics={f"{n} blocks": partial(ResidualMlp, num_blocks=n) for n in (2, 3, 4, 6)},
        places=["stem", "blocks.0"],
        block=repeat(_design("normalised_mlp"), 5),
        **mnist1d(50_000),
        steps=8000,
        ramp_steps=40,
        learning_rates=(4e-3,),
    )


def conv() -> Problem:
    """Return MNIST-1D with 4,000 samples for three convolutions of eight channels."""
    return Problem(
        name="conv net, MNIST-1D 4,000",
        host=ConvNet,
        statics={f"{w} channels": partial(ConvNet, width=w) for w in (12, 16, 24, 32)},
        places=["layers.1", "layers.5"],
        block=repeat(_design("residual_conv1d"), 4),
        **mnist1d(5_000),
        steps=5000,
        num_seeds=15,
        learning_rates=(20e-3, 32e-3),
    )


def digits() -> Problem:
    """Return scikit-learn's digits for three convolutions of four channels."""
    found = cast("Any", load_digits())
    x = torch.tensor(found.images).float().unsqueeze(1) / 16
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return Problem(
        name="conv net, digits",
        host=lambda: image_net(4),
        statics={f"{w} channels": partial(image_net, w) for w in (6, 8, 12, 16)},
        batch=_batches(x[:1000], y[:1000], 64),
        validation=(x[1000:1350], y[1000:1350]),
        test=(x[1350:], y[1350:]),
        steps=2500,
        num_seeds=15,
        learning_rates=(16e-3, 32e-3),
        loss_of=_losses,
    )


def large() -> Problem:
    """Return digits for a net that is large enough for them."""
    return dataclasses.replace(
        digits(),
        name="large conv net, digits",
        host=partial(image_net, 32),
        statics={},
        steps=800,
        num_seeds=5,
    )


def plain(num_samples: int) -> Problem:
    """Return MNIST-1D for an MLP with three hidden layers of eight units."""
    return Problem(
        name=f"plain MLP, MNIST-1D {num_samples:,}",
        host=lambda: plain_mlp(8),
        mlp=(40, 8, 3, 10),
        statics={f"width {w}": partial(plain_mlp, w) for w in (16, 32, 64, 128)},
        **mnist1d(num_samples * 5 // 4),
        steps=16_000,
        learning_rates=(16e-3,) if num_samples > 10_000 else (8e-3,),
    )


def language_model() -> Problem:
    """Return characters of the standard library's sources for a transformer of one block."""
    tokens, num_tokens = _characters()
    cut = len(tokens) * 9 // 10
    train, held_out = tokens[:cut], tokens[cut:]

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(train) - CONTEXT - 1, (16,), generator=generator)
        return _windows(train, starts)

    middle = len(held_out) // 2
    return Problem(
        name="transformer, characters",
        host=lambda: Transformer(num_tokens, num_blocks=1),
        statics={f"{n} blocks": partial(Transformer, num_tokens, num_blocks=n) for n in (2, 4, 6)},
        batch=batch,
        validation=_windows(held_out[:middle], torch.arange(0, 128 * CONTEXT, CONTEXT)),
        test=_windows(held_out[middle:], torch.arange(0, 256 * CONTEXT, CONTEXT)),
        steps=8300,
        learning_rates=(8e-3,),
        loss_of=_losses,
        is_classification=False,
    )


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "digits": digits,
    "conv": conv,
    "mlp": residual_mlp,
    "large": large,
    "plain": partial(plain, 4_000),
    "plain40": partial(plain, 40_000),
    "lm": language_model,
}


def _design(name: str) -> BlueprintIR:
    return next(ir for ir in builtin_blueprints() if ir.name == name)


@cache
def mnist1d(num_samples: int) -> dict[str, Any]:
    """Return batches, validation and test data; a fifth is for tests, a tenth of the rest for validation."""
    arguments = cast("Any", get_dataset_args())
    arguments.num_samples = num_samples
    arguments.train_split = 0.8
    made = cast("dict[str, Any]", make_dataset(arguments))
    x, y = torch.tensor(made["x"]).float(), torch.tensor(made["y"]).long()
    cut = len(x) * 9 // 10
    test = torch.tensor(made["x_test"]).float(), torch.tensor(made["y_test"]).long()
    return {
        "batch": _batches(x[:cut], y[:cut], 128 if num_samples > 10_000 else 64),
        "validation": (x[cut:], y[cut:]),
        "test": test,
        "loss_of": _losses,
    }


def _batches(x: Tensor, y: Tensor, size: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (size,), generator=generator)
        return x[chosen], y[chosen]

    return batch


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B,) cross-entropies of logits (B, C), or means over tokens of (B, T, C)."""
    losses = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(len(targets), -1).mean(dim=1)


@cache
def _characters() -> tuple[Tensor, int]:
    """Return the text as numbers, and how many there are."""
    text = _sources()
    vocabulary = sorted(set(text))
    index = {character: number for number, character in enumerate(vocabulary)}
    return torch.tensor([index[character] for character in text]), len(vocabulary)


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
