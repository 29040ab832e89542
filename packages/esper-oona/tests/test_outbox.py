"""The outbox: order, the policy when full, retries, and honest counts of what was lost."""

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts import (
    BackendUnavailableError,
    ConfigError,
    HealthSignal,
    KasminaCommand,
    Payload,
    SeedState,
    SystemStatePacket,
    TopicNames,
)
from esper.oona.envelope import Envelope, enclose
from esper.oona.journal import Journal
from esper.oona.outbox import Outbox, Outcome, backoff
from esper.oona.outbox_queue import Entry, OutboxQueue, Receipt

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
EPOCH = TopicNames.SYSTEM_EVENTS_EPOCH
COMMANDS = TopicNames.CONTROL_KASMINA_COMMANDS
HEALTH_SIGNAL = HealthSignal(
    layer_id=1,
    seed_id=2,
    chunk_id=0,
    epoch=0,
    activation_variance=0.5,
    dead_neuron_ratio=0.25,
    avg_correlation=-0.125,
)
PACKET = SystemStatePacket(
    run_id="run", epoch=3, step=30, val_loss=0.5, learning_rate=0.1, num_parameters=7
)
COMMAND = KasminaCommand(seed_id=(1, 0), target=SeedState.CULLED, epoch=3, reason="no help")

puts = st.sampled_from([HEALTH, EPOCH, COMMANDS])
takes = st.integers(min_value=0, max_value=4)


def message(topic: TopicNames, number: int = 0) -> Envelope:
    """Make a message that can be told apart; its payload fits the topic."""
    payload: Payload = HEALTH_SIGNAL.model_copy(update={"epoch": number})
    if topic is EPOCH:
        payload = PACKET.model_copy(update={"epoch": number})
    elif topic is COMMANDS:
        payload = COMMAND.model_copy(update={"epoch": number})
    return enclose(payload, sender_id="tests", trace_id="run-1")


def ids(entries: Sequence[Entry]) -> list[str]:
    return [entry.envelope.event_id for entry in entries]


@settings(deadline=None)
@given(capacity=st.integers(min_value=1, max_value=6), actions=st.lists(puts | takes, max_size=60))
def test_a_full_queue_drops_the_oldest_telemetry_and_nothing_else(
    capacity: int, actions: list[TopicNames | int]
) -> None:
    queue = OutboxQueue(capacity)
    queue.open()
    expected: dict[str, list[str]] = {"telemetry": [], "others": []}
    num_telemetry = num_lost = 0
    for number, action in enumerate(actions):
        if isinstance(action, int):
            for entry in queue.take(action):
                kind = "telemetry" if entry.envelope.topic is HEALTH else "others"
                if kind == "telemetry":  # what was dropped was older than anything that comes
                    while expected[kind][0] != entry.envelope.event_id:
                        expected[kind].pop(0)
                        num_lost += 1
                assert entry.envelope.event_id == expected[kind].pop(0)
            continue
        envelope = message(action, number)
        queue.put(envelope)
        num_telemetry += action is HEALTH
        expected["telemetry" if action is HEALTH else "others"].append(envelope.event_id)
    rest = queue.take(1000)
    assert (
        ids([entry for entry in rest if entry.envelope.topic is not HEALTH]) == expected["others"]
    )
    left = ids([entry for entry in rest if entry.envelope.topic is HEALTH])
    lost = queue.lost.get(HEALTH, 0)
    assert set(queue.lost) <= {HEALTH}
    assert len(left) <= capacity
    assert set(left) <= set(expected["telemetry"])
    assert num_lost + len(expected["telemetry"]) - len(left) == lost
    queue.abandon()


def test_within_its_capacity_a_queue_keeps_the_order_across_topics() -> None:
    queue = OutboxQueue(10)
    queue.open()
    sent = [message(topic) for topic in (EPOCH, HEALTH, COMMANDS, HEALTH, EPOCH)]
    assert [queue.put(envelope) for envelope in sent] == [True, False, False, False, False]
    assert len(queue) == 5
    assert ids(queue.take(3) + queue.take(3)) == [envelope.event_id for envelope in sent]


async def test_what_is_awaited_keeps_its_place_behind_what_is_on_disk() -> None:
    queue = OutboxQueue(2)
    queue.open()
    before = [message(EPOCH, number) for number in range(205)]
    for envelope in before:
        queue.put(envelope)
    awaited, after = message(COMMANDS), message(EPOCH, 999)
    queue.put_awaited([awaited], Receipt(1, deadline=0.0))
    queue.put(after)
    assert len(queue) == 207
    taken: list[str] = []
    while batch := queue.take(50):
        taken += ids(batch)
    assert taken == [envelope.event_id for envelope in (*before, awaited, after)]
    assert not queue.lost
    queue.abandon()


def test_a_journal_folder_outlives_the_queue(tmp_path: Path) -> None:
    queue = OutboxQueue(2, Journal(tmp_path, bus="here"))
    queue.open()
    sent = [message(EPOCH, number) for number in range(6)]
    for envelope in sent:
        queue.put(envelope)
    queue.put(message(HEALTH))
    in_flight = queue.take(1)
    queue.abandon(in_flight)
    assert queue.lost == {HEALTH: 1}
    assert queue.num_kept == 6
    other = OutboxQueue(2, Journal(tmp_path, bus="there"))
    other.open()
    assert len(other) == 0
    heir = OutboxQueue(2, Journal(tmp_path, bus="here"))
    heir.open()
    rival = OutboxQueue(2, Journal(tmp_path, bus="here"))
    rival.open()  # while the heir lives
    assert (len(heir), len(rival)) == (6, 0)
    taken = heir.take(4) + heir.take(4)
    assert [entry.envelope.data for entry in taken] == [envelope.data for envelope in sent]
    assert heir.take(1) == []
    for closed in (heir, rival, other):
        closed.abandon()
    assert list(tmp_path.iterdir()) == []


def test_the_journal_of_a_killed_process_is_taken_over_without_its_broken_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path, bus="here")
    sent = [message(EPOCH, number) for number in range(3)]
    journal.append(sent)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    journal.close()
    path.write_bytes(content[:-20])
    heir = OutboxQueue(2, Journal(tmp_path, bus="here"))
    heir.open()
    assert ids(heir.take(10)) == [envelope.event_id for envelope in sent[:2]]
    assert "no message" in capsys.readouterr().err
    heir.abandon()


def test_a_disk_that_takes_no_more_is_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("esper.oona.journal.MAX_BYTES", 1000)
    queue = OutboxQueue(1, Journal(tmp_path, bus="here"))
    queue.open()
    for number in range(5):
        queue.put(message(EPOCH, number))
    assert 0 < queue.lost[EPOCH] < 4
    assert len(queue) + queue.lost[EPOCH] == 5
    assert "limit is 1000" in capsys.readouterr().err
    queue.abandon()


def test_a_journal_that_is_no_folder_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"bus parameter journal .*file.* cannot be used"):
        OutboxQueue(journal=Journal(tmp_path / "file")).open()


def test_a_disk_that_fills_up_loses_what_comes_then_and_nothing_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = OutboxQueue(2, Journal(tmp_path, bus="here"))
    queue.open()
    sent = [message(EPOCH, number) for number in range(6)]
    for envelope in sent:
        queue.put(envelope)
    with monkeypatch.context() as damaged:
        damaged.setattr("os.pwrite", write_a_part_then_refuse())
        queue.put(message(EPOCH, 99))
        assert queue.lost == {EPOCH: 1}
        taken = queue.take(4)  # two from memory; the disk is read while it takes nothing
        assert ids(taken) == [envelope.event_id for envelope in sent[:4]]
        queue.abandon(taken)
    # Counted as lost: those of the memory and those that were read back. The disk still has the latter.
    assert queue.lost == {EPOCH: 7}
    heir = OutboxQueue(9, Journal(tmp_path, bus="here"))
    heir.open()
    assert ids(heir.take(9)) == [envelope.event_id for envelope in sent[2:]]
    heir.take(1)
    heir.abandon()
    assert list(tmp_path.iterdir()) == []


def write_a_part_then_refuse() -> Callable[[int, bytes, int], int]:
    """Make a disk that takes ten bytes of what is written, once."""
    write, calls = os.pwrite, count()

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:10], offset)

    return pwrite


def test_a_journal_that_cannot_be_read_for_a_while_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = OutboxQueue(1, Journal(tmp_path, bus="here"))
    queue.open()
    sent = [message(EPOCH, number) for number in range(3)]
    for envelope in sent:
        queue.put(envelope)

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as damaged:
        damaged.setattr("os.pread", refuse)
        assert ids(queue.take(9)) == [sent[0].event_id]
        assert queue.take(9) == []
        assert len(queue) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert ids(queue.take(9)) == [envelope.event_id for envelope in sent[1:]]
    assert not queue.lost
    queue.abandon()


def test_a_journal_adopted_between_its_making_and_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rivals: list[Journal] = []
    lock = fcntl.flock

    def lock_late(file: FileIO, how: int) -> None:
        if how == fcntl.LOCK_EX and not rivals:
            rivals.append(Journal(tmp_path, bus="here"))
            assert rivals[0].adopt() == 0
        lock(file, how)

    monkeypatch.setattr("fcntl.flock", lock_late)
    queue = OutboxQueue(1, Journal(tmp_path, bus="here"))
    queue.open()
    for number in range(5):
        queue.put(message(EPOCH, number))
    queue.abandon()
    assert rivals
    assert queue.num_kept == 5
    heir = OutboxQueue(1, Journal(tmp_path, bus="here"))
    heir.open()
    assert len(heir) == 5
    heir.abandon()


def test_heirs_at_once_share_what_was_left(tmp_path: Path) -> None:
    for _ in range(10):
        for _ in range(5):
            left = OutboxQueue(1, Journal(tmp_path, bus="here"))
            left.open()
            left.put(message(EPOCH))
            left.put(message(EPOCH))
            left.abandon()
        heirs = [OutboxQueue(1, Journal(tmp_path, bus="here")) for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(OutboxQueue.open, heirs))
        found = [each for heir in heirs for each in ids(heir.take(99))]
        assert (len(found), len(set(found))) == (10, 10)
        for heir in heirs:
            heir.take(1)
            heir.abandon()
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_was_about_to_keep_is_not_taken_twice(tmp_path: Path) -> None:
    queue = OutboxQueue(1, Journal(tmp_path, bus="here"))
    queue.open()
    for number in range(4):
        queue.put(message(EPOCH, number))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    queue.abandon()
    path.write_bytes(content)
    path.with_suffix(".draft").write_bytes(content[:100])
    heir = OutboxQueue(9, Journal(tmp_path, bus="here"))
    heir.open()
    assert len(heir) == 3
    assert len(ids(heir.take(9))) == 3
    heir.take(1)
    heir.abandon()
    assert list(tmp_path.iterdir()) == []


def test_abandoned_queue_counts_everything_as_lost() -> None:
    queue = OutboxQueue()
    queue.put(message(EPOCH))
    queue.open()
    queue.put(message(HEALTH))
    queue.put(message(EPOCH))
    queue.abandon()
    queue.put(message(HEALTH))
    assert queue.lost == {EPOCH: 2, HEALTH: 2}
    assert not queue.take(10)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = backoff(0.5, 2.0)
    assert [next(pauses) for _ in range(5)] == [0.5, 1.0, 2.0, 2.0, 2.0]


async def test_batch_is_sent_again_until_it_arrives_and_order_is_kept() -> None:
    arrived: list[str] = []
    failures = iter([True, True, False])

    async def send(batch: Sequence[Entry]) -> Outcome:
        if next(failures, False):
            raise BackendUnavailableError("away")
        if len(arrived) == 0:  # half of the first batch is put off
            half = len(batch) // 2
            arrived.extend(ids(batch[:half]))
            return Outcome(again=list(batch[half:]), refused=[])
        arrived.extend(ids(batch))
        return Outcome(again=[], refused=[])

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    sent = [message(EPOCH, number) for number in range(250)]
    for envelope in sent:
        outbox.put(envelope)
    assert await outbox.flush(10.0)
    assert arrived == [envelope.event_id for envelope in sent]
    await outbox.close(1.0)
    assert not outbox.lost


async def test_refused_messages_are_counted_once() -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        return Outcome(
            again=[], refused=[(e, ValueError("no")) for e in batch if e.envelope.topic is HEALTH]
        )

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    outbox.put(message(HEALTH))
    outbox.put(message(EPOCH))
    assert await outbox.flush(10.0)
    await outbox.close(1.0)
    assert outbox.lost == {HEALTH: 1}


async def test_closing_in_an_outage_counts_what_is_in_flight_and_queued() -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        raise BackendUnavailableError("away")

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    for _ in range(250):
        outbox.put(message(EPOCH))
    assert not await outbox.flush(0.01)
    await outbox.close(0.01)
    assert outbox.lost == {EPOCH: 250}


async def test_flush_does_not_wait_for_what_comes_after_it() -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        outbox.put(message(HEALTH))
        await asyncio.sleep(0)
        return Outcome(again=[], refused=[])

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    outbox.put(message(EPOCH))
    assert await outbox.flush(10.0)
    await outbox.close(0.05)


def test_message_for_a_loop_that_is_gone_counts_as_lost() -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        return Outcome(again=[], refused=[])

    async def start() -> Outbox:
        outbox = Outbox(send, OutboxQueue())
        outbox.start()
        return outbox

    outbox = asyncio.run(start())
    outbox.put(message(EPOCH))
    outbox.put(message(EPOCH))
    assert outbox.lost == {EPOCH: 2}


async def test_lost_messages_are_reported_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        raise BackendUnavailableError("no server at example:6379")

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    outbox.put(message(EPOCH))
    await outbox.close(0.01)
    err = capsys.readouterr().err
    assert "no server at example:6379" in err
    assert '"system.events.epoch": 1' in err
