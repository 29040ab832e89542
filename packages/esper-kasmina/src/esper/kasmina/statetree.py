"""Turns nested Python state into one JSON document plus named tensors, and back, exactly.

`checkpoint` writes what this makes of an optimizer, a scheduler, random streams and seeds. Nothing is
ever pickled or unpickled: what has no encoding here is refused with its place in the state.

Numbers, strings, None and lists stand for themselves; everything else is an object with one key, its
kind: `{"tuple": […]}`, `{"map": {…}}`, `{"tensor": {"name": "t0", …}}`.
"""

import base64
import binascii
import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from esper.contracts import ArtifactIntegrityError, HostError
from esper.kasmina.files import Apart

type Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

MAX_DEPTH = 100
"""Deeper state is taken for a cycle; real optimizers and schedulers stay below ten."""

EXACT_INT = 1 << 53
"""Larger integers are written as hexadecimal text: other readers of JSON hold numbers as floats, and
Python refuses decimal text beyond 4,300 digits."""

NATIVE_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
"""What every safetensors that this package allows can hold; other types are stored as their bytes."""

NUMPY_KINDS = "biufcmM"
"""Booleans, integers, floats, complex numbers and times: what is nothing but its bytes."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Nested state as a JSON document and the tensors that it names."""

    document: Json
    tensors: dict[str, Tensor]


def encode(value: object, *, name: str = "state") -> Encoded:
    """Encode nested state: equal state gives equal results.

    Takes dicts with keys of str or int (also `Counter` and `OrderedDict`), lists, tuples, None, bool,
    int, float, str, bytes, strided tensors of any type, numpy arrays and scalars. Tensors come back
    without gradient history; two references to one object come back as two equal objects.

    Raises:
        HostError: for anything else, naming its place below `name` and its type.

    """
    encoder = _Encoder()
    return Encoded(document=encoder.encode(value, name, 0), tensors=encoder.tensors)


def decode(document: Json, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state that `encode` was given.

    Raises:
        ArtifactIntegrityError: if the document was not made by `encode`, or a tensor is missing.

    """
    try:
        return _decode(document, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError, struct.error) as error:
        raise ArtifactIntegrityError(f"the state is damaged: {error!r}") from error


def pack(value: object, *, name: str = "state") -> tuple[bytes, dict[str, Tensor]]:
    """Return `encode(value)` as the bytes of a JSON file, and the tensors of a safetensors file.

    The tensors may be those of `value`: write them before anything changes.

    Raises:
        HostError: as `encode`.

    """
    encoded = encode(value, name=name)
    text = json.dumps(encoded.document, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii"), encoded.tensors


def unpack(document: bytes, tensors: bytes) -> Any:
    """Return the state that `pack` was given, from the bytes of the two files.

    Raises:
        ArtifactIntegrityError: if they were not made by `pack`.

    """
    try:
        parsed = cast("Json", json.loads(document))
        named = safetensors.torch.load(tensors)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ArtifactIntegrityError(f"the state is damaged: {error}") from error
    return decode(parsed, named)


@dataclass
class _Encoder:
    """Walks the state in order and collects its tensors."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    _apart: Apart = field(default_factory=Apart)

    def encode(self, value: object, path: str, depth: int) -> Json:
        if depth > MAX_DEPTH:
            raise HostError(
                f"{path} is nested more than {MAX_DEPTH} deep; does it contain itself? Only plain "
                "trees of state can be written"
            )
        kind = type(value)
        if value is None or kind in (bool, str):
            return cast("Json", value)
        if kind in _SIMPLE:
            return _SIMPLE[kind](value)
        if kind in (list, tuple):
            items = cast("list[object]", value)
            parts = [self.encode(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(items)]
            return parts if kind is list else {"tuple": parts}
        if kind in (dict, Counter, OrderedDict):
            return self._mapping(cast("dict[object, object]", value), path, depth)
        if kind is Tensor:
            return {"tensor": self._tensor(cast("Tensor", value), path)}
        if isinstance(value, np.ndarray | np.generic):
            return self._numpy(cast("np.ndarray[Any, Any]", value), path)
        raise _unsupported(path, value)

    def _mapping(self, value: dict[object, object], path: str, depth: int) -> Json:
        for key in value:
            if type(key) not in (str, int):
                raise HostError(
                    f"{path} has the key {key!r} of type {type(key).__name__}; only keys of type "
                    "str or int can be written"
                )
        parts = {key: self.encode(v, f"{path}[{key!r}]", depth + 1) for key, v in value.items()}
        if type(value) is dict and all(type(key) is str for key in parts):
            return {"map": cast("dict[str, Json]", parts)}
        pairs: list[Json] = [[self.encode(key, path, depth), part] for key, part in parts.items()]
        return {_MAPPINGS[type(value)]: pairs}

    def _tensor(self, value: Tensor, path: str) -> dict[str, Json]:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise HostError(
                f"{path} is a {value.layout} tensor of {value.dtype} on {value.device}; only strided "
                "tensors with values can be written"
            )
        dense = value.detach()
        # A channels-last tensor comes back channels-last: fused optimizers insist on equal strides.
        order = _memory_order(dense)
        dense = dense.resolve_conj().resolve_neg().permute(order).cpu().contiguous()
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in NATIVE_DTYPES:
            dense = dense.reshape(-1).view(torch.uint8)
        record: dict[str, Json] = {
            "name": self._add(dense),
            "dtype": dtype,
            "shape": list(value.shape),
            "device": str(value.device),
        }
        if order != sorted(order):
            record["order"] = list(order)
        return record

    def _numpy(self, value: "np.ndarray[Any, Any] | np.generic[Any]", path: str) -> Json:
        dtype = value.dtype
        if dtype.kind not in NUMPY_KINDS or not isinstance(dtype.str, str) or dtype.itemsize > 16:
            raise _unsupported(path, value, f" of {dtype}")
        data = np.frombuffer(value.tobytes(), np.uint8).copy()
        if isinstance(value, np.ndarray):
            name = self._add(torch.from_numpy(data))  # pyright: ignore[reportUnknownMemberType]
            return {"array": {"name": name, "dtype": dtype.str, "shape": list(value.shape)}}
        return {"scalar": {"dtype": dtype.str, "hex": data.tobytes().hex()}}

    def _add(self, tensor: Tensor) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = self._apart.take(tensor)
        return name


def _unsupported(path: str, value: object, detail: str = "") -> HostError:
    kind = type(value)
    return HostError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}{detail}, which cannot be written; expected "
        "dict, list, tuple, None, bool, int, float, str, bytes, a tensor or a numpy array: keep it "
        "out of state_dict()"
    )


def _encode_int(value: Any) -> Json:
    return value if -EXACT_INT < value < EXACT_INT else {"int": hex(value)}


def _encode_float(value: Any) -> Json:
    # JSON has no infinities, and one NaN is not like another: their bits are written.
    return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}


def _encode_bytes(value: Any) -> Json:
    return {"bytes": base64.b64encode(value).decode("ascii")}


_SIMPLE: Mapping[type, Callable[[Any], Json]] = {
    int: _encode_int,
    float: _encode_float,
    bytes: _encode_bytes,
}

_MAPPINGS: Mapping[type, str] = {dict: "pairs", Counter: "counter", OrderedDict: "ordered"}


def _memory_order(value: Tensor) -> list[int]:
    """Return the dimensions from the slowest to the fastest in memory, if that is all there is."""
    natural = list(range(value.dim()))
    if value.is_contiguous():
        return natural
    order = sorted(natural, key=lambda d: (-value.stride(d), -value.shape[d]))
    return order if value.permute(order).is_contiguous() else natural


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list):
        return [_decode(part, tensors) for part in cast("list[Json]", node)]
    ((kind, content),) = cast("dict[str, Any]", node).items()
    match kind:
        case "map":
            return {key: _decode(part, tensors) for key, part in content.items()}
        case "tuple":
            return tuple(_decode(part, tensors) for part in content)
        case "pairs" | "counter" | "ordered":
            pairs = [(_decode(key, tensors), _decode(part, tensors)) for key, part in content]
            return {"pairs": dict, "counter": _counter, "ordered": OrderedDict}[kind](pairs)
        case "tensor":
            return _decode_tensor(content, tensors)
        case "array":
            stored = cast("np.ndarray[Any, Any]", tensors[content["name"]].numpy())  # pyright: ignore[reportUnknownMemberType]
            return _decode_array(content["dtype"], content["shape"], stored.tobytes())
        case "scalar":
            return _decode_array(content["dtype"], [], bytes.fromhex(content["hex"]))[()]
        case "int":
            return int(content, 16)
        case "float":
            return struct.unpack(">d", bytes.fromhex(content))[0]
        case "bytes":
            return _decode_bytes(content)
        case _:
            raise ValueError(f"there is no kind {kind!r}")


def _counter(pairs: list[tuple[Any, int]]) -> "Counter[Any]":
    return Counter(dict(pairs))


def _decode_array(dtype: str, shape: list[int], data: bytes) -> "np.ndarray[Any, Any]":
    kind = np.dtype(dtype)
    # Bytes read as objects would be taken for addresses.
    if kind.kind not in NUMPY_KINDS or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array {shape} of {dtype}")
    return np.ndarray(shape, kind, data).copy()


def _decode_bytes(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ValueError(f"bytes that are not base64: {error}") from error


def _decode_tensor(record: dict[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor on the device that it was on, or on the CPU where that is missing."""
    stored, shape = tensors[record["name"]], list(record["shape"])
    order = list(record.get("order", range(len(shape))))
    dtype = NATIVE_DTYPES.get(record["dtype"]) or getattr(torch, record["dtype"])
    if not isinstance(dtype, torch.dtype) or sorted(order) != list(range(len(shape))):
        raise ValueError(f"a tensor of type {record['dtype']} in the order {order}")
    if dtype not in NATIVE_DTYPES.values():
        stored = stored.view(dtype)
    elif stored.dtype is not dtype:
        raise ValueError(f"{record['name']} holds {stored.dtype}, not {dtype}")
    dense = stored.reshape([shape[d] for d in order])
    value = dense.permute(sorted(range(len(order)), key=lambda d: order[d]))
    device = torch.device(record["device"])
    has_device = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    return value.to(device) if has_device else value
