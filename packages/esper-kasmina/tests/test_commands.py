"""Any sequence of commands, legal or not, keeps the invariants of the bed."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    admit,
    grow,
    mlp,
    order,
    state_bits,
    train,
)

from esper.contracts import (
    HOST_VISIBLE,
    LIFECYCLE,
    EsperError,
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


class AnyCommands(RuleBasedStateMachine):
    """Random commands to two seeds, with training in between."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()
        self.host = [name for name, _ in self.model.named_parameters()]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.bed = wrap(self.model, stages=QUICK, sample_every_steps=2)
        self.bed.attach(self.optimizer)
        self.kernels = [admit(self.bed, site=site) for site in (0, 1)]
        self.steps = 0

    @rule(site=st.integers(0, 1), goal=st.sampled_from(list(SeedState)))
    def command(self, site: int, goal: SeedState) -> None:
        status = self.bed.seeds()[site]
        before = self.bed.weights_sha256(), self.bed.seeds(), str(self.optimizer.state_dict())
        try:
            event = order(self.bed, goal, self.kernels[site], (site, 0))
        except EsperError:
            after = self.bed.weights_sha256(), self.bed.seeds(), str(self.optimizer.state_dict())
            assert after == before
            return
        assert event is not None
        assert goal in LIFECYCLE[status.state].next
        assert self.bed.seeds()[site].state is goal

    @rule(site=st.integers(0, 1))
    def advance(self, site: int) -> None:
        """Take the table's usual way on, so that late states are reached often."""
        status = self.bed.seeds()[site]
        path = (*TO_FOSSILIZED, SeedState.DORMANT)
        if status.state is SeedState.DORMANT:
            self.command(site, SeedState.GERMINATED)
        elif status.state in path[:-2]:
            self.command(site, path[path.index(status.state) + 1])

    @rule(steps=st.integers(1, 3))
    def train(self, steps: int) -> None:
        train(self.model, self.optimizer, steps, first=self.steps)
        self.steps += steps

    @rule()
    def end_epoch(self) -> None:
        assert [signal.layer_id for signal in self.bed.end_epoch(0)] == [0, 1]

    @invariant()
    def every_parameter_has_one_owner(self) -> None:
        owned = [id(p) for group in self.optimizer.param_groups for p in group["params"]]
        assert sorted(owned) == sorted(id(p) for p in self.model.parameters())
        tracked = {id(p) for p in self.optimizer.state}
        assert tracked <= set(owned)

    @invariant()
    def the_host_sees_what_the_table_says(self) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        assert [name for name in names if "esper_seed" not in name] == self.host
        for status in self.bed.seeds():
            grafted = any(name.startswith(f"{status.site}.esper_seed") for name in names)
            assert grafted == (status.state in HOST_VISIBLE)
            full = LIFECYCLE[status.state].host_sees == "all"
            assert status.alpha == 1.0 if full else status.alpha <= (1.0 if grafted else 0.0)
        assert self.bed.num_parameters() == sum(p.numel() for p in self.model.parameters())

    @invariant()
    def at_most_one_seed_awaits_its_verdict(self) -> None:
        waiting = [s for s in self.bed.seeds() if s.state in HOST_VISIBLE]
        assert sum(s.state is not SeedState.FOSSILIZED for s in waiting) <= 1

    @invariant()
    def weights_stay_finite(self) -> None:
        assert all(bool(p.isfinite().all()) for p in self.model.parameters())
        assert len(state_bits(self.model)) >= len(self.host)


AnyCommands.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestAnyCommands = AnyCommands.TestCase
