"""Nested state survives the way to a file and back exactly, or is refused with its place."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import math
import random
import struct
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kasmina_factory import packed
from torch import nn

from esper.contracts import ArtifactIntegrityError, HostError
from esper.kasmina.statetree import MAX_DEPTH, decode, encode, unpack

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]


def exactly(value: Any) -> Any:
    """Turn state into something that is equal only for the same types and bits."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return ("tensor", str(value.dtype), tuple(value.shape), bytes(data.numpy()))
    if isinstance(value, np.ndarray | np.generic):
        return (type(value), value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, dict):
        return (type(value), [(exactly(key), exactly(part)) for key, part in value.items()])
    if isinstance(value, list | tuple):
        return (type(value), [exactly(part) for part in value])
    if isinstance(value, float):
        return ("float", struct.pack(">d", value))
    return (type(value), value)


def tensors() -> st.SearchStrategy[torch.Tensor]:
    """Tensors of every type, of any bits, zero to three dimensions, in any order of memory."""

    def make(args: tuple[torch.dtype, list[int], int, bool]) -> torch.Tensor:
        dtype, shape, seed, flipped = args
        count = math.prod(shape) * dtype.itemsize
        data = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed))
        if dtype is torch.bool:
            data = data % 2
        value = data.to(torch.uint8).view(dtype).reshape(shape)
        return value.permute(list(reversed(range(value.dim())))) if flipped else value

    shapes = st.lists(st.integers(0, 3), max_size=3)
    parts = st.tuples(st.sampled_from(DTYPES), shapes, st.integers(0, 1 << 30), st.booleans())
    return parts.map(make)


def arrays() -> st.SearchStrategy[Any]:
    dtypes = st.sampled_from(["<f8", "<f4", "<i8", "|u1", "|b1", "<c16", "<M8[ns]", ">i4"])
    shapes = st.sampled_from([(), (0,), (2,), (2, 3)])
    made = st.tuples(dtypes, shapes).map(lambda pair: np.arange(6)[: math.prod(pair[1])].astype(
        "i8").astype(pair[0]).reshape(pair[1]))  # fmt: skip
    return made | dtypes.map(lambda dtype: np.ones(1, "i8").astype(dtype)[0])


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 200), 1 << 200)
    | st.floats()
    | st.text()
    | st.binary()
    | tensors()
    | arrays()
)
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3).map(OrderedDict)
        | st.dictionaries(st.integers(), st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=12,
)


@given(STATES)
def test_any_state_comes_back_as_it_was(state: Any) -> None:
    assert exactly(unpack(*packed(state))) == exactly(state)


@given(STATES)
def test_equal_states_give_equal_bytes(state: Any) -> None:
    once = packed(state)
    assert packed(state) == once
    assert packed(unpack(*once)) == once


def test_every_float_keeps_its_bits() -> None:
    special = [math.inf, -math.inf, -0.0, 5e-324, struct.unpack(">d", b"\xff\xf8" + b"\1" * 6)[0]]
    assert exactly(unpack(*packed(special))) == exactly(special)


def test_an_integer_of_ten_thousand_digits_comes_back() -> None:
    assert unpack(*packed(-(7**12_000))) == -(7**12_000)


def test_the_state_of_the_random_streams_comes_back() -> None:
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    assert exactly(unpack(*packed(state))) == exactly(state)


def test_the_order_of_memory_survives() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = unpack(*packed(image))
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back, image)


def test_tensors_that_share_memory_come_back_equal() -> None:
    whole = torch.arange(6.0)
    back = unpack(*packed([whole, whole, whole[2:], whole.expand(2, 6), torch.zeros(())]))
    assert [part.tolist() for part in back[:3]] == [whole.tolist()] * 2 + [[2.0, 3.0, 4.0, 5.0]]
    assert torch.equal(back[3], whole.expand(2, 6))


def test_tensors_come_back_without_their_history() -> None:
    weight = torch.ones(2, requires_grad=True)
    back = unpack(*packed([weight * 2]))[0]
    assert not back.requires_grad
    assert back.tolist() == [2.0, 2.0]


def test_a_conjugated_view_comes_back_with_its_values() -> None:
    value = torch.tensor([1 + 2j]).conj()
    assert unpack(*packed(value)).tolist() == [1 - 2j]


class Odd:
    """Something that has no encoding."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"groups": [{"fn": len}]}, r"state\['groups'\]\[0\]\['fn'\] is a builtins\."),
        ((1, Odd()), r"state\[1\] is a .*Odd, which cannot be written"),
        ({"a": {1, 2}}, r"state\['a'\] is a builtins\.set"),
        (defaultdict(int), r"state is a collections\.defaultdict"),
        ({(1, 2): 3}, r"state has the key \(1, 2\) of type tuple"),
        ({True: 3}, r"state has the key True of type bool"),
        (np.array([Odd()]), r"state is a numpy\.ndarray of object"),
        (np.array(["a"]), r"state is a numpy\.ndarray of <U1"),
        ([nn.Parameter(torch.ones(1))], r"state\[0\] is a torch\..*Parameter"),
        ([torch.ones(2, 2).to_sparse()], r"state\[0\] is a torch\.sparse_coo tensor"),
        ([torch.ones(2, device="meta")], r"state\[0\] is a .* on meta; only strided"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(HostError, match=message):
        encode(value)


def test_state_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(HostError, match=f"more than {MAX_DEPTH} deep; does it contain itself"):
        encode(loop)


@pytest.mark.parametrize(
    "document",
    [
        {"lambda": "x"},
        {},
        {"int": "x"},
        {"float": "00"},
        {"bytes": "?"},
        {"tuple": 5},
        {"pairs": [[1]]},
        {"scalar": {"dtype": "<f8", "hex": "00"}},
        {"tensor": {"name": "t9", "dtype": "float32", "shape": [1], "device": "cpu"}},
        {"tensor": {"name": "t0", "dtype": "float64", "shape": [2], "device": "cpu"}},
        {"tensor": {"name": "t0", "dtype": "float32", "shape": [3], "device": "cpu"}},
        {"tensor": {"name": "t0", "dtype": "nn", "shape": [2], "device": "cpu"}},
        {"tensor": {"name": "t0", "dtype": "float32", "shape": [2], "device": "cpu", "order": [1]}},
        {"array": {"name": "t0", "dtype": "O", "shape": [1]}},
    ],
)
def test_a_document_that_encode_did_not_make_is_damaged(document: Any) -> None:
    with pytest.raises(ArtifactIntegrityError, match="the state is damaged"):
        decode(document, {"t0": torch.zeros(2)})


def test_bytes_that_pack_did_not_make_are_damaged() -> None:
    text, data = packed({"a": torch.ones(2)})
    deep = b"[" * 100_000
    for document, named in [(text[:-1], data), (text, data[:-1]), (deep, data), (b"\xff", data)]:
        with pytest.raises(ArtifactIntegrityError, match="the state is damaged"):
            unpack(document, named)


def test_the_document_is_plain_json() -> None:
    text, _ = packed({"lr": 0.1, "betas": (0.9, math.inf), "step": torch.tensor(3.0)})
    assert json.loads(text) == {
        "map": {
            "lr": 0.1,
            "betas": {"tuple": [0.9, {"float": "7ff0000000000000"}]},
            "step": {"tensor": {"name": "t0", "dtype": "float32", "shape": [], "device": "cpu"}},
        }
    }
