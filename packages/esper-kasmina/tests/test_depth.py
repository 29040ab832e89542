"""Several blocks in a row at one site: what grows later comes nearer to the input.

The laws hold for them as for others: `kasmina_hosts` has such a host among those that all laws are
tried on.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch
from kasmina_factory import (
    QUICK,
    TO_FOSSILIZED,
    TO_TRAINING,
    batch_for,
    grow,
    mlp,
    train,
    wake,
)
from torch import Tensor, nn

from esper.contracts import KasminaCommand, KernelRejectedError, NotFoundError, SeedState
from esper.kasmina import Bed, Block, load, wrap

S = SeedState


def bed_of_depth(depth: int, chunks: int = 1) -> tuple[Bed, torch.optim.Optimizer]:
    model = mlp()
    bed = wrap(model, targets=["0"], depth=depth, chunks=chunks, stages=QUICK, sample_every_steps=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bed.attach(optimizer)
    return bed, optimizer


def host_of(bed: Bed) -> nn.Sequential:
    assert isinstance(bed.model, nn.Sequential)
    return bed.model


def scaled(slot: int) -> Callable[[Block], None]:
    """Return a change that makes the blocks of different slots differ."""

    def change(block: Block) -> None:
        wake(block)
        for parameter in block.parameters():
            parameter.mul_(1.0 + slot)

    return change


def by_hand(bed: Bed, x: Tensor, slots: tuple[int, ...]) -> Tensor:
    """Compute the host's answer with the blocks of these slots, in this order."""
    h = host_of(bed)[0](x)
    for slot in slots:
        block = bed.seed((0, slot)).block
        assert block is not None
        h = h + block(h)
    return host_of(bed)[1:](h)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_higher_slots_act_first_whenever_they_were_grown(order: tuple[int, ...]) -> None:
    bed, _ = bed_of_depth(3)
    x, _ = batch_for(bed.model)
    for slot in order:
        grow(bed, TO_FOSSILIZED, chunk=slot, name="residual_mlp", change=scaled(slot))
    actual = bed.model(x)
    with bed.without((0, 0)), bed.without((0, 1)), bed.without((0, 2)):
        expected = by_hand(bed, x, (2, 1, 0))
        other = by_hand(bed, x, (0, 1, 2))
    assert torch.equal(actual, expected)
    assert not torch.allclose(actual, other)


def test_a_seed_in_isolation_sees_what_its_block_would_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bed, optimizer = bed_of_depth(3)
    for slot in (0, 2):
        grow(bed, TO_FOSSILIZED, chunk=slot, name="residual_mlp", change=scaled(slot))
    grow(bed, TO_TRAINING, chunk=1, name="residual_mlp")
    before, learner = bed.seed((0, 2)).block, bed.seed((0, 1)).learner
    assert before is not None
    assert learner is not None
    seen: list[Tensor] = []

    def see(_: object, rows: Tensor, _gradients: Tensor) -> None:
        seen.append(rows)

    monkeypatch.setattr(type(learner), "observe", see)
    h = host_of(bed)[0](batch_for(bed.model)[0]).detach()
    with bed.without((0, 0)), bed.without((0, 2)):
        plain = host_of(bed)[0](batch_for(bed.model)[0])
    expected = (plain + before(plain)).detach()
    train(bed.model, optimizer, 1)
    assert torch.equal(seen[0], expected)
    assert not torch.equal(seen[0], h)


def test_one_seed_of_a_row_looks_for_all() -> None:
    bed, optimizer = bed_of_depth(2, chunks=2)
    train(bed.model, optimizer, 3)
    signals = bed.end_epoch(0)
    assert [(s.seed_id, s.chunk_id, s.num_rows > 0) for s in signals] == [
        (0, 0, True),
        (1, 1, True),
        (2, 0, False),
        (3, 1, False),
    ]


def test_a_saved_row_of_blocks_comes_back(tmp_path: Path) -> None:
    bed, _ = bed_of_depth(3)
    for slot in (1, 0):
        grow(bed, TO_FOSSILIZED, chunk=slot, name="residual_mlp", change=scaled(slot))
    bed.save(tmp_path)
    loaded = load(mlp(seed=5), tmp_path)
    x, _ = batch_for(bed.model)
    assert torch.equal(loaded.model(x), bed.model(x))
    assert [(s.seed_id, s.state) for s in loaded.seeds()] == [
        ((0, 0), S.FOSSILIZED),
        ((0, 1), S.FOSSILIZED),
        ((0, 2), S.DORMANT),
    ]


def test_a_block_can_be_born_as_a_copy_of_its_trained_neighbour() -> None:
    bed, optimizer = bed_of_depth(2)
    grow(bed, TO_FOSSILIZED, chunk=0, name="residual_mlp", change=wake)
    train(bed.model, optimizer, steps=3)
    trained = bed.seed((0, 0))
    assert trained.block is not None
    assert trained.kernel_id is not None
    command(bed, S.GERMINATED, kernel_id=trained.kernel_id)
    command(bed, S.LOADING, copy_of=(0, 0))
    copied = bed.seed((0, 1)).block
    assert copied is not None
    assert copied is not trained.block
    for own, model in zip(copied.parameters(), trained.block.parameters(), strict=True):
        assert torch.equal(own, model)
        assert own.data_ptr() != model.data_ptr()
    x, _ = batch_for(bed.model)
    before = bed.model(x)
    command(bed, S.TRAINING)
    command(bed, S.GRAFTING)
    assert torch.equal(bed.model(x), before)  # at alpha 0


@pytest.mark.parametrize("kept", [None, "gated_mlp"])
def test_a_copy_of_no_block_or_of_another_kernel_is_refused(kept: str | None) -> None:
    bed, _ = bed_of_depth(2)
    if kept is not None:
        grow(bed, TO_FOSSILIZED, chunk=0, name=kept, change=wake)
    grow(bed, (S.GERMINATED,), chunk=1, name="residual_mlp")
    why = "no block" if kept is None else "another kernel"
    with pytest.raises(KernelRejectedError, match=f"seed .0, 1. cannot begin as a copy .* {why}"):
        command(bed, S.LOADING, copy_of=(0, 0))
    assert bed.seed((0, 1)).state is S.GERMINATED
    assert bed.seed((0, 1)).block is None
    with pytest.raises(NotFoundError):
        command(bed, S.LOADING, copy_of=(7, 0))


def test_only_loading_makes_copies() -> None:
    with pytest.raises(ValueError, match="copy_of is given only when target is LOADING"):
        KasminaCommand(seed_id=(0, 1), target=S.TRAINING, copy_of=(0, 0), epoch=0, reason="a test")


def command(
    bed: Bed,
    target: SeedState,
    *,
    kernel_id: str | None = None,
    copy_of: tuple[int, int] | None = None,
) -> None:
    bed.execute(
        KasminaCommand(
            seed_id=(0, 1),
            target=target,
            kernel_id=kernel_id,
            copy_of=copy_of,
            epoch=0,
            reason="a test",
        )
    )
