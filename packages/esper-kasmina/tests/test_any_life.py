"""Any sequence of commands, training, saves, marks and failures keeps the laws.

A twin of the host without seeds is trained on the same batches, and stands still while a graft awaits
its verdict. Whenever nothing awaits one, host and twin must be alike in every bit.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import tempfile
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from kasmina_factory import (
    QUICK,
    TO_FOSSILIZED,
    Crucible,
    admit,
    blueprint,
    cnn,
    explode,
    order,
    state_bits,
    train,
    wake,
)
from torch import nn

from esper.contracts import (
    HOST_VISIBLE,
    IN_FLIGHT,
    LIFECYCLE,
    EsperError,
    KernelRejectedError,
    SeedState,
)
from esper.kasmina import Bed, Block, load, wrap
from esper.kasmina.marks import Mark

pytestmark = pytest.mark.long

S = SeedState
SEEDS = tuple((site, place) for site in (0, 1) for place in range(4))
UNDOING = (S.CULLED, S.CANCELLED, S.ROLLED_BACK)
HEALTHY, WOKEN, EXPLODING, NOT_A_NUMBER = range(4)


def not_a_number(block: Block) -> None:
    for parameter in block.parameters():
        parameter.fill_(float("nan"))


CHANGES = {HEALTHY: None, WOKEN: wake, EXPLODING: explode, NOT_A_NUMBER: not_a_number}


def bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [bits(part) for part in value]
    return value


class AnyLife(RuleBasedStateMachine):
    """Two sites with two chunks of two blocks each, and whatever may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module = cnn()
        self.host = [name for name, _ in self.model.named_parameters()]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2, amsgrad=True)
        self.bed = self.wrapped()
        self.steps = 0
        self.marks: list[tuple[Mark, Any, Any]] = []
        self.meet_twin()

    def wrapped(self) -> Bed:
        bed = wrap(self.model, stages=QUICK, chunks=2, depth=2, sample_every_steps=2)
        bed.attach(self.optimizer)
        self.kernels = {
            (site, change): admit(bed, "pointwise_mix", site=site, change=CHANGES[change])
            for site in (0, 1)
            for change in CHANGES
        }
        return bed

    def meet_twin(self) -> None:
        """Make a new twin of the host as it stands."""
        self.bed.detach()
        self.twin, self.twin_optimizer = copy.deepcopy((self.model, self.optimizer))
        self.bed.attach(self.optimizer)

    @property
    def waits(self) -> bool:
        return any(
            s.state in HOST_VISIBLE and s.state is not S.FOSSILIZED for s in self.bed.seeds()
        )

    def everything(self) -> Any:
        seeds = [status.model_dump() for status in self.bed.seeds()]
        return state_bits(self.model), bits(self.optimizer.state_dict()), seeds

    @rule(
        seed_id=st.sampled_from(SEEDS),
        goal=st.sampled_from(list(S)),
        change=st.sampled_from(list(CHANGES)),
    )
    def command(self, seed_id: tuple[int, int], goal: SeedState, change: int) -> None:
        before = self.everything()
        status = next(s for s in self.bed.seeds() if s.seed_id == seed_id)
        try:
            event = order(self.bed, goal, self.kernels[seed_id[0], change], seed_id)
        except EsperError:
            assert self.everything() == before
            return
        hypothesis.event(f"{status.state} to {goal}")
        assert event is not None
        assert goal in LIFECYCLE[status.state].next
        assert self.bed.seed(seed_id).state is goal
        if goal is S.FOSSILIZED:
            self.meet_twin()

    @rule(seed_id=st.sampled_from(SEEDS), change=st.sampled_from(list(CHANGES)))
    def advance(self, seed_id: tuple[int, int], change: int) -> None:
        """Take the usual way on, so that late states are reached often."""
        state = self.bed.seed(seed_id).state
        path = (*TO_FOSSILIZED, S.DORMANT)
        if state is S.DORMANT:
            self.command(seed_id, S.GERMINATED, change)
        elif state in path[:-2]:
            self.command(seed_id, path[path.index(state) + 1], change)
        elif state in (S.CULLED, S.CANCELLED):
            self.command(seed_id, S.DORMANT, change)

    @rule(
        seed_id=st.sampled_from(SEEDS),
        change=st.sampled_from([HEALTHY, WOKEN]),
        goal=st.sampled_from(TO_FOSSILIZED[3:]),
    )
    def lead(self, seed_id: tuple[int, int], change: int, goal: SeedState) -> None:
        """Lead a dormant seed far on its way at once, so that late states are reached often."""
        if self.bed.seed(seed_id).state is S.DORMANT and not self.waits:
            for state in TO_FOSSILIZED[: TO_FOSSILIZED.index(goal) + 1]:
                self.command(seed_id, state, change)
                self.train(1)

    @rule(change=st.sampled_from(list(CHANGES)), goal=st.sampled_from(UNDOING))
    def give_up(self, change: int, goal: SeedState) -> None:
        """Take back the first seed that is on its way."""
        underway = [s.seed_id for s in self.bed.seeds() if s.state in IN_FLIGHT]
        if underway:
            self.command(underway[0], goal, change)

    @rule(steps=st.integers(1, 3))
    def train(self, steps: int) -> None:
        for _ in range(steps):
            if not self.waits:
                torch.manual_seed(self.steps)
                train(self.twin, self.twin_optimizer, 1, first=self.steps)
            torch.manual_seed(self.steps)
            train(self.model, self.optimizer, 1, first=self.steps)
            self.steps += 1

    @rule()
    def end_epoch(self) -> None:
        signals = self.bed.end_epoch(0)
        assert tuple((s.layer_id, s.seed_id) for s in signals) == SEEDS

    @rule(seed_id=st.sampled_from(SEEDS))
    def a_load_fails(self, seed_id: tuple[int, int]) -> None:
        """The crucible's key is revoked between germination and loading."""
        if self.bed.seed(seed_id).state is not S.GERMINATED:
            return
        before = self.everything()
        damaged = pytest.MonkeyPatch()

        def refuse(*_: object) -> None:
            raise KernelRejectedError("its bytes are damaged")

        damaged.setattr("esper.kasmina.admission.Admission.load", refuse)
        with pytest.raises(KernelRejectedError), damaged.context():
            order(self.bed, S.LOADING, None, seed_id)
        damaged.undo()
        assert self.everything() == before

    @rule(position=st.floats(0, 1, exclude_max=True))
    def a_tampered_kernel_is_refused(self, position: float) -> None:
        signature = self.bed.sites[0].signature
        kernel, blob = Crucible().kernel(blueprint("residual_conv"), signature)
        index = int(position * len(blob))
        spoilt = blob[:index] + bytes([blob[index] ^ 1]) + blob[index + 1 :]
        with pytest.raises(KernelRejectedError):
            self.bed.admit(kernel, spoilt)

    @rule()
    def save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.bed.save(folder)
            again = load(cnn(5), folder, stages=QUICK)
        x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
        was_training = self.model.training
        theirs, ours = again.model.eval()(x), self.model.eval()(x)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0, equal_nan=True)
        self.model.train(was_training)
        assert again.weights_sha256() == self.bed.weights_sha256()

    @rule()
    def the_process_is_killed_and_resumes(self) -> None:
        """A new host, optimizer and bed go on from a checkpoint; marks do not survive a process."""
        before = self.everything()
        with tempfile.TemporaryDirectory() as folder:
            self.bed.checkpoint(folder)
            self.bed.detach()
            bed = load(cnn(5), folder, stages=QUICK, sample_every_steps=2)
            optimizer = torch.optim.Adam(bed.model.parameters(), lr=0.5, amsgrad=True)
            bed.trust(Crucible().public_key)
            bed.attach(optimizer)
            bed.resume(folder)
        self.model, self.optimizer, self.bed = bed.model, optimizer, bed
        self.marks.clear()
        assert self.everything() == before

    @rule()
    def mark(self) -> None:
        if len(self.marks) < 3:
            twins = copy.deepcopy((self.twin, self.twin_optimizer))
            self.marks.append((self.bed.mark(), self.everything(), twins))

    @rule(which=st.integers(0, 2))
    def roll_back(self, which: int) -> None:
        if not self.marks:
            return
        hypothesis.event("rolled back to a mark")
        mark, before, twins = self.marks[which % len(self.marks)]
        self.bed.roll_back(mark)
        assert self.everything() == before
        self.twin, self.twin_optimizer = copy.deepcopy(twins)

    @invariant()
    def the_host_is_its_twin_in_every_bit_unless_a_graft_awaits_its_verdict(self) -> None:
        if not self.waits:
            assert state_bits(self.model) == state_bits(self.twin)
            mine, twins = self.optimizer.state_dict(), self.twin_optimizer.state_dict()
            assert bits(mine) == bits(twins)

    @invariant()
    def every_parameter_has_one_owner(self) -> None:
        owned = [id(p) for group in self.optimizer.param_groups for p in group["params"]]
        assert sorted(owned) == sorted(id(p) for p in self.model.parameters())
        assert {id(p) for p in self.optimizer.state} <= set(owned)

    @invariant()
    def the_host_sees_what_the_table_says(self) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        assert [name for name in names if "esper_seed" not in name] == self.host
        for status in self.bed.seeds():
            child = f"{status.site}.esper_seed_{status.seed_id[1]}."
            grafted = any(name.startswith(child) for name in names)
            assert grafted == (status.state in HOST_VISIBLE)
            full = LIFECYCLE[status.state].host_sees == "all"
            assert status.alpha == 1.0 if full else status.alpha <= (1.0 if grafted else 0.0)
        assert self.bed.num_parameters() == sum(p.numel() for p in self.model.parameters())

    @invariant()
    def at_most_one_seed_awaits_its_verdict(self) -> None:
        waiting = [s for s in self.bed.seeds() if s.state in HOST_VISIBLE]
        assert sum(s.state is not S.FOSSILIZED for s in waiting) <= 1

    @invariant()
    def what_a_seed_is_shown_stays_with_it(self) -> None:
        """A block that overflows may say so, but nothing of the host may."""
        if not self.waits and not any(s.state is S.FOSSILIZED for s in self.bed.seeds()):
            assert all(bool(p.isfinite().all()) for p in self.model.parameters())


AnyLife.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=60,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a life takes minutes
)
TestAnyLife = AnyLife.TestCase
