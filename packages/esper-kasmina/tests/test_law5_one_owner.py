"""Law 5: every trainable parameter is in exactly one optimizer group, and nobody else's state changes."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kasmina_beds import ALL_HOSTS
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    TO_GRAFTING,
    TO_TRAINING,
    admit,
    cnn,
    grow,
    mlp,
    order,
    train,
    wake,
)
from kasmina_worlds import OPTIMIZERS, SCHEDULERS, Life, begin, bits, come_back
from torch import nn, optim
from torch.optim import lr_scheduler as schedules

from esper.contracts import HostError, SeedState
from esper.kasmina import load, wrap

pytestmark = pytest.mark.long

S = SeedState


def owned(optimizer: Any) -> Counter[int]:
    return Counter(id(p) for group in optimizer.param_groups for p in group["params"])


def check_owners(model: nn.Module, optimizer: Any) -> None:
    """Check that the optimizer has the model's parameters, each once, and nothing else."""
    assert owned(optimizer) == Counter(id(p) for p in model.parameters())
    assert {id(p) for p in optimizer.state} <= {id(p) for p in model.parameters()}


def foreign_state(life: Life) -> Any:
    """Return state and settings of everything that belongs to no block."""
    optimizer: Any = life.world.optimizer
    names = {id(p): n for n, p in life.world.model.named_parameters() if "esper_seed" not in n}
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
        if any(id(p) in names for p in group["params"])
    ]
    state = {names[id(p)]: s for p, s in optimizer.state.items() if id(p) in names}
    return bits([state, groups])


def check_transitions(life: Life) -> None:
    """Lead two seeds along every transition and check the law after each."""
    bed, model, optimizer = life.bed, life.world.model, life.world.optimizer
    places = [(life.site, 0), (0, bed.sites[0].num_seeds - 1)]
    life.live(2)
    check_owners(model, optimizer)
    for place, path in zip(places, (TO_FOSSILIZED, TO_GRAFTING), strict=True):
        if bed.seed(place).state is not S.DORMANT:
            continue
        kernel_id = admit(bed, site=place[0], change=wake)
        for state in path:
            before = foreign_state(life)
            order(bed, state, kernel_id, place)
            assert foreign_state(life) == before
            check_owners(model, optimizer)
            life.live(1)
    if bed.seed(places[1]).state is S.GRAFTING:
        order(bed, S.CULLED, seed_id=places[1])
        check_owners(model, optimizer)
        life.live(1)


@pytest.mark.parametrize("name", ALL_HOSTS)
def test_every_parameter_has_one_owner_after_every_transition(name: str) -> None:
    check_transitions(begin(name))


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_takes_blocks_and_gives_them_back(optimizer: str) -> None:
    life = begin("mlp", optimizer, "sequential", scaled="fused" not in optimizer)
    check_transitions(life)
    made: Any = life.world.optimizer
    grafted = [p for n, p in life.world.model.named_parameters() if "esper_seed" in n]
    assert grafted
    # They learn as the others do: with state of their own.
    assert all(made.state[p].keys() & made.state[next(iter(made.state))].keys() for p in grafted)


def test_owners_are_right_after_a_rollback_of_the_whole_run() -> None:
    life = begin("conv2d")
    bare = life.bed.mark()
    life.grow(TO_FOSSILIZED)
    fossil = life.bed.mark()
    life.bed.roll_back(bare)
    check_owners(life.world.model, life.world.optimizer)
    life.bed.roll_back(fossil)
    check_owners(life.world.model, life.world.optimizer)


@pytest.mark.parametrize("state", [S.GRAFTING, S.EVALUATING, S.FOSSILIZED])
def test_owners_are_right_after_coming_back(state: SeedState, tmp_path: Path) -> None:
    life = begin("conv2d")
    life.grow(PATHS.get(state, TO_FOSSILIZED))
    life.bed.checkpoint(tmp_path / "run")
    life.bed.save(tmp_path / "model")
    again = come_back(life, tmp_path / "run")
    check_owners(again.world.model, again.world.optimizer)
    # An optimizer that was made before the blocks were there gets them when it is attached.
    model = life.host.make(3)
    optimizer = optim.AdamW(model.parameters())
    load(model, tmp_path / "model").attach(optimizer)
    check_owners(model, optimizer)


def test_a_block_joins_with_the_settings_of_its_layer() -> None:
    model = mlp()
    optimizer = optim.AdamW(
        [
            {"params": [*model[0].parameters(), *model[4].parameters()], "lr": 1e-3},
            {"params": model[2].parameters(), "lr": 5e-3, "weight_decay": 0.25},
        ]
    )
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, PATHS[S.GRAFTING], site=1)
    added = optimizer.param_groups[2]
    assert (added["lr"], added["weight_decay"]) == (5e-3, 0.25)
    assert {id(p) for p in added["params"]} == {
        id(p) for n, p in model.named_parameters() if "esper_seed" in n
    }


def test_chunks_of_a_frozen_layer_join_like_the_first_group() -> None:
    life = begin("chunks", averaged=False)
    optimizer: Any = life.world.optimizer
    for chunk in range(3):
        grow(life.bed, TO_FOSSILIZED, chunk=chunk)
        check_owners(life.world.model, optimizer)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert len(optimizer.param_groups) == 4
    assert len(rates) == 1


def test_an_optimizer_of_named_parameters_gets_named_ones() -> None:
    model = mlp()
    optimizer = optim.AdamW(model.named_parameters(), lr=1e-2)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, PATHS[S.GRAFTING])
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    order(bed, S.CULLED)
    assert optimizer.param_groups[0]["param_names"] == [
        name for name, _ in model.named_parameters()
    ]


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_the_scheduler_treats_grafted_parameters_like_their_layer(scheduler: str) -> None:
    model = mlp()
    optimizer = optim.AdamW(
        [{"params": model[:2].parameters()}, {"params": model[2:].parameters()}]
    )
    optimizer.param_groups[1]["lr"] = 0.003
    made = SCHEDULERS[scheduler](optimizer)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer, made)
    grow(bed, PATHS[S.GRAFTING], site=1)
    for step in range(8):
        train(model, optimizer, 1, first=step)
        made.step(1.0) if scheduler == "plateau" else made.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        assert len(rates) == 3
        # A function that counts its calls is asked once more for the group that shares it.
        if scheduler not in ("lambda_object", "chained"):
            assert rates[2] == pytest.approx(rates[1])


def test_a_plateau_scheduler_goes_on_after_a_graft() -> None:
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scheduler = schedules.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer, scheduler)
    grow(bed, PATHS[S.GRAFTING])
    for _ in range(4):
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0125, 0.0125]
    order(bed, S.CULLED)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]


class Timm:
    """A scheduler that keeps its values as those of timm do: by position of the group."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.base_values = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        for group, value in zip(self.optimizer.param_groups, self.base_values, strict=False):
            group["lr"] = value / (1 + epoch)

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def test_a_scheduler_that_pairs_by_position_reaches_grafted_parameters() -> None:
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scheduler = Timm(optimizer)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer, scheduler)
    grow(bed, PATHS[S.GRAFTING])
    scheduler.step(1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]
    order(bed, S.CULLED)
    assert scheduler.base_values == [0.1]


def test_a_parameter_in_two_groups_is_refused() -> None:
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups.append(dict(optimizer.param_groups[0], params=[model[2].weight]))
    with pytest.raises(
        HostError, match=r"holds 2\.weight more than once .* keep each parameter in"
    ):
        wrap(model).attach(optimizer)


@pytest.mark.parametrize(
    ("make", "of_host", "message"),
    [
        (list, True, r"list is not a torch\.optim\.Optimizer"),
        (optim.LBFGS, True, "LBFGS has one fixed list"),
        (optim.SparseAdam, True, "SparseAdam takes sparse gradients only"),
        (optim.SGD, False, "the SGD holds none of the host's parameters"),
    ],
)
def test_an_optimizer_that_cannot_follow_is_refused(
    make: Callable[[Any], Any], of_host: bool, message: str
) -> None:
    model = mlp()
    with pytest.raises(HostError, match=message):
        wrap(model).attach(make(list((model if of_host else mlp()).parameters())))


def test_an_optimizer_with_the_state_in_another_inside_it_is_refused_for_that_one() -> None:
    """As Lookahead of timm is made: an undo that restored the outer one's state would restore nothing."""

    class Lookahead(optim.Optimizer):
        def __init__(self, base: optim.Optimizer) -> None:
            super().__init__(base.param_groups, base.defaults)
            self.base = base

        def step(self, closure: Any = None) -> Any:
            return self.base.step(closure)

    class Prepared(Lookahead):
        """As those are that hand on to the optimizer inside them."""

        def __init__(self, base: optim.Optimizer) -> None:
            super().__init__(base)
            self.state = base.state

    model = mlp()
    base = optim.Adam(model.parameters())
    with pytest.raises(HostError, match="Lookahead keeps its state in the Adam inside it"):
        wrap(model).attach(Lookahead(base))
    model = mlp()
    base = optim.Adam(model.parameters())
    wrap(model).attach(Prepared(base))


def test_a_scheduler_that_cannot_be_restored_is_refused() -> None:
    model = mlp()
    with pytest.raises(HostError, match="object has no state_dict"):
        wrap(model).attach(optim.SGD(model.parameters(), lr=0.1), object())


def test_a_second_optimizer_of_the_user_is_left_alone() -> None:
    model = cnn()
    first = optim.SGD(model[:6].parameters(), lr=0.1, momentum=0.9)
    second = optim.Adam(model[6:].parameters())
    bed = wrap(model, stages=QUICK)
    bed.attach(first)
    train(model, first, 2)
    second.step()
    before = bits(second.state_dict())
    grow(bed, TO_TRAINING)
    order(bed, S.GRAFTING)
    train(model, first, 2)
    order(bed, S.CULLED)
    assert bits(second.state_dict()) == before
    assert owned(second) == Counter(id(p) for p in model[6:].parameters())
    assert torch.equal(torch.tensor(first.param_groups[0]["lr"]), torch.tensor(0.1))
