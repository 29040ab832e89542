"""Tells what flows out of a layer, and how wide it is, from its type or from what it once returned.

The plan asks; the answer becomes the signature of the kernels that fit the site.

Shapes: `B` batch, `T` tokens, `D` features or channels.
"""

from torch import Tensor, nn

from esper.contracts import SiteKind
from esper.contracts.words import type_of
from esper.kasmina.adapters import adapter_of

_CHANNELS = {3: SiteKind.CHANNELS_1D, 4: SiteKind.CHANNELS_2D, 5: SiteKind.CHANNELS_3D}
_CHANNEL_NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def shape_of(layer: nn.Module, features: Tensor | None) -> tuple[SiteKind, int] | str:
    """Return kind and width `D` of a layer's output, or why they cannot be told.

    `features` is what an example's forward pass gave, if there was one (only its shape is read).
    """
    adapter = adapter_of(type(layer))
    if features is None:
        if adapter.kind is None or adapter.width is None:
            return (
                f"is {type_of(layer)}, whose output is not known; give plan() and wrap() an "
                "example of the model's inputs, or register_adapter() for its type"
            )
        return adapter.kind, adapter.width(layer)
    kind = adapter.kind or _kind_seen(layer, features)
    if kind is None:
        return f"returns {features.dim()} dimensions; expected 2 to 5"
    if kind is SiteKind.FEATURES and features.dim() == 3:
        kind = SiteKind.SEQUENCE
    # An example without a batch has one dimension less.
    axis = features.dim() - kind.num_dims + 1 if kind.is_channels else -1
    return kind, features.shape[axis]


def _kind_seen(layer: nn.Module, features: Tensor) -> SiteKind | None:
    """Tell what a layer returned whose type says nothing: channels, tokens or plain features."""
    dims = features.dim()
    if dims in _CHANNELS and _has_channels_second(layer, features):
        return _CHANNELS[dims]
    if dims in (2, 4, 5):
        return SiteKind.FEATURES
    return SiteKind.SEQUENCE if dims == 3 else None


def _has_channels_second(layer: nn.Module, features: Tensor) -> bool:
    """Tell whether `(B, D, …)` is likelier than `(B, …, D)`, by the layers within that know `D`."""
    second, last = features.shape[1], features.shape[-1]
    modules = list(layer.modules())
    if isinstance(layer, _CHANNEL_NORMS):
        return True
    if any(isinstance(m, _CONVOLUTIONS) and m.out_channels == second for m in modules):
        return not any(isinstance(m, nn.Linear) and m.out_features == last for m in modules)
    # Pooling and the like: images are (B, D, H, W) unless something in the layer says otherwise.
    makes_features = any(isinstance(m, nn.Linear | nn.LayerNorm) for m in modules)
    return features.dim() >= 4 and not makes_features
