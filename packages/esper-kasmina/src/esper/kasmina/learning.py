"""Isolated training: a block learns at its site without the host noticing.

A seed in TRAINING owns one `Learner`. It sees clones of the site's features on training forwards and
the task's gradient there, and fits `f(h)` to a small step against that gradient.

Shapes: `h` and its gradient `g` are `(N, D)` rows, or `(B, D, H, W)` images.
"""

import torch
from torch import Tensor, nn

from esper.contracts import SiteKind
from esper.kasmina.kernels import Block

MAX_ROWS = 512
"""Rows (or positions of images) per own step: bounds what a seed costs."""

RELATIVE_STEP = 0.1
"""Size of the target relative to the features: small enough to stay where the gradient is valid."""

LEARNING_RATE = 1e-3
"""Adam's default; a zero-initialised last layer reaches targets of that size within tens of steps."""


class Learner:
    """One block's own training; never touches the host, its optimizer or a random stream."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._adam = torch.optim.Adam(block.parameters(), lr=LEARNING_RATE)
        self._pair: tuple[Tensor, Tensor] | None = None
        self.num_steps = 0
        self.failure: str | None = None

    def capture(self, output: Tensor) -> None:
        """Keep a clone of the features `output` and, once it is known, of their gradient."""
        if self.failure is not None or not (torch.is_grad_enabled() and output.requires_grad):
            return
        kind = self._block.signature.kind
        h = select(output.detach(), kind).clone()

        def keep(gradient: Tensor) -> None:
            self._pair = (h, select(gradient.detach(), kind).clone())

        output.register_hook(keep)  # pyright: ignore[reportUnknownMemberType]

    def step(self) -> None:
        """Make one own step on the latest features and gradient, if there are any."""
        pair, self._pair = self._pair, None
        if pair is None or self.failure is not None:
            return
        weight = next(self._block.parameters(), None)
        if weight is None:
            return
        h, g = (value.to(weight.device, weight.dtype) for value in pair)
        size = rms(g)
        # A host that overflows (as under a gradient scaler) says nothing about the seed.
        if not (bool(torch.isfinite(h).all()) and bool(torch.isfinite(g).all()) and size > 0):
            return
        target = -RELATIVE_STEP * rms(h) * g / size
        self.num_steps += 1
        self.failure = self._fit(h, target)

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
    """Return at most `MAX_ROWS` rows of `values`, evenly spread over the batch."""
    if kind is SiteKind.FEATURES:
        rows, cost = values.reshape(-1, values.shape[-1]), 1
    else:
        rows = values if values.dim() == 4 else values.unsqueeze(0)
        cost = rows.shape[2] * rows.shape[3]
    keep = max(1, MAX_ROWS // max(1, cost))
    return rows[:: -(-len(rows) // keep) or 1]


def rms(values: Tensor) -> Tensor:
    """Return the root of the mean square, computed so that small gradients do not vanish."""
    largest = values.abs().amax()
    if not largest > 0:
        return largest
    return (values / largest).square().mean().sqrt() * largest
