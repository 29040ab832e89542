"""Which rows of a batch health is sampled from, and what a layer made those rows from.

The health sampler asks for the same rows of the features, of their gradient and of the layer's inputs.
The choice depends on the batch's shape alone, so no random stream is touched.

Shapes: `B` batch, `D` features at the site, `R` sampled rows, `G` groups of a layer's features (1 but for
grouped convolutions), `C` inputs of one row within a group (with a 1 for the bias).
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.contracts import SiteKind
from esper.kasmina.adapters import linear_inputs

ROWS_PER_SAMPLE = 64
"""Rows are cheap to keep but cost when the statistics are computed; many samples of few rows tell more."""

ROWS_PER_SAMPLE_FOR_GAIN = 512
"""The same at places of new units: a gain is a small part of a gap, and few rows leave it to chance."""

NUM_VARIANTS = 8
"""Different choices of rows, taken in turn, so that all positions of an image are seen."""

MAX_COLUMNS = 1024
"""Layers with more inputs to a row are left out: what is computed from them would take too much."""

MAX_BESIDE = 256
"""New channels would read positions around their own; so many numbers of them are looked at."""

_SHUFFLED = 1 << 16
"""Up to so many rows are drawn without repetition; a repetition among more is rare."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a batch, or all of them."""

    leading: tuple[int, ...]
    """The batch's shape without its features: `(B, …)`."""
    indices: tuple[Tensor, ...] | None
    """An index `(R,)` for each dimension of `leading`; None for all rows."""

    @property
    def num_in_batch(self) -> int:
        """Rows of the whole batch."""
        return torch.Size(self.leading).numel()

    def num_samples(self, kind: SiteKind) -> int:
        """Return how many samples the batch has; each token is one where it only looks back."""
        is_one = kind.is_channels or kind is SiteKind.SEQUENCE
        return self.leading[0] if is_one else self.num_in_batch

    def of(self, values: Tensor) -> Tensor:
        """Return a copy of these rows `(R, X)` of `values` `(B, …, X)`."""
        if self.indices is None:
            return values.reshape(-1, values.shape[-1]).clone()
        return values[self.indices]


def features_last(values: Tensor, kind: SiteKind) -> Tensor:
    """Return a view `(B, …, D)` of what flows at a site."""
    if kind.is_channels:
        batched = values if values.dim() == kind.num_dims else values.unsqueeze(0)
        return batched.movedim(1, -1)
    return values if values.dim() > 1 else values.unsqueeze(0)


@lru_cache(maxsize=256)
def choose(
    leading: tuple[int, ...], device: torch.device, variant: int, most: int = ROWS_PER_SAMPLE
) -> Rows:
    """Return `most` rows of a batch of this shape, or all if it has no more."""
    total = torch.Size(leading).numel()
    if total <= most:
        return Rows(leading, None)
    generator = torch.Generator().manual_seed(variant)
    if total <= _SHUFFLED:
        flat = torch.randperm(total, generator=generator)[:most]
    else:
        flat = torch.randint(total, (most,), generator=generator)
    return Rows(leading, tuple(index.to(device) for index in _unravel(flat, leading)))


def inputs_of(layer: nn.Module, inputs: Tensor, rows: Rows, features: int) -> Tensor | None:
    """Return what `layer` made these rows of its output from: a copy `(R, G, C)` of its `inputs`.

    None if the layer is neither linear nor a convolution, if a row of its output is made from
    `MAX_COLUMNS` numbers or more, if a part of `features` cannot be told to its groups, or if output and
    inputs do not belong together.
    """
    if (width := linear_inputs(layer)) is not None:
        fits = inputs.dim() > 1 and inputs.shape == (*rows.leading, width)
        if not fits or width >= MAX_COLUMNS:
            return None
        picked = rows.of(inputs).unsqueeze(1)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        batched = inputs if inputs.dim() == layer.weight.dim() else inputs.unsqueeze(0)
        geometry = _geometry_of(layer)
        size = tuple(batched.shape[2:])
        fits = geometry.output(size) == rows.leading[1:]
        is_whole = layer.groups == 1 or features == layer.out_channels
        if not (fits and is_whole) or layer.weight[0].numel() >= MAX_COLUMNS:
            return None
        picked = _windows(geometry, size, rows, inputs.device).of(batched, layer.groups)
    else:
        return None
    if layer.bias is None:
        return picked
    return torch.cat([picked, picked.new_ones(*picked.shape[:2], 1)], dim=2)


def reach_of(kind: SiteKind, features: int) -> int:
    """Return how many positions around its own a row of `windows_of` covers on each side."""
    sizes = (2, 1) if kind.is_channels else ()
    num_axes = kind.num_dims - 2
    return next((r for r in sizes if features * (2 * r + 1) ** num_axes <= MAX_BESIDE), 0)


def windows_of(values: Tensor, kind: SiteKind, rows: Rows, reach: int) -> Tensor:
    """Return these rows of `values`, with those at the positions around each: a copy `(R, X)`.

    `X` is `D` times `2 * reach + 1` along each axis of positions, and zero beyond the edges.
    """
    last = features_last(values.detach(), kind)
    if not reach:
        return rows.of(last)
    axes = range(1, last.dim() - 1)
    padded = functional.pad(last, (0, 0) + (reach, reach) * len(axes))
    shifts = product(range(2 * reach + 1), repeat=len(axes))
    parts: list[Tensor] = []
    for shift in shifts:
        part = padded
        for axis, start in zip(axes, shift, strict=True):
            part = part.narrow(axis, start, last.shape[axis])
        parts.append(rows.of(part))
    return torch.cat(parts, dim=1)


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    """How a convolution reads its input, for each dimension of its positions."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    """Before and after."""
    mode: str

    def output(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the positions of the output for an input of so many."""
        return tuple(
            (n + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for n, kernel, stride, dilation, pad in zip(
                size, self.kernel, self.stride, self.dilation, self.padding, strict=True
            )
        )


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Where in a convolution's input each sampled row reads."""

    indices: tuple[Tensor, ...]
    """For the batch `(R, 1, …)`, then for each dimension of the positions, e.g. `(R, 1, kernel, 1)`."""
    inside: Tensor | None
    """`(R, kernel, …, 1)`: false where it reads zero padding; None if it nowhere does."""

    def of(self, batched: Tensor, groups: int) -> Tensor:
        """Return what the rows read of an input `(B, channels, …)`, `(R, G, C)`."""
        picked = batched[
            (self.indices[0], slice(None), *self.indices[1:])
        ]  # (R, kernel…, channels)
        if self.inside is not None:
            picked = torch.where(self.inside, picked, 0)
        picked = picked.reshape(len(picked), -1, groups, picked.shape[-1] // groups)
        return picked.transpose(1, 2).flatten(2)


@lru_cache(maxsize=256)
def _windows(
    geometry: _Geometry, size: tuple[int, ...], rows: Rows, device: torch.device
) -> _Windows:
    flat = torch.arange(rows.num_in_batch, device=device)
    chosen = rows.indices or _unravel(flat, rows.leading)
    num_dims = len(size)
    indices = [chosen[0].reshape(-1, *[1] * num_dims)]
    inside: Tensor | None = None
    for axis, n in enumerate(size):
        kernel, pad = geometry.kernel[axis], geometry.padding[axis][0]
        taps = torch.arange(kernel, device=device) * geometry.dilation[axis]
        read = chosen[1 + axis][:, None] * geometry.stride[axis] - pad + taps  # (R, kernel)
        shape = [-1, *(kernel if other == axis else 1 for other in range(num_dims))]
        within = ((read >= 0) & (read < n)).reshape(*shape, 1)
        inside = within if inside is None else inside & within
        indices.append(_resolve(read, n, geometry.mode).reshape(shape))
    if geometry.mode != "zeros" or inside is None or bool(inside.all()):
        inside = None
    return _Windows(indices=tuple(indices), inside=inside)


def _resolve(read: Tensor, n: int, mode: str) -> Tensor:
    """Return where an index outside `0 … n - 1` reads; see the `padding_mode` of `nn.Conv2d`."""
    if mode == "circular":
        return read % n
    if mode == "reflect":
        read = read.abs()
        read = torch.where(read >= n, 2 * (n - 1) - read, read)
    return read.clamp(0, n - 1)


def _geometry_of(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> _Geometry:
    dilation, kernel = tuple(layer.dilation), tuple(layer.kernel_size)
    if isinstance(layer.padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        added = reach if layer.padding == "same" else [0] * len(reach)
        padding = tuple((total // 2, total - total // 2) for total in added)
    else:
        padding = tuple((pad, pad) for pad in layer.padding)
    return _Geometry(
        kernel=kernel,
        stride=tuple(layer.stride),
        dilation=dilation,
        padding=padding,
        mode=layer.padding_mode,
    )


def _unravel(flat: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return torch.unravel_index(flat, shape)
