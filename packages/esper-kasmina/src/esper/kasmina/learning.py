"""Isolated training: a block learns at its site without the host noticing.

A seed in TRAINING owns one `Learner`. It is shown the site's features and the task's gradient there,
and fits `f(h)` to a small step against that gradient.

Shapes: `h` and its gradient `g` are `(N, D)` rows, `(B, T, D)` sequences or `(B, D, …)` channels.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts import SiteKind
from esper.kasmina.kernels import Block

MAX_ROWS = 512
"""Rows (or positions of images and sequences) per call: bounds what a seed costs."""

MAX_CALLS = 4
"""With gradient accumulation, or a layer that is called several times in a step, a step learns from the
last so many calls."""

RELATIVE_STEP = 0.1
"""Size of the target relative to the features: small enough to stay where the gradient is valid."""

LEARNING_RATE = 1e-3
"""Adam's default; a zero-initialised last layer reaches targets of that size within tens of steps."""


class Learner:
    """One block's own training; never touches the host, its optimizer or a global random stream."""

    def __init__(self, block: Block, seed: int) -> None:
        self._block = block
        self._adam = torch.optim.Adam(block.parameters(), lr=LEARNING_RATE)
        self._generator = torch.Generator().manual_seed(seed % (1 << 63))
        self._pending: deque[tuple[Tensor, Tensor]] = deque(maxlen=MAX_CALLS)
        self.num_steps = 0
        self.failure: str | None = None

    def observe(self, h: Tensor, g: Tensor) -> None:
        """Keep some rows of the features at the site and of the loss's gradient there, as clones."""
        if self.failure is None:
            kind = self._block.signature.kind
            self._pending.append(
                (select(h.detach(), kind).clone(), select(g.detach(), kind).clone())
            )

    def step(self) -> None:
        """Make one own step on what was observed since the last one, if anything was."""
        pairs = list(self._pending)
        self._pending.clear()
        weight = next(self._block.parameters(), None)
        if not pairs or weight is None or self.failure is not None:
            return
        h, g = (
            torch.cat([part.to(weight) for part in parts]) for parts in zip(*pairs, strict=True)
        )
        size = rms(g)
        # A host that overflows (as under a gradient scaler) says nothing about the seed.
        if not (bool(torch.isfinite(h).all()) and bool(torch.isfinite(g).all()) and size > 0):
            return
        target = -RELATIVE_STEP * rms(h) * g / size
        self.num_steps += 1
        self.failure = self._fit(h, target)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next steps depend on, except the block's own weights."""
        return {
            "num_steps": self.num_steps,
            "failure": self.failure,
            "adam": self._adam.state_dict(),
            "generator": self._generator.get_state(),
            "pending": [[h, g] for h, g in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.num_steps = state["num_steps"]
        self.failure = state["failure"]
        self._adam.load_state_dict(state["adam"])
        self._generator.set_state(state["generator"])
        self._pending.clear()
        self._pending.extend((h, g) for h, g in state["pending"])

    def _fit(self, h: Tensor, target: Tensor) -> str | None:
        """Step toward `f(h) = target`; return what went wrong, if anything did."""
        with torch.enable_grad(), torch.autocast(h.device.type, enabled=False):
            loss = nn.functional.mse_loss(self._block(h), target)
            if not bool(torch.isfinite(loss)):
                return f"its own loss became {float(loss.detach())} at its step {self.num_steps}"
            self._adam.zero_grad()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        gradients = [p.grad for p in self._block.parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return f"its own gradient became non-finite at its step {self.num_steps}"
        self._adam.step()  # pyright: ignore[reportUnknownMemberType]
        return None


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
    largest = values.abs().amax()
    if not largest > 0:
        return largest
    return (values / largest).square().mean().sqrt() * largest
