"""Sampled health of a site: how much its features vary, how many are idle, how alike they are.

A seed feeds it some training forwards; the bed closes it once per epoch and reports the numbers.

Shapes: `N` rows (samples, or positions of an image), `D` features or channels.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts import SiteKind

ROWS_PER_SAMPLE = 256
SAMPLES_KEPT = 16
"""The latest samples of an epoch are kept: memory stays bounded at 4096 rows per site."""

CORRELATED_FEATURES = 512
"""The correlation is quadratic in the features; wider sites are read at that many, evenly spread."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """The numbers of a `HealthSignal`; zero or None when nothing was sampled."""

    activation_variance: float = 0.0
    dead_neuron_ratio: float = 0.0
    avg_correlation: float = 0.0
    gradient_norm: float | None = None
    expressivity_gap: float | None = None
    num_rows: int = 0


class HealthSampler:
    """Keeps a few rows of the sampled forwards; deterministic, draws no random numbers."""

    __slots__ = ("_kind", "_samples")

    def __init__(self, kind: SiteKind, layer: nn.Module) -> None:
        self._kind = kind
        self._samples: deque[Tensor] = deque(maxlen=SAMPLES_KEPT)

    def observe(self, h: Tensor, inputs: Tensor | None) -> None:
        """Keep some rows of a sampled forward: the features and what the layer made them from."""
        # A clone: an in-place operation after the layer may overwrite the output.
        self._samples.append(as_rows(h.detach(), self._kind, ROWS_PER_SAMPLE).clone())

    def observe_gradient(self, g: Tensor) -> None:
        """Keep the same rows of the loss's gradient at the features observed last."""

    def close(self) -> Health:
        """Return the health over the samples since the last call and start anew."""
        samples = list(self._samples)
        self._samples.clear()
        if not samples:
            return Health()
        rows = torch.cat([sample.cpu().double() for sample in samples])
        return replace(measure(rows), num_rows=len(rows))

    def state_dict(self) -> dict[str, Any]:
        """Return what was sampled."""
        return {"samples": list(self._samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._samples = deque(state["samples"], maxlen=SAMPLES_KEPT)


def as_rows(output: Tensor, kind: SiteKind, limit: int) -> Tensor:
    """Return the first `limit` rows `(N, D)` of features `(…, D)` or channels `([B,] D, H, W)`."""
    if not kind.is_channels:
        return output.reshape(-1, output.shape[-1])[:limit]
    images = output if output.dim() == kind.num_dims else output.unsqueeze(0)
    positions = max(1, images[0, 0].numel() if len(images) else 1)
    images = images[: -(-limit // positions)]
    return images.movedim(1, -1).reshape(-1, images.shape[1])[:limit]


def measure(rows: Tensor) -> Health:
    """Compute the health of float64 `rows` of shape `(N, D)`.

    Features with a value that is not finite make the variance non-finite, count as alive, and are
    left out of the correlation.
    """
    if rows.numel() == 0:
        return Health()
    varies = rows.amax(dim=0) != rows.amin(dim=0)  # (D,); NaN differs from itself
    centred = rows - rows.mean(dim=0)
    usable = torch.nonzero(varies & rows.isfinite().all(dim=0)).flatten()
    return Health(
        activation_variance=float(centred.square().mean(dim=0).mean()),
        dead_neuron_ratio=float((~varies).double().mean()),
        avg_correlation=_mean_absolute_correlation(centred[:, _spread(usable)]),
    )


def _spread(indices: Tensor) -> Tensor:
    stride = -(-len(indices) // CORRELATED_FEATURES) or 1
    return indices[::stride]


def _mean_absolute_correlation(centred: Tensor) -> float:
    width = centred.shape[1]
    if width < 2:
        return 0.0
    # Scaled by the largest value first, so that squares neither overflow nor vanish.
    scaled = centred / centred.abs().amax(dim=0)
    unit = scaled / scaled.square().sum(dim=0).sqrt()
    total = float((unit.T @ unit).abs().sum()) - width
    return min(1.0, max(0.0, total / (width * (width - 1))))
