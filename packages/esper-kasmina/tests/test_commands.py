"""Any sequence of commands, legal or not, keeps the invariants of the bed."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
import torch
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    admit,
    grow,
    mlp,
    order,
    train,
)

from esper.contracts import (
    IllegalTransitionError,
    KasminaCommand,
    SeedState,
)
from esper.kasmina import wrap


def test_a_command_is_carried_out_once() -> None:
    bed = wrap(mlp(), stages=QUICK)
    command = KasminaCommand(
        seed_id=(0, 0), target=SeedState.GERMINATED, kernel_id=admit(bed), epoch=3, reason="try"
    )
    event = bed.execute(command)
    assert event is not None
    assert (event.from_state, event.to_state) == (SeedState.DORMANT, SeedState.GERMINATED)
    assert (event.epoch, event.step, event.reason) == (3, 0, "try")
    assert event.kernel_id == command.kernel_id
    assert event.command_id == command.command_id
    order(bed, SeedState.CANCELLED)
    order(bed, SeedState.DORMANT)
    assert bed.execute(command) is None
    assert bed.seeds()[0].state is SeedState.DORMANT


def test_a_refused_command_may_be_sent_again_when_it_is_legal() -> None:
    bed = wrap(mlp(), stages=QUICK)
    early = KasminaCommand(seed_id=(0, 0), target=SeedState.LOADING, epoch=0, reason="early")
    with pytest.raises(
        IllegalTransitionError, match=r"seed \(0, 0\) at '0': .* legal from DORMANT"
    ):
        bed.execute(early)
    order(bed, SeedState.GERMINATED, admit(bed))
    assert bed.execute(early) is not None


def test_a_second_graft_waits_for_the_verdict_of_the_first() -> None:
    model = mlp()
    bed = wrap(model, stages=QUICK)
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    grow(bed, PATHS[SeedState.EVALUATING])
    grow(bed, TO_FOSSILIZED[:3], site=1)
    with pytest.raises(
        IllegalTransitionError, match=r"while seed \(0, 0\) at '0' is in EVALUATING"
    ):
        order(bed, SeedState.GRAFTING, seed_id=(1, 0))
    order(bed, SeedState.FOSSILIZED)
    order(bed, SeedState.GRAFTING, seed_id=(1, 0))


@pytest.mark.parametrize("target", [SeedState.TRAINING, SeedState.GRAFTING])
def test_growing_needs_an_optimizer(target: SeedState) -> None:
    bed = wrap(mlp(), stages=QUICK)
    order(bed, SeedState.GERMINATED, admit(bed))
    order(bed, SeedState.LOADING)
    with pytest.raises(IllegalTransitionError, match=f"needs an optimizer for {target}; attach"):
        order(bed, target)
    assert bed.seeds()[0].state is SeedState.LOADING


def test_a_seed_is_ready_when_its_stage_is_complete() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    assert not bed.seeds()[0].is_ready_for_transition
    steps: list[int] = []

    def wait(_: SeedState) -> None:
        count = 0
        while not bed.seeds()[0].is_ready_for_transition:
            train(model, optimizer, 1)
            count += 1
        steps.append(count)

    grow(bed, TO_FOSSILIZED[:-1], between=wait)
    assert steps == [0, 0, 2, 3, 2, 0, 2]
    order(bed, SeedState.FOSSILIZED)
    assert not bed.seeds()[0].is_ready_for_transition


def test_detached_seeds_stop_advancing() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, PATHS[SeedState.GRAFTING])
    bed.detach()
    train(model, optimizer, 3)
    assert bed.seeds()[0].alpha == 0.0
