"""Claims: one worker at a time, taken over when its time is up, left alone after too many tries."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from esper.contracts import (
    MAX_CLAIMS,
    BlueprintIR,
    BlueprintStatus,
    CompiledKernelArtifact,
    ConfigError,
    Endorsement,
    ValidationReport,
    utc_now,
)
from esper.urza.engine import make_engine, parse_url
from esper.urza.library import SqlLibrary
from esper.urza.schema import blueprints, kernels

type MakeIR = Callable[..., BlueprintIR]
type MakeKernel = Callable[..., tuple[CompiledKernelArtifact, bytes]]


@pytest.fixture
def let_leases_end(library_url: str) -> Callable[[], None]:
    """Sets every lease back by an hour, as if that had passed."""

    def _end() -> None:
        engine = make_engine(parse_url(library_url))
        with engine.begin() as connection:
            for table in (blueprints, kernels):
                held = table.c.lease_until.is_not(None)
                past = utc_now() - timedelta(hours=1)
                connection.execute(sa.update(table).where(held).values(lease_until=past))
        engine.dispose()

    return _end


def test_the_oldest_waiting_blueprint_is_claimed_by_one_only(
    library: SqlLibrary, make_ir: MakeIR
) -> None:
    first = library.submit_blueprint(make_ir("first"))
    second = library.submit_blueprint(make_ir("second"))
    assert library.claim_blueprint("forge-1", lease_seconds=60) == first
    assert library.claim_blueprint("forge-2", lease_seconds=60) == second
    assert library.claim_blueprint("forge-3", lease_seconds=60) is None


def test_many_who_claim_at_once_get_each_blueprint_once(
    library: SqlLibrary, make_ir: MakeIR
) -> None:
    for number in range(30):
        library.submit_blueprint(make_ir(f"design_{number}"))

    def _work(worker: int) -> list[str]:
        got: list[str] = []
        while claimed := library.claim_blueprint(f"forge-{worker}", lease_seconds=60):
            got.append(claimed.blueprint_id)
        return got

    with ThreadPoolExecutor(6) as threads:
        claimed = Counter(each for got in threads.map(_work, range(6)) for each in got)
    assert len(claimed) == 30
    assert set(claimed.values()) == {1}


def test_a_lease_that_ended_lets_another_take_over(
    library: SqlLibrary, make_ir: MakeIR, let_leases_end: Callable[[], None]
) -> None:
    filed = library.submit_blueprint(make_ir())
    library.claim_blueprint("dead", lease_seconds=60)
    let_leases_end()
    assert not library.renew_claim(filed.blueprint_id, "dead", lease_seconds=60)
    assert library.claim_blueprint("alive", lease_seconds=60) == filed
    assert not library.release_claim(filed.blueprint_id, "dead")
    assert library.claim_blueprint("third", lease_seconds=60) is None


def test_a_renewed_lease_and_a_released_one(library: SqlLibrary, make_ir: MakeIR) -> None:
    filed = library.submit_blueprint(make_ir())
    library.claim_blueprint("forge-1", lease_seconds=0.001)
    assert library.claim_blueprint("forge-2", lease_seconds=60) == filed
    assert library.renew_claim(filed.blueprint_id, "forge-2", lease_seconds=60)
    for _ in range(2 * MAX_CLAIMS):  # what is released counts as not claimed
        assert library.release_claim(filed.blueprint_id, "forge-2")
        assert library.claim_blueprint("forge-2", lease_seconds=60) == filed


def test_what_ends_its_workers_is_handed_out_no_more(
    library: SqlLibrary, make_ir: MakeIR, let_leases_end: Callable[[], None]
) -> None:
    filed = library.submit_blueprint(make_ir())
    for number in range(MAX_CLAIMS):
        assert library.claim_blueprint(f"forge-{number}", lease_seconds=60) == filed
        let_leases_end()
    assert library.claim_blueprint("last", lease_seconds=60) is None


def test_registering_a_kernel_ends_the_claim_of_its_blueprint(
    library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel
) -> None:
    filed = library.submit_blueprint(make_ir())
    library.claim_blueprint("forge", lease_seconds=60)
    library.register_kernel(*make_kernel(make_ir()))
    assert library.get_blueprint(filed.blueprint_id).status is BlueprintStatus.COMPILED
    assert not library.renew_claim(filed.blueprint_id, "forge", lease_seconds=60)
    assert library.claim_blueprint("forge", lease_seconds=60) is None


def test_a_kernel_is_claimed_until_its_verdict(
    library: SqlLibrary,
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    make_report: Callable[..., ValidationReport],
    make_endorsement: Callable[..., Endorsement],
) -> None:
    library.submit_blueprint(make_ir())
    kernel = library.register_kernel(*make_kernel(make_ir()))
    assert library.claim_kernel("crucible-1", lease_seconds=60) == kernel
    assert library.claim_kernel("crucible-2", lease_seconds=60) is None
    library.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    assert not library.renew_claim(kernel.kernel_id, "crucible-1", lease_seconds=60)
    assert library.claim_kernel("crucible-2", lease_seconds=60) is None


@pytest.mark.parametrize(
    ("holder", "seconds"), [("", 60), ("a", 0), ("a", -1), ("a", float("nan")), ("a", 1e12)]
)
def test_a_claim_that_nobody_could_hold_is_refused(
    library: SqlLibrary, holder: str, seconds: float
) -> None:
    with pytest.raises(ConfigError, match=r"claim needs to know who|lease_seconds is"):
        library.claim_blueprint(holder, lease_seconds=seconds)
