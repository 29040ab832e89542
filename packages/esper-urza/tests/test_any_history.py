"""Any history of a library gives what the port promises, the same on every combination of backends.

The same steps are played on libraries of every kind; after each one they are compared with a model of the
promises (`library_model`), and at the end everything verifies. `ESPER_HISTORIES=200` plays so many, new
ones each time.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,  # pyright: ignore[reportUnknownVariableType]
)
from library_model import NUM_DESIGNS, VALIDATED, Model, Outcome

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    Endorsement,
    EsperError,
    KernelQuery,
    ValidationReport,
    utc_now,
)
from esper.urza.engine import make_engine, parse_url
from esper.urza.garbage import collect
from esper.urza.library import SqlLibrary
from esper.urza.schema import blueprints, kernels, metadata, sqlite_metadata
from esper.urza.verify import verify

pytestmark = pytest.mark.long

type Make[Record] = Callable[..., Record]

DESIGNS = st.integers(0, NUM_DESIGNS - 1)
NUMBERS = st.integers(0, 6)
KEYS = st.sampled_from("aab")
HOLDERS = st.sampled_from(["one", "two"])
WHAT = st.sampled_from(["design", "kernel"])

ACTIONS: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just("submit"), DESIGNS),
    st.tuples(st.just("register"), st.lists(NUMBERS, min_size=1, max_size=3)),
    st.tuples(st.just("register"), st.lists(NUMBERS, min_size=1, max_size=1)),
    st.tuples(st.just("judge"), NUMBERS, st.booleans(), KEYS),
    st.tuples(st.just("judge"), NUMBERS, st.just(True), st.sampled_from("abc")),
    st.tuples(st.just("judge_again"), NUMBERS, st.integers(0, 3)),
    st.tuples(st.just("claim"), WHAT, HOLDERS),
    st.tuples(st.just("renew"), WHAT, NUMBERS, HOLDERS),
    st.tuples(st.just("release"), WHAT, NUMBERS, HOLDERS),
    st.tuples(st.just("end_leases")),
    st.tuples(st.just("damage"), NUMBERS),
    st.tuples(st.just("collect")),
    st.tuples(st.sampled_from(["archive_kernel", "archive_design"]), DESIGNS),
    st.tuples(st.sampled_from(["enroll", "revoke"]), st.sampled_from("abc")),
)
"""One rule with all of them: of several rules, hypothesis leaves out some in each example."""


class World:
    """A library, what happens to it, and the model that it must match."""

    def __init__(self, library: SqlLibrary, tamper: Callable[[str, bytes | None], None], make: Any):
        self.library = library
        self.model = Model()
        self._tamper = tamper
        self._make = make
        self._reports: dict[int, list[tuple[ValidationReport, Endorsement | None]]] = {}

    def play(self, name: str, *arguments: Any) -> tuple[Outcome, Outcome] | None:
        """Take a step; return what came of it and what the model says, None for one without sense."""
        before = {number: len(each.verdicts) for number, each in self.model.kernels.items()}
        if name == "judge_again":
            number, index = arguments
            if index >= before.get(number, 0):
                return None
        if name == "damage":
            return self._damage(*arguments)
        if name in ("renew", "release"):
            what, number, holder = arguments
            if what == "design":
                number %= NUM_DESIGNS
                arguments = what, number, holder
            subject = self._id(what, number)
            step = partial(getattr(self, f"_{name}"), subject, holder)
        else:
            step = partial(getattr(self, f"_{name}"), *arguments)
        try:
            outcome = step()
        except EsperError as error:
            outcome = type(error).__name__
        if name == "judge":
            number, passed, key = arguments
            expected = self.model.judge(number, passed=passed, key=key)
        else:
            expected = getattr(self.model, name)(*arguments)
        return outcome, expected

    def check(self) -> None:
        """Compare everything that is on file with the model."""
        statuses = {each.blueprint_id: each.status.value for each in self.library.list_blueprints()}
        designs = self.model.designs
        assert statuses == {self._id("design", n): each.status for n, each in designs.items()}
        valid = {each.kernel_id for each in self.library.query(KernelQuery(limit=1000))}
        everything = self.library.query(KernelQuery(status=None, limit=1000))
        assert {each.kernel_id: each.status.value for each in everything} == {
            self._id("kernel", n): each.status for n, each in self.model.kernels.items()
        }
        assert valid == {each.kernel_id for each in everything if each.status.value == VALIDATED}
        for each in everything:
            assert (each.endorsement is not None) >= (each.status.value == VALIDATED)

    def finish(self) -> None:
        """Mend what was damaged; then all of it verifies."""
        for number in list(self.model.damaged):
            self._damage(number)
        assert list(verify(self.library)) == []

    def _ir(self, design: int) -> BlueprintIR:
        return self._make.ir(f"design_{design}")

    def _kernel(self, number: int) -> tuple[CompiledKernelArtifact, bytes]:
        return self._make.kernel(self._ir(number % NUM_DESIGNS), number)

    def _id(self, what: str, number: int) -> str:
        if what == "design":
            return self._ir(number % NUM_DESIGNS).content_hash()
        return self._kernel(number)[0].kernel_id

    def _submit(self, design: int) -> Outcome:
        return self.library.submit_blueprint(self._ir(design)).status.value

    def _archive_design(self, design: int) -> Outcome:
        return self.library.archive_blueprint(self._id("design", design)).status.value

    def _archive_kernel(self, number: int) -> Outcome:
        return self.library.archive_kernel(self._id("kernel", number)).status.value

    def _register(self, numbers: list[int]) -> Outcome:
        filed = self.library.register_kernels([self._kernel(number) for number in numbers])
        assert [each.kernel_id for each in filed] == [self._id("kernel", n) for n in numbers]
        on_file = [self.library.get_kernel(each.kernel_id) for each in filed]
        assert [_all_of(each) for each in filed] == [_all_of(each) for each in on_file]
        return filed[0].status.value

    def _judge(self, number: int, passed: bool, key: str) -> Outcome:
        kernel, _ = self._kernel(number)
        report = self._make.report(kernel.kernel_id, passed=passed)
        endorsement = self._make.endorsement(kernel, key) if passed else None
        judged = self.library.record_validation(report, endorsement)
        self._reports.setdefault(number, []).append((report, endorsement))
        return judged.status.value

    def _judge_again(self, number: int, index: int) -> Outcome:
        report, endorsement = self._reports[number][index]
        return self.library.record_validation(report, endorsement).status.value

    def _enroll(self, key: str) -> Outcome:
        public_key = self._make.public_key(key)
        return self.library.enroll_validator(public_key, name=key).public_key == public_key.hex()

    def _revoke(self, key: str) -> Outcome:
        kernel, _ = self._kernel(0)
        key_id = self._make.endorsement(kernel, key).key_id
        return self.library.revoke_validator(key_id).key_id == key_id

    def _claim(self, what: str, holder: str) -> Outcome:
        if what == "design":
            design = self.library.claim_blueprint(holder, lease_seconds=3600)
            return None if design is None else int(design.ir.name.rpartition("_")[2])
        kernel = self.library.claim_kernel(holder, lease_seconds=3600)
        return None if kernel is None else kernel.num_parameters - 100

    def _renew(self, subject: str, holder: str) -> Outcome:
        return self.library.renew_claim(subject, holder, lease_seconds=3600)

    def _release(self, subject: str, holder: str) -> Outcome:
        return self.library.release_claim(subject, holder)

    def _end_leases(self) -> Outcome:
        past = utc_now() - timedelta(hours=1)
        with self.library.transaction() as connection:
            for table in (blueprints, kernels):
                held = table.c.lease_holder.is_not(None)
                connection.execute(sa.update(table).where(held).values(lease_until=past))
        return None

    def _collect(self) -> Outcome:
        on_file = {each for kind, each in self._everything() if kind == "kernel"}
        later = utc_now() + timedelta(days=2)
        collect(self.library.artifacts, on_file.__contains__, now=later)
        self.model.damaged &= self.model.kernels.keys()
        return len(list(self.library.artifacts.list()))

    def _everything(self) -> list[tuple[str, str]]:
        return list(self.library.find_ids(""))

    def _damage(self, number: int) -> tuple[Outcome, Outcome] | None:
        """Change stored bytes, or bring them back if they are changed."""
        if number not in self.model.stored:
            return None
        kernel, blob = self._kernel(number)
        is_damaged = number in self.model.damaged
        self._tamper(kernel.kernel_id, blob if is_damaged else b"?" + blob[1:])
        self.model.damaged ^= {number}
        try:
            outcome: Outcome = len(self.library.artifacts.get(kernel.kernel_id))
        except EsperError as error:
            outcome = type(error).__name__
        return outcome, len(blob) if is_damaged else "ArtifactIntegrityError"


def _all_of(kernel: CompiledKernelArtifact) -> str:
    """Return every field, in a form in which a NaN of a report equals itself."""
    return kernel.model_dump_json()


class AnyHistory(RuleBasedStateMachine):
    """Three designs, seven kernels, three validators, two workers, and whatever may happen to them."""

    def __init__(self, open_world: Callable[[], World]) -> None:
        super().__init__()
        self.world = open_world()

    @rule(action=ACTIONS)
    def play(self, action: tuple[Any, ...]) -> None:
        found = self.world.play(*action)
        if found is not None:
            outcome, expected = found
            assert outcome == expected, action

    @invariant()
    def library_and_model_agree(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.finish()


_EXAMPLES = int(os.environ.get("ESPER_HISTORIES", "0"))
_SETTINGS = settings(
    max_examples=_EXAMPLES or 8,
    stateful_step_count=40,
    deadline=None,
    derandomize=not _EXAMPLES,
    database=None,
    phases=(Phase.generate,),  # shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def open_world(
    request: pytest.FixtureRequest,
    library: SqlLibrary,
    library_url: str,
    tamper: Callable[[str, bytes | None], None],
    enroll: Callable[[SqlLibrary], None],
    public_key: Callable[[str], bytes],
) -> Callable[[], World]:
    """Empties the library and gives it to a new model."""
    names = ("ir", "kernel", "report", "endorsement")
    make = SimpleNamespace(**{name: request.getfixturevalue(f"make_{name}") for name in names})
    make.public_key = public_key

    def begin() -> World:
        _empty(library_url)
        for each in list(library.artifacts.list()):
            library.artifacts.delete(each.sha256)
        library.close()
        library.open()
        enroll(library)
        return World(library, tamper, make)

    return begin


def _empty(url: str) -> None:
    engine = make_engine(parse_url(url))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            connection.execute(sa.text(f"TRUNCATE {', '.join(metadata.tables)}"))
        else:
            found = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            guards = connection.execute(sa.text(found)).all()
            for guard in guards:
                connection.exec_driver_sql(f"DROP TRIGGER {guard.name}")
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
            for table in (*sqlite_metadata.tables.values(), *metadata.tables.values()):
                connection.execute(sa.delete(table))
            for guard in guards:
                connection.exec_driver_sql(guard.sql)
    engine.dispose()


def test_any_history_gives_what_the_port_promises(open_world: Callable[[], World]) -> None:
    machine = partial(AnyHistory, open_world)
    cast("Any", run_state_machine_as_test)(machine, settings=_SETTINGS)
