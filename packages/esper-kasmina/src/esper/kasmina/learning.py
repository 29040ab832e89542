"""Isolated training: a block learns at its site without the host noticing.

A seed in TRAINING owns one `Learner`. It is shown the site's features and the task's gradient there,
and learns a change of the features that would lower the loss of each row. What it learns from is in
`_objective`; why this and not another is in docs/experiments/0001-isolated-training.md.

Shapes: `h`, its gradient `g` and the block's answer `f(h)` are alike: `(N, D)` rows, `(B, T, D)`
sequences or `(B, D, …)` channels. Where new units of an earlier layer learn, `h` is what that layer is
given, with `I` features instead of `D`.
"""

import copy
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from esper.contracts import SiteKind
from esper.kasmina.kernels import Block, first_line

MAX_ROWS = 512
"""Rows (or positions of images and sequences) per call: bounds what a seed costs."""

MAX_CALLS = 4
"""Calls of the layer that are remembered and learned from. With gradient accumulation, or a layer that
is called several times in a step, these are the last ones."""

OWN_STEPS = 4
"""Own steps per step of the host's optimizer. More help more: they are what a TRAINING seed costs."""

RELATIVE_CHANGE = 0.15
"""Wanted change of a row's loss to first order, in units of `rms|g| * rms|h|`. Larger ones fit better
early in training and overshoot later."""

DAMPING = 1.0
"""Weight of the penalty on `f` where no gradient says anything; keeps what cannot be known small."""

LEARNING_RATE, MAX_LEARNING_RATE = 0.4, 1e-2
"""Adam's rate is `LEARNING_RATE / fan_in` of the layer at most, so that wide blocks stay stable (as in
Yang et al. 2022, "Tensor Programs V")."""


class Learner:
    """One block's own training; never touches the host, its optimizer or a global random stream."""

    def __init__(self, block: Block, seed: int) -> None:
        self._block = block
        self._net = _trainable(block)
        self._adam = _adam(self._net)
        self._generator = torch.Generator().manual_seed(seed % (1 << 63))
        self._pending: deque[tuple[Tensor, Tensor]] = deque(maxlen=MAX_CALLS)
        self._calls: deque[_Call] = deque(maxlen=MAX_CALLS)
        self.num_steps = 0
        """Steps of the host's optimizer that there was something to learn from in."""
        self.failure: str | None = None
        """Why it cannot learn on, for example a loss that is not finite."""

    def observe(self, h: Tensor, g: Tensor) -> None:
        """Keep clones of some rows of the features at the site and of the loss's gradient there."""
        if self.failure is None:
            kind = self._block.signature.kind
            self._pending.append(
                (select(h.detach(), kind).clone(), select(g.detach(), kind).clone())
            )

    def step(self) -> None:
        """Learn from what was observed since the last step, if anything was, and from calls before.

        What is not finite is left out: a host that overflows, as under a gradient scaler, says nothing
        about the seed. What goes wrong in the block becomes its `failure`.
        """
        pairs = list(self._pending)
        self._pending.clear()
        weight = next(self._net.parameters(), None)
        if weight is None or self.failure is not None:
            return
        made = (_Call.make(h.to(weight), g.to(weight), self._kind) for h, g in pairs)
        usable = [call for call in made if call is not None]
        if not usable:
            return
        self._calls.extend(usable)
        self.num_steps += 1
        try:
            self.failure = self._learn()
        except (RuntimeError, ValueError) as error:
            # A user's operator may refuse these shapes, or memory may run out: not the host's affair.
            self.failure = f"its block failed at its step {self.num_steps}: {first_line(error)}"

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next steps depend on, except the block's own weights."""
        own = {} if self._net is self._block else self._net.state_dict()
        return {
            "num_steps": self.num_steps,
            "failure": self.failure,
            "adam": self._adam.state_dict(),
            "generator": self._generator.get_state(),
            "pending": [[h, g] for h, g in self._pending],
            "calls": [[call.h, call.g, call.unit] for call in self._calls],
            "weights": {name: value.detach() for name, value in own.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.num_steps = state["num_steps"]
        self.failure = state["failure"]
        self._adam.load_state_dict(state["adam"])
        self._generator.set_state(state["generator"])
        self._pending = deque(((h, g) for h, g in state["pending"]), maxlen=MAX_CALLS)
        self._calls = deque((_Call(h, g, unit) for h, g, unit in state["calls"]), maxlen=MAX_CALLS)
        if state["weights"]:
            self._net.load_state_dict(state["weights"])

    @property
    def _kind(self) -> SiteKind:
        return self._block.signature.kind

    def _learn(self) -> str | None:
        """Make the own steps; return what went wrong, if anything did."""
        drawn = torch.randint(len(self._calls), (OWN_STEPS - 1,), generator=self._generator)
        total = torch.zeros((), device=self._calls[-1].h.device)
        for index in [-1, *_numbers(drawn)]:
            call = self._calls[int(index)]
            with torch.enable_grad(), torch.autocast(call.h.device.type, enabled=False):
                loss = _objective(self._net(call.h), call, self._kind)
                self._adam.zero_grad()
                loss.backward()  # pyright: ignore[reportUnknownMemberType]
            self._adam.step()  # pyright: ignore[reportUnknownMemberType]
            total = total + loss.detach()
        with torch.no_grad():
            if self._net is not self._block:
                for weight, value in zip(
                    self._block.parameters(), self._net.parameters(), strict=True
                ):
                    weight.copy_(value)
            largest = torch.stack([weight.abs().amax() for weight in self._block.parameters()])
            # Looked at once, so that a GPU is waited for once.
            seen = _numbers(torch.stack([total / OWN_STEPS, largest.amax().to(total.dtype)]))
        for name, value in zip(("loss", "largest weight"), seen, strict=True):
            if not math.isfinite(value):
                return f"its own {name} became {value} at its step {self.num_steps}"
        return None


@dataclass(frozen=True)
class _Call:
    """One call of the layer, ready to learn from: free of the units of the loss and of the features."""

    h: Tensor
    g: Tensor
    """The loss's gradient, scaled so that the mean squared norm of its rows is 1."""
    unit: Tensor
    """What `f(h)` is measured in, a number."""

    @classmethod
    def make(cls, h: Tensor, g: Tensor, kind: SiteKind) -> Self | None:
        """Return a call; None if it says nothing: not finite, or all zero."""
        axis = 1 if kind.is_channels else -1
        size_h = rms(h) * math.sqrt(h.shape[axis])
        size_g = rms(g) * math.sqrt(g.shape[axis])
        if not all(0 < size < math.inf for size in _numbers(torch.stack([size_h, size_g]))):
            return None
        return cls(h, g / size_g, RELATIVE_CHANGE * size_h)


def _objective(f: Tensor, call: _Call, kind: SiteKind) -> Tensor:
    """Return how far `f` is from lowering each row's loss by the wanted amount; never below -1/2.

    The gradient at a row tells how its loss changes to first order, `v = g · f`, here in units of the
    wanted change. `mean(v) + mean(v²) / 2` is least where every `v` is -1. In a mean over a minibatch it
    is a natural-gradient step in the space of functions, with the rows' own gradients as the empirical
    Fisher matrix (Amari 1998; Martens 2020): where rows want opposite things, their `v²` holds `f` back.
    All positions of an image count as one row, as they make one loss together.
    """
    u = f / call.unit
    v = (u * call.g).sum(dim=1 if kind.is_channels else -1)
    if kind.is_channels:
        v = v.flatten(1).mean(dim=1)
    return v.mean() + v.square().mean() / 2 + DAMPING * u.square().mean() / 2


def _trainable(block: Block) -> Block:
    """Return `block`, or a float32 copy of one in half precision, where Adam's squares would vanish."""
    weights = list(block.parameters())
    if all(weight.dtype in (torch.float32, torch.float64) for weight in weights):
        return block
    return copy.deepcopy(block).float()


def _adam(net: nn.Module) -> torch.optim.Adam:
    """Return an Adam with a rate for every layer of `net`, by its fan-in."""
    # Never without a group: a design may have no weights at all.
    groups: list[dict[str, Any]] = [{"params": []}]
    for layer in net.modules():
        weights = list(layer.parameters(recurse=False))
        fan_in = max((w[0].numel() for w in weights if w.dim() > 1), default=1)
        if weights:
            rate = min(MAX_LEARNING_RATE, LEARNING_RATE / fan_in)
            groups.append({"params": weights, "lr": rate})
    fused = all(w.device.type in ("cpu", "cuda") for w in net.parameters())
    return torch.optim.Adam(groups, fused=fused)


def select(values: Tensor, kind: SiteKind) -> Tensor:
    """Return at most `MAX_ROWS` rows of `values`, evenly spread, as a view where that is possible.

    Of features these are rows `(N, D)`; of sequences and channels whole batch elements, at least one.
    """
    if kind is SiteKind.FEATURES:
        rows, cost = values.reshape(-1, values.shape[-1]), 1
    else:
        rows = values if values.dim() == kind.num_dims else values.unsqueeze(0)
        features = rows.shape[1 if kind.is_channels else -1]
        cost = rows[0].numel() // max(1, features) if len(rows) else 1
    keep = max(1, MAX_ROWS // max(1, cost))
    return rows[:: -(-len(rows) // keep) or 1]


def rms(values: Tensor) -> Tensor:
    """Return the root of the mean square, computed so that small gradients do not vanish."""
    if values.numel() == 0:
        return values.new_zeros(())
    largest = values.abs().amax()
    return (
        values / largest.clamp_min(torch.finfo(values.dtype).tiny)
    ).square().mean().sqrt() * largest


def _numbers(values: Tensor) -> list[float]:
    return values.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
