"""All faults at full length: `uv run python tests/faults [scenario …]`; prints the ledgers as a table."""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ledger import Ledger, table
from scenarios import SCENARIOS
from schedule import Wait
from stage import LONG, SHORT

from esper.contracts import setup_logging

_DEADLINE_SECONDS = 1800.0


def _show(line: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end="", flush=True)


def main() -> int:
    """Play the scenarios that were asked for; return 1 if one did not pass."""
    parser = argparse.ArgumentParser(prog="tests/faults", description=__doc__)
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--short", action="store_true", help="as CI does it")
    parser.add_argument("--messages", type=int, help="instead of 100,000 (storm, poison, …)")
    options = parser.parse_args()
    if unknown := set(options.scenario) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    size = SHORT if options.short else LONG
    if options.messages:
        size = replace(size, num_messages=options.messages)
    setup_logging("faults", level="CRITICAL")  # breaking things is noisy
    ledgers: list[Ledger] = []
    for name in options.scenario or SCENARIOS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="esper-faults-") as folder:
            ledger = SCENARIOS[name](size, Path(folder), Wait(_DEADLINE_SECONDS, _show))
        ledger.notes.append(f"{time.monotonic() - started:.0f} s")
        ledgers.append(ledger)
        _show("")
        print(f"{table(ledgers[-1:])}\n", flush=True)
    print(table(ledgers))
    return int(any(ledger.problems() for ledger in ledgers))


if __name__ == "__main__":
    sys.exit(main())
