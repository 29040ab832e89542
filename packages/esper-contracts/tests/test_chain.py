"""The hash-chained log: what is written is read, and no change goes unnoticed."""

import json
import resource
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts import (
    GENESIS,
    ChainedEvent,
    ChainError,
    EventLog,
    LogPosition,
    read_chain,
    sha256_hex,
)
from esper.contracts import (
    chain as chain_module,
)

DATA = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
    max_size=3,
)


def write(path: Path, contents: Sequence[dict[str, Any]]) -> list[ChainedEvent]:
    with EventLog(path) as log:
        events = [log.append("test", content) for content in contents]
        assert log.head == (events[-1].hash if events else GENESIS)
    return events


@given(at=st.datetimes(timezones=st.just(UTC)), content=DATA)
def test_an_event_carries_the_hash_that_it_must(at: datetime, content: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain_module, "utc_now", lambda: at)
        event = chain_module.next_event("test", content, seq=3, previous=GENESIS)
    assert event.hash == event.expected_hash()


@settings(max_examples=40, deadline=None)
@given(st.lists(DATA, max_size=6))
def test_what_is_written_is_read(contents: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        written = write(path, contents)
        read = list(read_chain(path))
    assert read == written
    assert [event.data for event in read] == contents
    assert [event.seq for event in read] == list(range(len(contents)))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    write(path, [{"epoch": epoch, "loss": 1 / (epoch + 1)} for epoch in range(6)])
    return path


def test_the_format_is_the_documented_one(chain: Path) -> None:
    previous = GENESIS
    for line in chain.read_text().splitlines():
        fields = json.loads(line)
        digest = fields.pop("hash")
        assert fields["previous"] == previous
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert sha256_hex(canonical.encode()) == digest
        previous = digest


type Tamper = Callable[[list[str]], list[str]]


def _rehash(line: str, **changes: Any) -> str:
    event = ChainedEvent.model_validate(json.loads(line) | changes)
    return event.model_copy(update={"hash": event.expected_hash()}).model_dump_json()


TAMPERINGS: dict[str, tuple[Tamper, str]] = {
    "a changed number": (
        lambda lines: [*lines[:2], lines[2].replace('"epoch":2', '"epoch":9'), *lines[3:]],
        r"line 3 was changed",
    ),
    "a changed kind": (
        lambda lines: [*lines[:2], lines[2].replace('"test"', '"tset"'), *lines[3:]],
        r"line 3 was changed",
    ),
    "a changed line with a new hash": (
        lambda lines: [*lines[:2], _rehash(lines[2], kind="other"), *lines[3:]],
        r"line 4 does not follow the line before it",
    ),
    "a removed line": (
        lambda lines: [*lines[:2], *lines[3:]],
        r"line 3 does not follow the line before it \(seq 3, expected 2\); a line was removed",
    ),
    "a removed first line": (lambda lines: lines[1:], r"line 1 does not follow"),
    "two swapped lines": (
        lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
        r"line 3 does not follow the line before it \(seq 3, expected 2\)",
    ),
    "a repeated line": (
        lambda lines: [*lines[:3], *lines[2:]],
        r"line 4 does not follow the line before it \(seq 2, expected 3\)",
    ),
    "a line cut in the middle": (
        lambda lines: [*lines[:2], lines[2][:40], *lines[3:]],
        r"line 3 is not an event of this log",
    ),
    "an empty line": (
        lambda lines: [*lines[:2], "", *lines[2:]],
        r"line 3 is not an event of this log",
    ),
    "a line that was never written": (
        lambda lines: [*lines, lines[0]],
        r"line 7 does not follow",
    ),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_detected_and_the_line_is_named(chain: Path, tampering: str) -> None:
    tamper, problem = TAMPERINGS[tampering]
    chain.write_text("\n".join(tamper(chain.read_text().splitlines())) + "\n")
    with pytest.raises(ChainError, match=rf"events\.jsonl, {problem}"):
        list(read_chain(chain))


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), char=st.sampled_from("0a}"))
def test_no_single_character_can_be_changed(place: float, char: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        write(path, [{"loss": 0.5}, {"loss": 0.25}])
        text = path.read_text()
        position = int(place * (len(text) - 1))
        other = "1" if text[position] == char else char
        path.write_text(text[:position] + other + text[position + 1 :])
        with pytest.raises(ChainError, match=r"line [12]"):
            list(read_chain(path))


def test_events_before_the_first_bad_line_are_still_read(chain: Path) -> None:
    lines = chain.read_text().splitlines()
    chain.write_text("\n".join([*lines[:4], "{}"]) + "\n")
    seen: list[int] = []
    with pytest.raises(ChainError, match="line 5"):
        seen.extend(event.seq for event in read_chain(chain))
    assert seen == [0, 1, 2, 3]


def test_a_log_is_never_written_over(chain: Path) -> None:
    with pytest.raises(FileExistsError), EventLog(chain):
        pass
    assert len(list(read_chain(chain))) == 6


def test_a_closed_log_takes_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="not open; use it in a with statement"):
        log.append("test", {})


@contextmanager
def disk_with_room_for(num_bytes: int) -> Generator[None]:
    """Let no file of this process grow beyond `num_bytes`, as a full disk does."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_full_disk_ends_the_log_and_not_what_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        written = [log.append("test", {"text": "x" * 100_000}) for _ in range(2)]
        with disk_with_room_for(path.stat().st_size + 100):
            unwritten = log.append("test", {"text": "y" * 1000})
        log.append("test", {"there is": "room again"})
        assert (log.lost, log.failure) == (2, "File too large")
        assert log.head == written[-1].hash
        assert unwritten.data == {"text": "y" * 1000}
    assert list(read_chain(path, head=log.head)) == written


def test_a_log_without_loss_says_so(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append("test", {})
        assert (log.lost, log.failure) == (0, None)


def test_lines_missing_at_the_end_are_noticed_by_who_knows_the_head(chain: Path) -> None:
    head = list(read_chain(chain))[-1].hash
    assert len(list(read_chain(chain, head=head))) == 6
    lines = chain.read_text().splitlines(keepends=True)
    chain.write_text("".join(lines[:-2]))
    assert len(list(read_chain(chain))) == 4
    with pytest.raises(ChainError, match=r"ends after line 4 .* lines are missing at its end"):
        list(read_chain(chain, head=head))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":3', b'"seq":9,"seq":3'),
        (b'"seq":3', b'"seq": 3'),
        (b'"data":{', b'"data":{"epoch":99,'),
        (b'"kind":"test"', b'"kind":"\\u0074est"'),
        (b'"kind":"test"', b'"kind":"\xff"'),
    ],
)
def test_another_spelling_of_the_same_event_is_noticed(chain: Path, old: bytes, new: bytes) -> None:
    lines = chain.read_bytes().splitlines(keepends=True)
    assert old in lines[3]
    lines[3] = lines[3].replace(old, new)
    chain.write_bytes(b"".join(lines))
    with pytest.raises(ChainError, match="line 4"):
        list(read_chain(chain))


def test_a_torn_last_line_is_noticed(chain: Path) -> None:
    chain.write_bytes(chain.read_bytes()[:-1])
    with pytest.raises(ChainError, match="line 6 was changed"):
        list(read_chain(chain))


def test_a_line_has_left_the_process_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append("test", {"epoch": 0})
        assert len(list(read_chain(path))) == 1


def test_a_log_goes_on_after_its_process_died(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append("test", {"n": 0})
        position = log.position
        log.append("test", {"n": 1})
    with EventLog(path, after=position) as log:
        log.append("test", {"n": 2})
        assert log.position.seq == 2
    assert [event.data for event in read_chain(path)] == [{"n": 0}, {"n": 2}]


def test_a_log_that_was_cut_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append("test", {})
        position = log.position
    path.write_bytes(b"")
    with pytest.raises(ChainError, match="was cut"), EventLog(path, after=position):
        pass


def test_a_log_goes_on_only_behind_the_line_that_it_knows(tmp_path: Path) -> None:
    positions: list[LogPosition] = []
    for name in ("one", "other"):
        with EventLog(tmp_path / name) as log:
            log.append("begin", {"name": name})
            positions.append(log.position)
    before = (tmp_path / "other").read_bytes()
    known = positions[0].model_copy(update={"size_bytes": len(before)})
    with (
        pytest.raises(ChainError, match="is not the log to go on with"),
        EventLog(tmp_path / "other", after=known),
    ):
        pass
    assert (tmp_path / "other").read_bytes() == before
