"""Every fault in a short form: nothing acknowledged is lost. `python tests/faults` plays them long."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger import Ledger, table
from scenarios import SCENARIOS
from schedule import Wait
from stage import SHORT

_DEADLINE_SECONDS = 120.0

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ledgers() -> Iterator[list[Ledger]]:
    """Collect the ledgers, and print them at the end."""
    kept: list[Ledger] = []
    yield kept
    print(f"\n{table(kept)}")


def _stay_silent(line: str) -> None: ...


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_acknowledged_is_lost_through(
    name: str, tmp_path: Path, ledgers: list[Ledger]
) -> None:
    ledger = SCENARIOS[name](SHORT, tmp_path, Wait(_DEADLINE_SECONDS, _stay_silent))
    ledgers.append(ledger)
    assert ledger.acknowledged
    assert ledger.problems() == []
