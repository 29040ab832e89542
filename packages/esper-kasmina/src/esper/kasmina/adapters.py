"""What is known of a layer by its type: what flows out of it, and how seeds read and replace that.

The plan looks layers up here; the hook of a site uses the adapter on every forward pass. Users add
their own blocks with `register_adapter`.

Shapes: `B` batch, `T` tokens, `D` features or channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from esper.contracts import HostError, SiteKind


def _same(_layer: nn.Module, output: Any) -> Tensor:
    return output


def _replace(_layer: nn.Module, _output: Any, features: Tensor) -> Any:
    return features


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """How seeds see the output of a layer.

    `take(layer, output)` returns the features, `(B, T, D)` for sequences, `(B, D, …)` for channels and
    `(…, D)` otherwise; `put(layer, output, features)` returns the output with these in their place.
    Both must be plain tensor code, since `torch.compile` traces through them.
    """

    kind: SiteKind | None = None
    """What flows; None: to be read off an example's output."""
    width: Callable[[Any], int] | None = None
    """`layer → D`; None: to be read off an example's output."""
    take: Callable[[nn.Module, Any], Tensor] = _same
    put: Callable[[nn.Module, Any, Tensor], Any] = _replace


def _take_first(_layer: nn.Module, output: Any) -> Tensor:
    return output[0]


def _put_first(_layer: nn.Module, output: Any, features: Tensor) -> Any:
    return (features, *output[1:])


FIRST_OF_TUPLE = Adapter(take=_take_first, put=_put_first)
"""For blocks that return a tuple whose first element is their features, as many transformers' do."""


def _tokens_second(layer: nn.Module, features: Tensor) -> Tensor:
    """Swap `(T, B, D)` and `(B, T, D)` where the layer does not put the batch first."""
    swapped = features.dim() == 3 and not cast("bool", layer.batch_first)
    return features.transpose(0, 1) if swapped else features


def _take_recurrent(layer: nn.Module, output: Any) -> Tensor:
    features = output[0]
    if isinstance(features, PackedSequence):
        raise HostError(
            f"{type(layer).__name__} returned a PackedSequence, in which a seed cannot tell the "
            "tokens apart; pad the batch instead, or take the seed out of this layer"
        )
    return _tokens_second(layer, features)


def _put_sequence(layer: nn.Module, output: Any, features: Tensor) -> Any:
    return (_tokens_second(layer, features), *output[1:])


def _take_attention(layer: nn.Module, output: Any) -> Tensor:
    return _tokens_second(layer, output[0])


def _take_encoded(layer: nn.Module, output: Any) -> Tensor:
    return _tokens_second(cast("nn.Module", layer.self_attn), output)


def _put_encoded(layer: nn.Module, _output: Any, features: Tensor) -> Any:
    return _tokens_second(cast("nn.Module", layer.self_attn), features)


def _recurrent_width(layer: nn.RNNBase) -> int:
    return (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)


def _features(width: Callable[[Any], int]) -> Adapter:
    return Adapter(kind=SiteKind.FEATURES, width=width)


def _channels(kind: SiteKind, width: Callable[[Any], int]) -> Adapter:
    return Adapter(kind=kind, width=width)


_RECURRENT = Adapter(
    kind=SiteKind.SEQUENCE, width=_recurrent_width, take=_take_recurrent, put=_put_sequence
)
_ENCODED = Adapter(
    kind=SiteKind.SEQUENCE,
    width=lambda layer: layer.linear2.out_features,
    take=_take_encoded,
    put=_put_encoded,
)

_ADAPTERS: dict[type[nn.Module], Adapter] = {
    nn.Linear: _features(lambda layer: layer.out_features),
    nn.Embedding: _features(lambda layer: layer.embedding_dim),
    nn.LayerNorm: _features(lambda layer: layer.normalized_shape[-1]),
    nn.RMSNorm: _features(lambda layer: layer.normalized_shape[-1]),
    nn.Conv1d: _channels(SiteKind.CHANNELS_1D, lambda layer: layer.out_channels),
    nn.Conv2d: _channels(SiteKind.CHANNELS_2D, lambda layer: layer.out_channels),
    nn.Conv3d: _channels(SiteKind.CHANNELS_3D, lambda layer: layer.out_channels),
    nn.ConvTranspose1d: _channels(SiteKind.CHANNELS_1D, lambda layer: layer.out_channels),
    nn.ConvTranspose2d: _channels(SiteKind.CHANNELS_2D, lambda layer: layer.out_channels),
    nn.ConvTranspose3d: _channels(SiteKind.CHANNELS_3D, lambda layer: layer.out_channels),
    nn.BatchNorm2d: _channels(SiteKind.CHANNELS_2D, lambda layer: layer.num_features),
    nn.BatchNorm3d: _channels(SiteKind.CHANNELS_3D, lambda layer: layer.num_features),
    nn.MultiheadAttention: Adapter(
        kind=SiteKind.SEQUENCE,
        width=lambda layer: layer.embed_dim,
        take=_take_attention,
        put=_put_sequence,
    ),
    nn.LSTM: _RECURRENT,
    nn.GRU: _RECURRENT,
    nn.RNN: _RECURRENT,
    nn.TransformerEncoderLayer: _ENCODED,
    nn.TransformerDecoderLayer: _ENCODED,
}
"""By layer type. Norms such as BatchNorm1d are not here: an example must tell their kind."""

_LINEAR_ELSEWHERE = {"transformers.pytorch_utils.Conv1D": ("nx", "nf")}
"""Other packages' own linear layers by name, since those packages may not be installed, and what they
call their numbers of inputs and outputs. GPT-2 is made of nothing else."""

_UNKNOWN = Adapter()


def register_adapter(layer_type: type[nn.Module], adapter: Adapter) -> None:
    """Tell seeds how to see the output of `layer_type`, for example `FIRST_OF_TUPLE`.

    Raises:
        HostError: if `layer_type` is not a type of module.

    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise HostError(f"{layer_type!r} is not a subclass of torch.nn.Module")
    _ADAPTERS[layer_type] = adapter


def adapter_of(layer_type: type[nn.Module]) -> Adapter:
    """Return the adapter of a layer's type or its nearest base; a plain one if there is none."""
    for base in layer_type.__mro__:
        if (found := _ADAPTERS.get(base)) is not None:
            return found
        if (sizes := _LINEAR_ELSEWHERE.get(_full_name(base))) is not None:
            return _features(attrgetter(sizes[1]))
    return _UNKNOWN


def linear_inputs(layer: nn.Module) -> int | None:
    """Return how many inputs a linear layer has, another package's own kind too; None if it is none."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    found = (_LINEAR_ELSEWHERE.get(_full_name(base)) for base in type(layer).__mro__)
    sizes = next(filter(None, found), None)
    return None if sizes is None else getattr(layer, sizes[0])


def _full_name(layer_type: type) -> str:
    return f"{layer_type.__module__}.{layer_type.__qualname__}"
