"""The expressivity gap: the change that the loss wants at a layer and that its own weights cannot make.

The gradient of the loss at a layer's output says how the output should change, row by row. Changing the
layer's weights changes the output only by linear functions of the layer's inputs. What is left of the
wanted change after the best such function is what a new block at this place could add (Verbockhaven et
al. 2024, "Growing Tiny Networks"; Evci et al. 2022, "GradMax"). The health sampler hands in the rows.

Shapes: `R` rows, `D` features at the site, `G` groups of the layer's features (1 but for grouped
convolutions), `C` inputs of one row within a group (with a 1 for the bias).
"""

from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

RIDGE = 1e-6
"""Ridge of the least squares, on inputs scaled to a mean square of 1: an input that is a sum of others but
for a thousandth does not count as a way to follow."""

ROWS_PER_COLUMN = 2
"""Rows needed for each input: with as many rows as inputs, any change at all could be followed."""

PAST_ROWS_PER_COLUMN = 4
"""Weight of earlier epochs, in rows for each input, so that there is a gap in short epochs too."""

PAST_ROWS_FOR_GAIN = 32
"""The same where a gain is asked for: a small part of the gap, which few rows could not tell from chance."""


NUM_TRIAL_UNITS = 32
"""Random units beside the linear functions. More of them are more that chance could follow."""


def trial_units(num_read: int) -> Tensor:
    """Return the weights `(num_read, NUM_TRIAL_UNITS)` of rectified units that new ones are tried as.

    What new units read may say next to nothing in linear functions, as a single channel does of what an
    image shows, while units of it say a lot: random features (Rahimi & Recht 2007) stand for what they
    could become. Without a bias their scale does not matter. The same at every call.
    """
    generator = torch.Generator().manual_seed(num_read)
    shape = (num_read, NUM_TRIAL_UNITS)
    return torch.randn(shape, generator=generator, dtype=torch.float64) / num_read**0.5


MOST_READ = 512
"""Numbers that new units are tried on. The cost grows with the square of them."""


class Sketch:
    """Stands for more inputs than new units are tried on: `MOST_READ` sums of some of them with random signs.

    What inputs that vary together can follow, as pixels do, such sums can follow, too (Charikar et al. 2002,
    "Finding frequent items in data streams"; for least squares Clarkson & Woodruff 2013). Of what n
    independent inputs could follow they see a share of `MOST_READ / n`, so that much is underrated. The same
    for as many inputs, always.
    """

    __slots__ = ("_order", "_signs")

    def __init__(self, num_read: int) -> None:
        generator = torch.Generator().manual_seed(num_read)
        self._order = torch.randperm(num_read, generator=generator, device="cpu")
        drawn = torch.randint(2, (num_read,), generator=generator, device="cpu")
        self._signs = (2 * drawn - 1).to(torch.float32)

    def of(self, read: Tensor) -> Tensor:
        """Return the sums `(R, MOST_READ)` of inputs `(R, num_read)`, in float32 at least."""
        signed = read[:, self._order.to(read.device)] * self._signs.to(read.device)
        missing = -signed.shape[1] % MOST_READ
        return functional.pad(signed, (0, missing)).reshape(len(read), -1, MOST_READ).sum(dim=1)


@dataclass(frozen=True)
class _Sums:
    """Sums over rows; all float64."""

    gram: Tensor
    """`(G, C, C)`: inputs with inputs."""
    cross: Tensor
    """`(G, C, D / G)`: inputs with the wanted change."""
    energy: Tensor
    """`(G,)`: squares of the wanted change."""
    weight: Tensor
    """Number of rows, where one of the past counts less than 1."""
    squared_weight: Tensor

    @classmethod
    def over(cls, inputs: Tensor, wanted: Tensor) -> Self:
        # A row's sum is finite where all of it is, and costs a third of asking each number.
        finite = (inputs.sum(dim=(1, 2)) + wanted.sum(dim=1)).isfinite()
        if not bool(finite.all()):
            inputs = torch.where(finite[:, None, None], inputs, 0)
            wanted = torch.where(finite[:, None], wanted, 0)
        p = inputs.transpose(0, 1)  # (G, R, C)
        v = wanted.reshape(len(wanted), len(p), -1).transpose(0, 1)  # (G, R, D / G)
        count = finite.sum().double()
        return cls(_products(p, p), _products(p, v), v.square().sum(dim=(1, 2)), count, count)

    def of_first(self, num_columns: int) -> Self:
        gram, cross = self.gram[:, :num_columns, :num_columns], self.cross[:, :num_columns]
        return type(self)(gram, cross, *self.tensors()[2:])

    def tensors(self) -> list[Tensor]:
        return [self.gram, self.cross, self.energy, self.weight, self.squared_weight]

    @property
    def num_columns(self) -> int:
        return self.gram.shape[-1]


class ExpressivityGap:
    """Sums over sampled rows that the gap follows from; they do not grow with the number of rows."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums: _Sums | None = None

    @property
    def num_columns(self) -> int:
        """Inputs of one row within a group; 0 before there are any."""
        return 0 if self._sums is None else self._sums.num_columns

    def add(self, inputs: Tensor, wanted: Tensor) -> None:
        """Add rows: the layer's `inputs` `(R, G, C)` and the `wanted` change of its output `(R, D)`.

        Both float64. Rows with a value that is not finite are left out. `G` must divide `D`.
        """
        new = _Sums.over(inputs, wanted)
        if self._sums is not None:
            pairs = zip(self._sums.tensors(), new.tensors(), strict=True)
            new = _Sums(*(old + more for old, more in pairs))
        self._sums = new

    def value(self, num_beside: int = 0) -> float | None:
        """Return the mean squared norm of what is left of a row's wanted change; None from too few rows.

        The last `num_beside` inputs are left out: they are not the layer's own.

        It is `|V - P W|² / (n - d)` with the ridge solution `W` and its degrees of freedom `d`: of n rows
        of pure noise `d` parts can be followed, so the value does not depend on how many rows there are.
        """
        return self.measure(num_beside)[0]

    def measure(self, num_beside: int = 0) -> tuple[float | None, float | None]:
        """Return `value`, and how much of it linear functions of the last `num_beside` inputs can follow.

        Those are what new units would read, and `trial_units` of it.

        The second is the expressivity gain of new units that read these inputs, to first order and with as
        many units as they can use (Verbockhaven et al. 2024): the squared norm of `S^(-1/2) N`, where `N` is
        the mean product of these inputs with what the first inputs leave of the wanted change, and `S` that
        of these inputs with themselves. From it is taken what inputs that say nothing would seem to follow in
        so few rows; as inputs that the first ones know already seem to follow less, the value errs on the
        low side for them, and may be negative. None without such inputs, or from too few rows.
        """
        if self._sums is None:
            return None, None
        sums, own = self._sums, self.num_columns - num_beside
        first = sums.of_first(own)
        if float(first.weight) < ROWS_PER_COLUMN * own:
            return None, None
        if not all(bool(part.isfinite().all()) for part in first.tensors()):
            return None, None  # squares overflow only where the host is about to
        weights, factor = _least_squares(first.gram, first.cross)
        followed = (weights * (2 * first.cross - first.gram @ weights)).sum(dim=(1, 2))
        # A row of the past counts with its weight in the sum, but with its square in what it can fit.
        freedom = first.weight - _freedom(factor) * first.squared_weight / first.weight
        gap = float(((first.energy - followed).clamp_min(0) / freedom).sum())
        if not num_beside:
            return gap, None
        left = sums.cross[:, own:] - sums.gram[:, own:, :own] @ weights  # (G, beside, D / G)
        ways, _ = _least_squares(sums.gram[:, own:, own:], left)
        gain = float((ways * left).sum() / sums.weight)
        by_chance = num_beside * float(sums.squared_weight / sums.weight**2)
        return gap, gain - by_chance * gap

    def fade(self, num_beside: int = 0) -> None:
        """Let what was added so far count for so many rows at most.

        That is `PAST_ROWS_PER_COLUMN` for each input; with `num_beside`, `PAST_ROWS_FOR_GAIN`, as a gain is
        a small part of a gap.
        """
        sums = self._sums
        if sums is None:
            return
        rows = PAST_ROWS_FOR_GAIN if num_beside else PAST_ROWS_PER_COLUMN
        most = rows * sums.num_columns
        share = (most / sums.weight.clamp_min(1)).clamp_max(1)
        gram, cross, energy, weight, squared = sums.tensors()
        self._sums = _Sums(
            gram * share, cross * share, energy * share, weight * share, squared * share**2
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {"sums": None if self._sums is None else self._sums.tensors()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._sums = None if state["sums"] is None else _Sums(*state["sums"])


def _least_squares(gram: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ridge solution `(G, C, D / G)`, and the Cholesky factor `(G, C, C)` that it came from."""
    size = gram.diagonal(dim1=1, dim2=2).sqrt()
    scale = torch.where(size > 0, 1 / size, 0)
    gram = gram * scale[:, :, None] * scale[:, None, :]
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE)
    factor = _cholesky(gram)
    weights = torch.cholesky_solve(cross * scale[:, :, None], factor) * scale[:, :, None]
    return weights, factor


def _freedom(factor: Tensor) -> Tensor:
    """Return the degrees of freedom `(G,)` of a ridge solution: the trace of `K (K + r)^-1`."""
    inverse = torch.cholesky_inverse(factor)
    return factor.shape[-1] - RIDGE * inverse.diagonal(dim1=1, dim2=2).sum(dim=1)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return `(G, A, B)`, the sums over rows of products of `a` `(G, R, A)` and `b` `(G, R, B)`."""
    # Nearly always there is one group, and a batched product of one is several times slower.
    return (a[0].T @ b[0]).unsqueeze(0) if len(a) == 1 else a.mT @ b


def _cholesky(matrices: Tensor) -> Tensor:
    return cast("Tensor", torch.linalg.cholesky(matrices))  # pyright: ignore[reportUnknownMemberType]
