"""Sampled health of a site: what its features do, and what the loss wants of them.

A seed shows it the sampled training steps; the bed closes it once per epoch and reports the numbers,
which `HealthSignal` defines.

Shapes: `B` batch, `R` sampled rows (samples, tokens, or positions of an image), `D` features or channels.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from esper.contracts import SiteKind
from esper.kasmina.expressivity import (
    MOST_READ,
    NUM_TRIAL_UNITS,
    ExpressivityGap,
    Sketch,
    trial_units,
)
from esper.kasmina.rows import (
    NUM_VARIANTS,
    ROWS_PER_SAMPLE,
    ROWS_PER_SAMPLE_FOR_GAIN,
    Rows,
    choose,
    features_last,
    inputs_of,
    reach_of,
    windows_of,
)

SAMPLES_KEPT = 8
"""Samples that are kept as they are. Of small batches the latest count, and statistics are computed at the
end of an epoch only, as that costs more than a training step of a small layer."""

SAMPLES_KEPT_FOR_GAIN = 64
"""The same at places of new units; see `ROWS_PER_SAMPLE_FOR_GAIN`."""

LARGE_BATCH = 8 * ROWS_PER_SAMPLE
"""Of batches with so many rows every sample counts: computing on a few rows costs little in comparison."""

CORRELATED_FEATURES = 256
"""The correlation is quadratic in the features; of wider sites that many are read, evenly spread."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """The numbers of a `HealthSignal`; zero or None when nothing was sampled."""

    activation_variance: float = 0.0
    dead_neuron_ratio: float = 0.0
    avg_correlation: float = 0.0
    gradient_norm: float | None = None
    expressivity_gap: float | None = None
    expressivity_gain: float | None = None
    num_rows: int = 0
    batch_samples: int = 0


@dataclass(slots=True)
class _Sample:
    """Clones of the same rows of the features, of what they were made from, and of their gradient."""

    h: Tensor  # (R, D)
    inputs: Tensor | None  # (R, G, C)
    scale: float
    """Of the gradient, so that it does not depend on the batch's size.

    `B * g` is the gradient of a batch element's own loss, if the loss is the mean over elements. The root
    of its number of rows makes the mean over rows of squared norms the mean over elements.
    """
    g: Tensor | None = None  # (R, D)
    beside: Tensor | None = None  # (R, X), what new units of the layer before would be tried on


class HealthSampler:
    """Collects the sampled steps of an epoch; deterministic, draws no random numbers.

    Keeps `SAMPLES_KEPT` samples and some sums: 0.5 MiB for a layer from 64 to 64 features, 15 MiB from
    768 to 768, and twelve bytes for each of more than `MOST_READ` inputs that new units would read.
    """

    __slots__ = (
        "_batch_samples",
        "_features",
        "_gap",
        "_kind",
        "_layer",
        "_num_beside",
        "_num_samples",
        "_pull",
        "_reach",
        "_rows",
        "_samples",
        "_sketch",
        "_units",
    )

    def __init__(self, kind: SiteKind, layer: nn.Module, num_read: int = 0) -> None:
        """`num_read` are the features that new units of the layer before would read; 0 elsewhere."""
        self._kind = kind
        self._reach = reach_of(kind, num_read)
        width = num_read * (2 * self._reach + 1) ** (kind.num_dims - 2)
        self._sketch = Sketch(width) if width > MOST_READ else None
        width = min(width, MOST_READ)
        self._units = trial_units(width) if width else None
        self._num_beside = width + NUM_TRIAL_UNITS if width else 0
        self._layer = layer
        self._num_samples = 0
        self._batch_samples = 0
        self._samples: list[_Sample] = []
        self._rows: Rows | None = None
        self._features: _Features | None = None
        self._pull: _Pull | None = None
        self._gap: ExpressivityGap | None = None

    def observe(self, h: Tensor, inputs: Tensor | None, beside: Tensor | None = None) -> None:
        """Keep some rows of the features `h` and of the `inputs` that the layer made them from.

        With `num_read`, of what is `beside` those too: what new units of the layer before would read.
        Clones, since an operation after the layer may overwrite them.
        """
        values = features_last(h.detach(), self._kind)
        most = ROWS_PER_SAMPLE_FOR_GAIN if self._num_beside else ROWS_PER_SAMPLE
        rows = choose(tuple(values.shape[:-1]), h.device, self._num_samples % NUM_VARIANTS, most)
        if rows.num_in_batch == 0:
            return
        if len(self._samples) >= (SAMPLES_KEPT_FOR_GAIN if self._num_beside else SAMPLES_KEPT):
            if rows.num_in_batch >= LARGE_BATCH:
                self._fold()
            else:
                del self._samples[0]
        self._num_samples += 1
        self._batch_samples = rows.num_samples(self._kind)
        made_from = None
        if inputs is not None:
            made_from = inputs_of(self._layer, inputs.detach(), rows, values.shape[-1])
        scale = math.sqrt(rows.leading[0] * rows.num_in_batch)
        read = None
        if beside is not None and len(features_last(beside, self._kind)) == rows.leading[0]:
            read = windows_of(beside, self._kind, rows, self._reach)
            if self._sketch is not None:
                read = self._sketch.of(read)
        self._samples.append(_Sample(rows.of(values), made_from, scale, beside=read))
        self._rows = rows

    def observe_gradient(self, g: Tensor) -> None:
        """Keep the same rows of the loss's gradient at the features that were observed last."""
        if self._rows is not None:
            self._samples[-1].g = self._rows.of(features_last(g.detach(), self._kind))
            self._rows = None

    def close(self) -> Health:
        """Return the health since the last call and start anew.

        Only the gap remembers earlier epochs, as far as it needs their rows.
        """
        self._fold()
        features, pull = self._features, self._pull
        self._features = self._pull = None
        if features is None:
            return Health()
        gap = gain = None
        if self._gap is not None:
            gap, gain = self._gap.measure(self._num_beside)
            self._gap.fade(self._num_beside)
        return Health(
            activation_variance=features.variance(),
            dead_neuron_ratio=features.dead_ratio(),
            avg_correlation=features.correlation(),
            gradient_norm=None if pull is None else pull.norm(),
            expressivity_gap=gap,
            expressivity_gain=gain,
            num_rows=features.num_rows,
            batch_samples=self._batch_samples,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected."""
        return {
            "num_samples": self._num_samples,
            "batch_samples": self._batch_samples,
            "is_sketched": self._sketch is not None,
            "samples": [[s.h, s.inputs, s.scale, s.g, s.beside] for s in self._samples],
            "features": None if self._features is None else self._features.state_dict(),
            "pull": None if self._pull is None else self._pull.state_dict(),
            "gap": None if self._gap is None else self._gap.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._num_samples = state["num_samples"]
        self._batch_samples = state.get("batch_samples", 0)
        # An older version kept, and summed, all that is read.
        is_older = self._sketch is not None and not state.get("is_sketched", False)
        samples: list[list[Any]] = [] if is_older else state["samples"]
        self._samples = [_Sample(*values) for values in samples]
        self._rows = None
        self._features = _Features(**state["features"]) if state["features"] else None
        self._pull = _Pull(**state["pull"]) if state["pull"] else None
        self._gap = None
        # Sums of a still older version have other columns everywhere.
        if state["gap"] is not None and "batch_samples" in state and not is_older:
            self._gap = ExpressivityGap()
            self._gap.load_state_dict(state["gap"])

    def _fold(self) -> None:
        """Turn the samples into sums."""
        samples, self._samples, self._rows = self._samples, [], None
        if not samples:
            return
        new = _Features.over(torch.cat([_double(sample.h) for sample in samples]))
        self._features = new if self._features is None else self._features.with_more(new)
        pulled = [
            (self._regressors(s), -s.scale * _double(s.g)) for s in samples if s.g is not None
        ]
        if not pulled:
            return
        pull = _Pull.over(torch.cat([wanted for _, wanted in pulled]))
        self._pull = pull if self._pull is None else self._pull.with_more(pull)
        pairs = [(_double(inputs), wanted) for inputs, wanted in pulled if inputs is not None]
        if pairs:
            inputs, wanted = zip(*pairs, strict=True)
            self._gap = self._gap or ExpressivityGap()
            self._gap.add(torch.cat(inputs), torch.cat(wanted))

    def _regressors(self, sample: _Sample) -> Tensor | None:
        """Return the layer's inputs `(R, G, C)`, then what new units before it would read and could be."""
        if self._units is None or sample.inputs is None:
            return sample.inputs
        if sample.beside is None:
            return None
        read = sample.beside
        units = torch.relu(read @ self._units.to(read))  # (R, U)
        return torch.cat([sample.inputs, torch.cat([read, units], dim=1).unsqueeze(1)], dim=2)


@dataclass(frozen=True, kw_only=True)
class _Features:
    """Mean, spread and range of each feature over rows, and the co-variation of pairs; float64."""

    num_rows: int
    mean: Tensor  # (D,)
    deviation: Tensor  # (D,) sum of squares around the mean
    low: Tensor  # (D,)
    high: Tensor  # (D,)
    together: Tensor  # (E, E) sum of products around the means, for E of the features

    @classmethod
    def over(cls, rows: Tensor) -> Self:
        mean = rows.mean(dim=0)
        centred = rows - mean
        spread = centred[:, :: _stride(rows.shape[1])]
        return cls(
            num_rows=len(rows),
            mean=mean,
            deviation=centred.square().sum(dim=0),
            low=rows.amin(dim=0),
            high=rows.amax(dim=0),
            together=spread.T @ spread,
        )

    def with_more(self, other: Self) -> Self:
        """Return the statistics of both sets of rows together (Chan, Golub & LeVeque 1983)."""
        total = self.num_rows + other.num_rows
        apart = other.mean - self.mean
        between = self.num_rows * other.num_rows / total
        some = apart[:: _stride(len(apart))]
        return type(self)(
            num_rows=total,
            mean=self.mean + apart * (other.num_rows / total),
            deviation=self.deviation + other.deviation + apart.square() * between,
            low=torch.minimum(self.low, other.low),
            high=torch.maximum(self.high, other.high),
            together=self.together + other.together + torch.outer(some, some) * between,
        )

    def variance(self) -> float:
        return float((self.deviation / self.num_rows).mean())

    def dead_ratio(self) -> float:
        # Not a number differs from itself: such a feature counts as alive.
        return float((self.high == self.low).double().mean())

    def correlation(self) -> float:
        """Leave out features that do not vary or have a value that is not finite."""
        varies = (self.high != self.low)[:: _stride(len(self.mean))]
        size = self.together.diagonal()
        usable = torch.nonzero(varies & (size > 0) & size.isfinite()).flatten()
        width = len(usable)
        if width < 2:
            return 0.0
        root = size[usable].sqrt()
        pairs = self.together[usable][:, usable] / root / root[:, None]
        return min(1.0, max(0.0, (float(pairs.abs().sum()) - width) / (width * (width - 1))))

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class _Pull:
    """How strongly the loss pulls at the features; both float64."""

    energy: Tensor
    """Sum over rows of squared norms of the wanted change."""
    num_rows: Tensor
    """Rows without a value that is not finite; others are left out."""

    @classmethod
    def over(cls, wanted: Tensor) -> Self:
        finite = wanted.isfinite().all(dim=1)
        energy = torch.where(finite[:, None], wanted, 0).square().sum()
        return cls(energy=energy, num_rows=finite.sum().double())

    def with_more(self, other: Self) -> Self:
        return type(self)(
            energy=self.energy + other.energy, num_rows=self.num_rows + other.num_rows
        )

    def norm(self) -> float | None:
        num_rows = float(self.num_rows)
        return math.sqrt(float(self.energy) / num_rows) if num_rows else None

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def _stride(width: int) -> int:
    return -(-width // CORRELATED_FEATURES) or 1


def _double(values: Tensor) -> Tensor:
    """Return `values` in double precision, on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()
