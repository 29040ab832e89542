"""The cache of ready kernels: budget, order of use, counts; and how admission uses it."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterable

import pytest
import torch
from design_factory import built
from hypothesis import given
from hypothesis import strategies as st
from kasmina_factory import Crucible, blueprint

from esper.contracts import (
    CompiledKernelArtifact,
    KernelRejectedError,
    KernelSignature,
    NotFoundError,
    SiteKind,
    sha256_hex,
)
from esper.kasmina import Block, build_block, pack_kernel
from esper.kasmina.admission import Admission
from esper.kasmina.cache import CacheKey, KernelCache, num_bytes_of

CPU = torch.device("cpu")
ONE = num_bytes_of(built(blueprint("low_rank"), 4))
"""Bytes of the blocks that these tests put in."""


def key(name: str) -> CacheKey:
    return (name, CPU)


def block() -> Block:
    return built(blueprint("low_rank"), 4)


def filled(max_bytes: int, names: Iterable[str]) -> KernelCache:
    cache = KernelCache(max_bytes)
    for name in names:
        cache.put(key(name), block())
    return cache


def test_bytes_are_those_of_parameters_and_buffers() -> None:
    assert ONE == 4 * (4 * 1 + 1 * 4 + 4)
    assert num_bytes_of(built(blueprint("low_rank"), 4, "float16")) == ONE // 2


def test_a_block_is_handed_out_once_and_for_good() -> None:
    cache, kept = KernelCache(), block()
    cache.put(key("a"), kept)
    assert cache.take(key("a")) is kept
    assert cache.take(key("a")) is None
    assert (cache.status.hits, cache.status.misses) == (1, 1)
    assert (cache.status.num_blocks, cache.status.num_bytes) == (0, 0)


def test_devices_have_blocks_of_their_own() -> None:
    cache = filled(3 * ONE, "a")
    assert cache.take(("a", torch.device("meta"))) is None
    assert cache.take(key("a")) is not None


def test_the_least_recently_used_goes_first() -> None:
    cache = filled(3 * ONE, "abc")
    taken = cache.take(key("a"))
    assert taken is not None
    cache.put(key("a"), taken)  # used again: now b is the oldest
    cache.put(key("d"), block())
    assert cache.status.evictions == 1
    assert [name for name in "abcd" if cache.take(key(name)) is not None] == ["a", "c", "d"]


def test_putting_again_replaces_and_counts_once() -> None:
    cache = filled(2 * ONE, "aab")
    assert (cache.status.num_blocks, cache.status.num_bytes) == (2, 2 * ONE)
    assert cache.status.evictions == 0


def test_a_block_larger_than_the_budget_drops_nothing() -> None:
    cache = filled(2 * ONE, "ab")
    cache.put(key("large"), built(blueprint("residual_mlp"), 8))
    assert cache.status.num_blocks == 2
    assert cache.take(key("large")) is None


@pytest.mark.parametrize("max_bytes", [0, ONE - 1])
def test_without_a_budget_nothing_is_kept(max_bytes: int) -> None:
    cache = filled(max_bytes, "ab")
    assert (cache.status.num_blocks, cache.status.num_bytes) == (0, 0)
    with pytest.raises(ValueError, match="max_bytes=-1; expected 0"):
        KernelCache(-1)


def test_what_was_asked_for_is_remembered_until_it_is_put_in_again() -> None:
    cache = filled(9 * ONE, "ab")
    for name in "bab":
        cache.take(key(name))
    assert cache.spent == (key("a"), key("b"))
    cache.put(key("a"), block())
    assert cache.spent == (key("b"),)


@given(
    max_bytes=st.integers(0, 5 * ONE),
    calls=st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefg")), max_size=40),
)
def test_any_sequence_of_calls_keeps_the_budget_and_the_counts(
    max_bytes: int, calls: list[tuple[bool, str]]
) -> None:
    cache, takes = KernelCache(max_bytes), 0
    expected: list[str] = []  # ready, the least recently used first
    for is_put, name in calls:
        if is_put:
            cache.put(key(name), block())
            expected = [*(each for each in expected if each != name), name]
            expected = expected[max(0, len(expected) - max_bytes // ONE) :]
        else:
            takes += 1
            assert (cache.take(key(name)) is not None) == (name in expected)
            expected = [each for each in expected if each != name]
        status = cache.status
        assert status.num_bytes == status.num_blocks * ONE == len(expected) * ONE
        assert status.num_bytes <= status.max_bytes == max_bytes
        assert status.hits + status.misses == takes


SIGNATURE = KernelSignature(kind=SiteKind.FEATURES, features=8)


def admitted(cache_bytes: int = 1 << 20) -> tuple[Admission, CompiledKernelArtifact]:
    admission, crucible = Admission(cache_bytes), Crucible()
    admission.trust(crucible.public_key)
    kernel, blob = crucible.kernel(blueprint("residual_mlp"), SIGNATURE)
    admission.admit(kernel, blob)
    return admission, kernel


def weights(block: Block) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in block.parameters()]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_every_load_gives_fresh_weights_of_its_own(cache_bytes: int) -> None:
    admission, kernel = admitted(cache_bytes)
    first = admission.load(kernel.kernel_id, "cpu")
    fresh = weights(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    second = admission.load(kernel.kernel_id, "cpu")
    admission.refill()
    third = admission.load(kernel.kernel_id, CPU)
    for other in (second, third):
        pairs = zip(weights(other), fresh, strict=True)
        assert all(torch.equal(weight, expected) for weight, expected in pairs)
        assert all(parameter.requires_grad for parameter in other.parameters())
    pointers = [p.data_ptr() for each in (first, second, third) for p in each.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_the_first_load_and_those_after_a_refill_find_a_block_ready() -> None:
    admission, kernel = admitted()
    for _ in range(3):
        admission.load(kernel.kernel_id, "cpu")
        admission.refill()
    assert (admission.cache.hits, admission.cache.misses) == (3, 0)
    assert admission.cache.num_blocks == 1
    for _ in range(2):
        admission.load(kernel.kernel_id, "cpu")
    assert (admission.cache.hits, admission.cache.misses) == (4, 1)


def test_a_kernel_for_an_absent_device_is_admitted_but_not_made_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ir, on_cuda = blueprint("low_rank"), SIGNATURE.model_copy(update={"device": "cuda"})
    blob = pack_kernel(ir, on_cuda, build_block(ir, on_cuda, device="cpu"))
    record = CompiledKernelArtifact(
        kernel_id=sha256_hex(blob),
        blueprint_id=ir.content_hash(),
        blueprint_name=ir.name,
        signature=on_cuda,
        size_bytes=len(blob),
        num_parameters=8 * 2 + 2 * 8 + 8,
    )
    admission, crucible = Admission(), Crucible()
    admission.trust(crucible.public_key)
    admission.admit(crucible.endorse(record), blob)
    assert admission.record(record.kernel_id).signature == on_cuda
    assert admission.cache.num_blocks == 0


def test_a_refill_leaves_out_what_no_longer_verifies_and_loading_says_why() -> None:
    admission, kernel = admitted()
    admission.load(kernel.kernel_id, "cpu")
    vars(admission)["_trusted"].clear()
    admission.refill()
    assert admission.cache.num_blocks == 0
    with pytest.raises(KernelRejectedError, match="which is not trusted here"):
        admission.load(kernel.kernel_id, "cpu")


def test_loading_what_was_not_admitted_is_an_error() -> None:
    admission, _ = admitted()
    with pytest.raises(NotFoundError, match=r"aaaaaaaaaaaa is not admitted here \(1 are\)"):
        admission.load("a" * 64, "cpu")
