"""Law 6: cull and rollback put everything back bit for bit, from every state."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kasmina_beds import ALL_HOSTS
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    TO_TRAINING,
    Crucible,
    admit,
    blueprint,
    grow,
    mlp,
    order,
    wake,
)
from kasmina_hosts import HOSTS
from kasmina_worlds import OPTIMIZERS, SCHEDULERS, Life, begin, live, seen
from torch import nn, optim

from esper.contracts import BlueprintIR, HostError, SeedState
from esper.kasmina import wrap
from esper.kasmina.undo import World

pytestmark = pytest.mark.long

S = SeedState


def check_undo(life: Life, state: SeedState, by: SeedState, **options: Any) -> None:
    """Graft, live on, undo, and compare with the moment before and with a life that never grafted."""
    bed, seed_id = life.bed, (life.site, 0)
    life.live(3)
    before: list[Any] = []

    def between(now: SeedState) -> None:
        if now is S.TRAINING:
            before.append(seen(life.world))
        elif now in PATHS:
            life.live(3)

    grow(bed, PATHS[state], site=life.site, change=wake, between=between, **options)
    assert seen(life.world) != before[0]
    order(bed, by, seed_id=seed_id)
    assert seen(life.world) == before[0]
    life.clock = 3
    losses = life.live(4)

    never = again(life)
    never.live(3)
    assert losses == never.live(4)
    assert seen(life.world, objects=False) == seen(never.world, objects=False)


def again(life: Life) -> Life:
    """Begin the same life anew."""
    name = next(name for name, host in HOSTS.items() if host is life.host)
    return begin(name, *life.made_with, scaled=life.world.scaler is not None)


@pytest.mark.parametrize("state", list(PATHS))
@pytest.mark.parametrize("name", ALL_HOSTS)
def test_undo_is_exact_in_every_host_from_every_state(name: str, state: SeedState) -> None:
    check_undo(begin(name), state, S.CULLED)


@pytest.mark.parametrize("state", list(PATHS))
def test_a_rollback_of_one_seed_is_exact_from_every_state(state: SeedState) -> None:
    check_undo(begin("conv2d"), state, S.ROLLED_BACK)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("name", ["mlp", "conv2d"])
def test_undo_is_exact_with_every_optimizer(name: str, optimizer: str) -> None:
    check_undo(begin(name, optimizer, scaled="fused" not in optimizer), S.FINE_TUNING, S.CULLED)


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_undo_is_exact_with_every_scheduler(scheduler: str) -> None:
    check_undo(begin("mlp", "sgd", scheduler), S.FINE_TUNING, S.CULLED)


@pytest.mark.parametrize("name", ["mlp", "conv1d", "conv2d", "conv3d", "encoder"])
def test_undo_is_exact_with_every_blueprint(name: str) -> None:
    bed = begin(name, averaged=False).bed
    fitting = [ir for ir in bed.blueprints if ir.kind in bed.sites[0].signature.kind.takes]
    assert len(fitting) > 1
    for ir in fitting:
        check_undo(begin(name), S.FINE_TUNING, S.CULLED, name=ir.name)


def test_a_diverged_block_leaves_no_trace() -> None:
    life = begin("conv2d", scaled=False)
    life.live(2)
    before = seen(life.world)

    def explode(block: nn.Module) -> None:
        for parameter in block.parameters():
            parameter.fill_(3e38)

    grow(life.bed, (S.GERMINATED, S.LOADING, S.GRAFTING), change=explode)
    life.live(3)
    assert not torch.isfinite(life.world.model.get_parameter("0.weight")).all()
    order(life.bed, S.CULLED)
    assert seen(life.world) == before


def test_undo_right_after_another_seed_was_fossilized_is_exact() -> None:
    life = begin("conv2d")
    life.grow(TO_FOSSILIZED)
    before = seen(life.world)
    life.grow(PATHS[S.FINE_TUNING], site=1)
    order(life.bed, S.CULLED, seed_id=(1, 0))
    assert seen(life.world) == before


def test_a_culled_site_can_grow_again() -> None:
    life = begin("mlp")
    life.grow(PATHS[S.GRAFTING])
    order(life.bed, S.CULLED)
    assert not life.bed.seeds()[0].is_ready_for_transition
    life.bed.end_epoch(0)
    assert life.bed.seeds()[0].is_ready_for_transition
    order(life.bed, S.DORMANT)
    life.grow(TO_FOSSILIZED)
    assert life.bed.seeds()[0].state is S.FOSSILIZED


@pytest.mark.parametrize("path_length", [1, 2, 3])
def test_giving_up_before_the_graft_leaves_no_trace(path_length: int) -> None:
    life = begin("mlp")
    before = seen(life.world)
    grow(life.bed, TO_TRAINING[:path_length])
    order(life.bed, S.CULLED if path_length == 2 else S.CANCELLED)
    assert seen(life.world) == before


COURSE = (*TO_FOSSILIZED, S.GERMINATED, S.LOADING, S.TRAINING, S.GRAFTING, S.CULLED, S.DORMANT)
"""One seed becomes a fossil, then another is culled."""


def follow(life: Life, first: int, visit: Callable[[int], object] | None = None) -> str:
    """Lead two seeds along `COURSE` from its item number `first`; return what became of the host."""
    last = len(life.bed.sites) - 1
    for number, state in list(enumerate(COURSE))[first:]:
        site = 0 if number < len(TO_FOSSILIZED) else last
        kernel_id = admit(life.bed, site=site, change=wake)
        chunk = 0 if site == 0 and number < len(TO_FOSSILIZED) else life.bed.sites[-1].num_seeds - 1
        order(life.bed, state, kernel_id, (site, chunk))
        life.live(2)
        life.bed.end_epoch(number)
        if visit is not None:
            visit(number)
    return str(seen(life.world, objects=False)) + str(life.bed.seeds()) + str(life.bed.step)


@pytest.mark.parametrize("name", ["conv1d", "chunks", "attention", "tied"])
def test_the_whole_run_can_go_back_to_any_moment(name: str) -> None:
    life = begin(name)
    marks = [(0, life.bed.mark(), life.clock, seen(life.world), life.bed.seeds())]

    def visit(number: int) -> None:
        stand = (number + 1, life.bed.mark(), life.clock, seen(life.world), life.bed.seeds())
        marks.append(stand)

    end = follow(life, 0, visit)
    # Backwards, forwards, and twice in a row: any moment from any other.
    for number, mark, clock, then, seeds in [*reversed(marks), *marks[::2], marks[4], marks[4]]:
        life.bed.roll_back(mark)
        life.clock = clock
        assert seen(life.world) == then
        assert life.bed.seeds() == seeds
        if number % 4 == 0:
            assert follow(life, number) == end


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_rollback_behind_a_fossil_is_exact_with_every_optimizer(optimizer: str) -> None:
    life = begin("mlp", optimizer, "sequential", scaled="fused" not in optimizer)
    life.live(2)
    before, mark, clock = seen(life.world), life.bed.mark(), life.clock
    life.grow(TO_FOSSILIZED)
    end = seen(life.world, objects=False)
    life.bed.roll_back(mark)
    assert seen(life.world) == before
    assert [seed.state for seed in life.bed.seeds()] == [S.DORMANT] * 2
    life.clock = clock
    life.grow(TO_FOSSILIZED)
    assert seen(life.world, objects=False) == end


def test_a_block_that_was_culled_since_the_mark_is_back_with_its_undo() -> None:
    life = begin("conv2d")
    life.live(2)
    bare = seen(life.world)
    life.grow(PATHS[S.FINE_TUNING])
    grafted, mark = seen(life.world), life.bed.mark()
    order(life.bed, S.CULLED)
    assert seen(life.world) == bare
    life.bed.roll_back(mark)
    assert seen(life.world) == grafted
    life.live(2)
    order(life.bed, S.CULLED)
    assert seen(life.world) == bare


def test_isolated_learning_goes_back_to_the_mark_too() -> None:
    life = begin("mlp")
    grow(life.bed, TO_TRAINING, change=wake)
    life.live(3)
    mark, clock = life.bed.mark(), life.clock

    def rest() -> dict[str, torch.Tensor]:
        life.clock = clock
        life.live(3)
        order(life.bed, S.GRAFTING)
        state = life.world.model.state_dict()
        return {n: value.clone() for n, value in state.items() if "esper_seed" in n}

    first = rest()
    life.bed.roll_back(mark)
    second = rest()
    assert len(first) > 1
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_health_goes_back_to_the_mark_too() -> None:
    life = begin("mlp", averaged=False)
    life.live(2)
    mark, clock = life.bed.mark(), life.clock
    life.live(4)
    first = life.bed.end_epoch(0)
    life.bed.roll_back(mark)
    life.clock = clock
    life.live(4)
    assert life.bed.end_epoch(0) == first
    assert first[0].num_rows > 0


def test_the_mark_of_another_bed_or_optimizer_is_refused() -> None:
    life = begin("mlp")
    mark = life.bed.mark()
    with pytest.raises(HostError, match="another host or under another optimizer"):
        begin("mlp").bed.roll_back(mark)
    with pytest.raises(HostError, match="the run had 2 seeds, this bed has 1"):
        begin("lstm").bed.roll_back(mark)
    life.bed.detach()
    with pytest.raises(HostError, match=r"attach\(\) the one that was attached then"):
        life.bed.roll_back(mark)
    life.bed.attach(optim.AdamW(life.world.model.parameters()))
    with pytest.raises(HostError, match=r"attach\(\) the one that was attached then"):
        life.bed.roll_back(mark)


def test_a_command_that_was_carried_out_before_a_rollback_is_not_carried_out_again() -> None:
    life = begin("mlp")
    mark = life.bed.mark()
    kernel_id = admit(life.bed)
    event = order(life.bed, S.GERMINATED, kernel_id)
    life.bed.roll_back(mark)
    assert event is not None
    assert life.bed.seeds()[0].state is S.DORMANT


def test_another_optimizer_is_refused_before_the_verdict() -> None:
    model = mlp()
    bed = wrap(model)
    first = optim.AdamW(model.parameters())
    bed.attach(first)
    grow(bed, PATHS[S.GRAFTING])
    with pytest.raises(HostError, match=r"\(0, 0\) is in GRAFTING .* fossilize or cull it first"):
        bed.attach(optim.AdamW(model.parameters()))
    bed.detach()
    bed.detach()
    bed.attach(first)
    order(bed, S.CULLED)
    assert len(first.param_groups) == 1


def test_a_scheduler_of_another_kind_is_refused_before_the_verdict() -> None:
    model = mlp()
    bed = wrap(model)
    optimizer = optim.AdamW(model.parameters())
    bed.attach(optimizer, optim.lr_scheduler.StepLR(optimizer, 3))
    grow(bed, PATHS[S.GRAFTING])
    with pytest.raises(HostError, match="the scheduler is None, the state is that of StepLR"):
        bed.attach(optimizer)
    bed.attach(optimizer, optim.lr_scheduler.StepLR(optimizer, 5))
    order(bed, S.CULLED)


def test_a_new_scheduler_of_the_same_kind_is_put_back_to_where_the_old_one_was() -> None:
    model = mlp()
    bed = wrap(model)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer, optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)))
    mark = bed.mark()
    grow(bed, PATHS[S.GRAFTING])
    new = optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 0.5, lambda _: 0.25])
    bed.attach(optimizer, new)
    optimizer.step()
    new.step()
    order(bed, S.CULLED)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
    optimizer.step()
    new.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05]
    bed.attach(optimizer, optim.lr_scheduler.StepLR(optimizer, 3))
    with pytest.raises(HostError, match="the scheduler is StepLR, the state is that of LambdaLR"):
        bed.roll_back(mark)


def test_muon_refuses_a_block_with_biases_and_nothing_has_changed() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    optimizer = optim.Muon(model.parameters(), lr=0.02)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    world = World(model=model, optimizer=optimizer)
    kernel_id = admit(bed, "residual_mlp")
    for state in TO_TRAINING:
        order(bed, state, kernel_id)
    before = seen(world)
    with pytest.raises(HostError, match=r"Muon trains matrices only .* bias"):
        order(bed, S.GRAFTING)
    assert seen(world) == before
    assert bed.seeds()[0].state is S.TRAINING
    order(bed, S.CULLED)


def test_muon_takes_a_block_of_matrices_and_gives_it_back() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    optimizer = optim.Muon(model.parameters(), lr=0.02)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    world = World(model=model, optimizer=optimizer)
    nodes = [node.model_dump() for node in blueprint("low_rank").nodes]
    nodes[-1]["params"]["bias"] = False
    ir = BlueprintIR.model_validate(blueprint("low_rank").model_dump() | {"nodes": nodes})
    kernel, blob = Crucible().kernel(ir, bed.sites[0].signature, wake)
    bed.trust(Crucible().public_key)
    bed.admit(kernel, blob)
    live(world, 2)
    before = seen(world)
    for state in PATHS[S.FINE_TUNING]:
        order(bed, state, kernel.kernel_id)
        if state in PATHS:
            live(world, 2)
    assert len(optimizer.param_groups) == 2
    order(bed, S.CULLED)
    assert seen(world) == before


class Picky(optim.SGD):
    """Takes no further parameters once it is made."""

    is_made = False

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.is_made = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.is_made:
            raise ValueError("no more, please")
        super().add_param_group(param_group)


def test_an_optimizer_that_refuses_a_block_leaves_everything_unchanged() -> None:
    model = mlp()
    optimizer = Picky(model.parameters())
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    kernel_id = admit(bed)
    for state in TO_TRAINING:
        order(bed, state, kernel_id)
    world = World(model=model, optimizer=optimizer)
    before = seen(world)
    with pytest.raises(ValueError, match="no more, please"):
        order(bed, S.GRAFTING)
    assert seen(world) == before
    order(bed, S.CANCELLED)
