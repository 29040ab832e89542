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

RIDGE = 1e-6
"""Ridge of the least squares, on inputs scaled to a mean square of 1: an input that is a sum of others but
for a thousandth does not count as a way to follow."""

ROWS_PER_COLUMN = 2
"""Rows needed for each input: with as many rows as inputs, any change at all could be followed."""

PAST_ROWS_PER_COLUMN = 4
"""Weight of earlier epochs, in rows for each input, so that there is a gap in short epochs too."""


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
        finite = inputs.isfinite().flatten(1).all(dim=1) & wanted.isfinite().all(dim=1)
        p = torch.where(finite[:, None, None], inputs, 0).transpose(0, 1)  # (G, R, C)
        v = torch.where(finite[:, None], wanted, 0)
        v = v.reshape(len(v), len(p), v.shape[1] // len(p)).transpose(0, 1)  # (G, R, D / G)
        count = finite.sum().double()
        return cls(_products(p, p), _products(p, v), v.square().sum(dim=(1, 2)), count, count)

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

    def add(self, inputs: Tensor, wanted: Tensor) -> None:
        """Add rows: the layer's `inputs` `(R, G, C)` and the `wanted` change of its output `(R, D)`.

        Both float64. Rows with a value that is not finite are left out. `G` must divide `D`.
        """
        new = _Sums.over(inputs, wanted)
        if self._sums is not None:
            pairs = zip(self._sums.tensors(), new.tensors(), strict=True)
            new = _Sums(*(old + more for old, more in pairs))
        self._sums = new

    def value(self) -> float | None:
        """Return the mean squared norm of what is left of a row's wanted change; None from too few rows.

        It is `|V - P W|² / (n - d)` with the ridge solution `W` and its degrees of freedom `d`: of n rows
        of pure noise `d` parts can be followed, so the value does not depend on how many rows there are.
        """
        sums = self._sums
        if sums is None or float(sums.weight) < ROWS_PER_COLUMN * sums.num_columns:
            return None
        if not all(bool(part.isfinite().all()) for part in sums.tensors()):
            return None  # squares overflow only where the host is about to
        size = sums.gram.diagonal(dim1=1, dim2=2).sqrt()
        scale = torch.where(size > 0, 1 / size, 0)
        gram = sums.gram * scale[:, :, None] * scale[:, None, :]
        cross = sums.cross * scale[:, :, None]
        eye = torch.eye(sums.num_columns, dtype=gram.dtype, device=gram.device)
        factor = _cholesky(gram + RIDGE * eye)
        weights = torch.cholesky_solve(cross, factor)
        followed = (weights * (2 * cross - gram @ weights)).sum(dim=(1, 2))
        parts = torch.cholesky_solve(gram, factor).diagonal(dim1=1, dim2=2).sum(dim=1)
        # A row of the past counts with its weight in the sum, but with its square in what it can fit.
        freedom = sums.weight - parts * sums.squared_weight / sums.weight
        return float(((sums.energy - followed).clamp_min(0) / freedom).sum())

    def fade(self) -> None:
        """Let what was added so far count for `PAST_ROWS_PER_COLUMN` rows for each input at most."""
        sums = self._sums
        if sums is None:
            return
        most = PAST_ROWS_PER_COLUMN * sums.num_columns
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


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return `(G, A, B)`, the sums over rows of products of `a` `(G, R, A)` and `b` `(G, R, B)`."""
    # Nearly always there is one group, and a batched product of one is several times slower.
    return (a[0].T @ b[0]).unsqueeze(0) if len(a) == 1 else a.mT @ b


def _cholesky(matrices: Tensor) -> Tensor:
    return cast("Tensor", torch.linalg.cholesky(matrices))  # pyright: ignore[reportUnknownMemberType]
