"""The ledger: what happened to every message, written down outside the bus by each process for itself.

`Book` is where a process writes, one line for each event, so that what a killed process saw is known;
`Books` adds them up to a `Ledger`, which says whether a scenario passed.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

PREFETCH = 100
"""Of every consumer; one that is killed repeats no more than this."""
_REPEATS_PER_STALL = 3 * PREFETCH
"""What three consumers can have in hand."""
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
        self.path = folder / f"{name}.book"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, event: str, numbers: Iterable[int], details: Iterable[str] = repeat("")) -> None:
        """Write down that `event` happened to the messages, now."""
        now = time.monotonic()
        lines = [
            f"{event} {number} {now:.3f} {detail}\n"
            for number, detail in zip(numbers, details, strict=False)
        ]
        os.write(self._file, "".join(lines).encode())


def numbers_in(book: Path, event: str, *, until: float = float("inf")) -> Iterator[int]:
    """Yield the messages to which the event happened."""
    for line in book.read_text().splitlines():
        noted, number, at, *_ = line.split()
        if noted == event and float(at) <= until:
            yield int(number)


@dataclass(kw_only=True)
class Ledger:
    """What happened to all messages of a scenario."""

    scenario: str
    tried: set[int] = field(default_factory=set[int])
    acknowledged: dict[int, str] = field(default_factory=dict[int, str])
    """Those for which `publish` returned, and the event id that it returned."""
    handled: Counter[int] = field(default_factory=Counter[int])
    in_hand: Counter[int] = field(default_factory=Counter[int])
    """How often a message was in somebody's hands when a fault struck: so often it may be repeated."""
    in_killed_hands: list[int] = field(default_factory=list[int])
    """How many messages each killed consumer had handled that the server did not know of."""
    dead: Counter[int] = field(default_factory=Counter[int])
    letters_allowed: int = 1
    """For one message."""
    poisonous: Collection[int] = ()
    landed_twice: int = 0
    """Messages that are on the bus more than once."""
    mistaken: set[int] = field(default_factory=set[int])
    """Messages whose publisher was told the event id of another one, or of none."""
    num_stalls: int = 0
    """How often the machine stood still for so long that consumers could be taken for dead."""
    peak_memory_kb: list[int] = field(default_factory=list[int])
    """What consumers used at most, in order."""
    first_at: float = float("inf")
    last_at: float = 0.0
    notes: list[str] = field(default_factory=list[str])
    complaints: list[str] = field(default_factory=list[str])
    """What else is not as the scenario promises."""

    @property
    def lost(self) -> set[int]:
        """Acknowledged, but neither handled nor among the dead letters."""
        return self.acknowledged.keys() - self.handled.keys() - self.dead.keys()

    @property
    def duplicated(self) -> int:
        """How often a message was handled once more."""
        return self.handled.total() - len(self.handled)

    @property
    def repeated_without_cause(self) -> set[int]:
        """Handled more often than faults struck while somebody had them in hand."""
        return {n for n, times in self.handled.items() if times - 1 > self.in_hand[n]}

    @property
    def rate(self) -> float:
        """Messages handled in a second."""
        return self.handled.total() / max(self.last_at - self.first_at, 1e-9)

    def problems(self) -> list[str]:
        """Return what is not as it must be; nothing if the scenario passed."""
        expected_dead = self.acknowledged.keys() & set(self.poisonous)
        unexpected = {n for n in self.dead if n not in self.poisonous}
        too_often = {n for n, times in self.dead.items() if times > self.letters_allowed}
        found = {
            "acknowledged messages are lost": self.lost,
            "dead letters are missing": expected_dead - self.dead.keys(),
            "messages are dead letters without cause": unexpected,
            "messages are dead letters too often": too_often,
            "messages were handled that nobody published": self.handled.keys() - self.tried,
            "messages were answered with another's id": self.mistaken,
        }
        if len(self.repeated_without_cause) > self.num_stalls * _REPEATS_PER_STALL:
            found["messages were handled again without cause"] = self.repeated_without_cause
        problems = [f"{len(ns)} {what}: {sorted(ns)[:10]}" for what, ns in found.items() if ns]
        if self.landed_twice:
            problems.append(f"{self.landed_twice} messages landed twice")
        if (most := max(self.in_killed_hands, default=0)) > PREFETCH:
            problems.append(
                f"a killed consumer repeats {most} messages; its prefetch is {PREFETCH}"
            )
        return problems + self.complaints


class Books:
    """Adds up what all processes write into a folder, as they go on."""

    def __init__(self, scenario: str, folder: Path) -> None:
        self.folder = folder
        self._ledger = Ledger(scenario=scenario)
        self._read_to: Counter[Path] = Counter()

    def read(self) -> Ledger:
        """Return the ledger so far: always the same, brought up to date."""
        for path in self.folder.glob("*.book"):
            with path.open("rb") as file:
                file.seek(self._read_to[path])
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read_to[path] += len(whole) + len(newline)
            for line in whole.decode().splitlines():
                event, number, at, *details = line.split()
                _enter(self._ledger, event, int(number), float(at), "".join(details))
        return self._ledger


def _enter(ledger: Ledger, event: str, number: int, at: float, detail: str) -> None:
    match event:
        case "tried":
            ledger.tried.add(number)
        case "acknowledged":
            ledger.acknowledged[number] = detail
        case "handled":
            ledger.handled[number] += 1
            ledger.first_at = min(ledger.first_at, at)
            ledger.last_at = max(ledger.last_at, at)
        case "in-hand":
            ledger.in_hand[number] += 1
        case "killed-with":
            ledger.in_killed_hands.append(number)
        case "stall":
            ledger.num_stalls += 1
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
        "duplicated (of)": [f"{i.duplicated:,} ({i.in_hand.total():,})" for i in ledgers],
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
