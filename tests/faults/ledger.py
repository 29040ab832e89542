"""The ledger: what happened to every message, written down outside the bus by each process for itself.

`Book` is where a process writes, one line for each event, so that what a killed process saw is known;
`Books` adds them up to a `Ledger`, which says whether a scenario passed.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

POISON_EVERY = 100
_POISON_AT = 7
_KINDS = ("exits", "gives back", "refuses", "refuses")
_NUMBER = re.compile(rb'"step":\s*(\d+)|\xff(\d+)')
"""Where a message's number is in its bytes, decodable ones and others."""


def poison(number: int, num_exits: int) -> str | None:
    """Return what the handler does at the message: "exits", "gives back", "refuses"; None: it works."""
    if number % POISON_EVERY != _POISON_AT:
        return None
    index = number // POISON_EVERY
    kind = _KINDS[index % len(_KINDS)]
    return kind if kind != "exits" or index // len(_KINDS) < num_exits else "refuses"


def number_in(data: bytes) -> int:
    """Return the number of the message with these bytes."""
    found = _NUMBER.search(data)
    assert found is not None, data
    return int(found[1] or found[2])


class Book:
    """One process's file of events; a line that was written survives the process."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = os.open(folder / f"{name}.book", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, event: str, numbers: Iterable[int]) -> None:
        """Write down that `event` happened to the messages, now."""
        now = time.monotonic()
        os.write(self._file, "".join(f"{event} {n} {now:.3f}\n" for n in numbers).encode())


@dataclass(kw_only=True)
class Ledger:
    """What happened to all messages of a scenario."""

    scenario: str
    tried: set[int] = field(default_factory=set[int])
    acknowledged: set[int] = field(default_factory=set[int])
    """Those for which `publish` returned."""
    handled: Counter[int] = field(default_factory=Counter[int])
    dead: Counter[int] = field(default_factory=Counter[int])
    poisonous: Collection[int] = ()
    landed_twice: int = 0
    """Messages that are on the bus more than once."""
    allowed_duplicates: int = 0
    peak_memory_kb: list[int] = field(default_factory=list[int])
    """What consumers used at most, in order."""
    first_at: float = float("inf")
    last_at: float = 0.0
    notes: list[str] = field(default_factory=list[str])

    @property
    def lost(self) -> set[int]:
        """Acknowledged, but neither handled nor among the dead letters."""
        return self.acknowledged - self.handled.keys() - self.dead.keys()

    @property
    def duplicated(self) -> int:
        """How often a message was handled once more."""
        return self.handled.total() - len(self.handled)

    @property
    def rate(self) -> float:
        """Messages handled in a second."""
        return self.handled.total() / max(self.last_at - self.first_at, 1e-9)

    def problems(self) -> list[str]:
        """Return what is not as it must be; nothing if the scenario passed."""
        expected_dead = self.acknowledged & set(self.poisonous)
        unexpected = {n for n in self.dead if n not in self.poisonous}
        found = {
            "acknowledged messages are lost": self.lost,
            "dead letters are missing": expected_dead - self.dead.keys(),
            "messages are dead letters without cause": unexpected,
            "messages are dead letters twice": {n for n, times in self.dead.items() if times > 1},
            "messages were handled that nobody published": self.handled.keys() - self.tried,
        }
        problems = [f"{len(ns)} {what}: {sorted(ns)[:10]}" for what, ns in found.items() if ns]
        if self.duplicated > self.allowed_duplicates:
            problems.append(f"{self.duplicated} duplicates; allowed {self.allowed_duplicates}")
        if self.landed_twice:
            problems.append(f"{self.landed_twice} messages landed twice")
        return problems


class Books:
    """Adds up what all processes write into a folder, as they go on."""

    def __init__(self, scenario: str, folder: Path) -> None:
        self._folder = folder
        self._ledger = Ledger(scenario=scenario)
        self._read_to: Counter[Path] = Counter()

    def read(self) -> Ledger:
        """Return the ledger so far: always the same, brought up to date."""
        for path in self._folder.glob("*.book"):
            with path.open("rb") as file:
                file.seek(self._read_to[path])
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read_to[path] += len(whole) + len(newline)
            for line in whole.splitlines():
                event, number, at = line.split()
                _enter(self._ledger, event.decode(), int(number), float(at))
        return self._ledger


def _enter(ledger: Ledger, event: str, number: int, at: float) -> None:
    match event:
        case "tried":
            ledger.tried.add(number)
        case "acknowledged":
            ledger.acknowledged.add(number)
        case "handled":
            ledger.handled[number] += 1
            ledger.first_at = min(ledger.first_at, at)
            ledger.last_at = max(ledger.last_at, at)
        case _:
            assert event == "memory", event
            ledger.peak_memory_kb.append(number)


def table(ledgers: Collection[Ledger]) -> str:
    """Return the ledgers as a table for a terminal."""
    columns: Mapping[str, list[str]] = {
        "scenario": [item.scenario for item in ledgers],
        "published": [f"{len(item.tried):,}" for item in ledgers],
        "acknowledged": [f"{len(item.acknowledged):,}" for item in ledgers],
        "handled": [f"{len(item.handled):,}" for item in ledgers],
        "duplicated (of)": [f"{i.duplicated:,} ({i.allowed_duplicates:,})" for i in ledgers],
        "dead": [f"{len(item.dead):,}" for item in ledgers],
        "lost": [f"{len(item.lost):,}" for item in ledgers],
        "verdict": ["; ".join(item.problems()) or "pass" for item in ledgers],
        "": ["; ".join(item.notes) for item in ledgers],
    }
    widths = {name: max(map(len, [name, *cells])) for name, cells in columns.items()}
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths.values(), strict=True))
        for row in rows
    )
