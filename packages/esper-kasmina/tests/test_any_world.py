"""Laws 5 to 7 through any sequence of commands, steps, rollbacks and resumes, with all that trains.

`test_any_life` checks more laws on one host with a plain optimizer; here are schedulers, a gradient
scaler, moving averages and several hosts.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kasmina_factory import admit, explode, order, wake
from kasmina_worlds import Life, begin, come_back, seen

from esper.contracts import LIFECYCLE, IllegalTransitionError, SeedState
from esper.kasmina import Bed
from esper.kasmina.marks import Mark

pytestmark = pytest.mark.long

S = SeedState

HOSTS = ("mlp", "chunks", "depth", "batch_norm", "tied")
PENDING = (S.GRAFTING, S.STABILIZATION, S.EVALUATING, S.FINE_TUNING)
UNDONE = (S.CULLED, S.CANCELLED, S.ROLLED_BACK)


class Lives(RuleBasedStateMachine):
    """One run, and what is known of its past."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.marks: list[tuple[Mark, Any, int]] = []
        self.before_graft: Any = None
        self.written: tuple[Any, int] | None = None

    @initialize(
        name=st.sampled_from(HOSTS),
        optimizer=st.sampled_from(["sgd", "adamw_foreach", "adagrad"]),
        scheduler=st.sampled_from(["sequential", "lambda", "plateau"]),
        averaged=st.booleans(),
    )
    def start(self, name: str, optimizer: str, scheduler: str, averaged: bool) -> None:
        self.life: Life = begin(name, optimizer, scheduler, averaged=averaged)

    @property
    def bed(self) -> Bed:
        return self.life.bed

    def stand(self, *, objects: bool = False) -> Any:
        """Return everything there is to see, and every seed."""
        return seen(self.life.world, objects=objects), self.bed.seeds(), self.bed.step

    @rule(steps=st.integers(1, 3))
    def live(self, steps: int) -> None:
        self.life.live(steps)

    @rule()
    def end_epoch(self) -> None:
        self.bed.end_epoch(0)

    @rule(data=st.data(), spoilt=st.booleans())
    def command(self, data: st.DataObject, spoilt: bool) -> None:
        status = data.draw(st.sampled_from(list(self.bed.seeds())))
        following = sorted(LIFECYCLE[status.state].next)
        # Four times as often on as back, so that late states are reached.
        likely = [state for state in following for _ in range(1 if state in UNDONE else 4)]
        target = data.draw(st.sampled_from(likely or [S.DORMANT]))
        kernel_id = admit(self.bed, site=status.seed_id[0], change=explode if spoilt else wake)
        before = self.stand(objects=True)
        try:
            order(self.bed, target, kernel_id, status.seed_id)
        except IllegalTransitionError:
            assert self.stand(objects=True) == before
            return
        if target is S.GRAFTING:
            self.before_graft = before[0]
        elif target in UNDONE and status.state in PENDING and self.before_graft is not None:
            assert seen(self.life.world) == self.before_graft

    @rule()
    def mark(self) -> None:
        self.marks.append((self.bed.mark(), self.stand(objects=True), self.life.clock))

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        mark, stand, clock = data.draw(st.sampled_from(self.marks))
        self.bed.roll_back(mark)
        assert self.stand(objects=True) == stand
        self.life.clock = clock
        self.before_graft = None  # of that moment it is not known here

    @rule()
    def write(self) -> None:
        self.bed.checkpoint(self.folder)
        self.written = (self.stand(), self.life.clock)

    @precondition(lambda self: self.written is not None)
    @rule()
    def be_killed_and_resume(self) -> None:
        assert self.written is not None
        stand, clock = self.written
        self.life = come_back(self.life, self.folder)
        self.life.clock = clock
        assert self.stand() == stand
        self.marks.clear()
        self.before_graft = None  # of that moment it is not known here

    @invariant()
    def every_parameter_has_one_owner(self) -> None:
        if not hasattr(self, "life"):
            return
        optimizer: Any = self.life.world.optimizer
        owned = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
        assert owned == Counter(id(p) for p in self.life.world.model.parameters())

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


Lives.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a life takes minutes
)
# The first steps of a host with a block that overflows are skipped by the scaler.
TestLives = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")(Lives.TestCase)
