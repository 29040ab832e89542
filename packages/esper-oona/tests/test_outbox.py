"""The outbox: order, the policy when full, retries, and honest counts of what was lost."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts import BackendUnavailableError, TopicNames
from esper.oona.outbox import Entry, Outbox, OutboxQueue, Outcome, backoff

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
EPOCH = TopicNames.SYSTEM_EVENTS_EPOCH

puts = st.sampled_from([HEALTH, EPOCH, TopicNames.CONTROL_KASMINA_COMMANDS])
takes = st.integers(min_value=0, max_value=4)


@settings(deadline=None)
@given(capacity=st.integers(min_value=1, max_value=6), actions=st.lists(puts | takes, max_size=60))
def test_queue_keeps_order_and_drops_telemetry_first(
    capacity: int, actions: list[TopicNames | int]
) -> None:
    queue = OutboxQueue(capacity)
    queue.open()
    expected: list[tuple[TopicNames, bytes]] = []
    lost: Counter[TopicNames] = Counter()
    for number, action in enumerate(actions):
        if isinstance(action, int):
            taken = [(entry.topic, entry.data) for entry in queue.take(action)]
            assert taken == expected[:action]
            del expected[:action]
            continue
        expected.append((action, str(number).encode()))
        assert queue.put(*expected[-1]) == (len(expected) == 1)
        if len(expected) > capacity:  # the rule in one line: oldest telemetry, else the oldest
            victim = next((item for item in expected if item[0] is HEALTH), expected[0])
            expected.remove(victim)
            lost[victim[0]] += 1
        assert len(queue) == len(expected) <= capacity
        assert queue.lost == lost
    assert [(entry.topic, entry.data) for entry in queue.take(100)] == expected


def test_abandoned_queue_counts_everything_as_lost() -> None:
    queue = OutboxQueue()
    queue.put(EPOCH, b"before it is open")
    queue.open()
    queue.put(HEALTH, b"1")
    queue.put(EPOCH, b"2")
    queue.abandon()
    queue.put(HEALTH, b"after")
    assert queue.lost == {EPOCH: 2, HEALTH: 2}
    assert not queue.take(10)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = backoff(0.5, 2.0)
    assert [next(pauses) for _ in range(5)] == [0.5, 1.0, 2.0, 2.0, 2.0]


async def test_batch_is_sent_again_until_it_arrives_and_order_is_kept() -> None:
    arrived: list[bytes] = []
    failures = iter([True, True, False])

    async def send(batch: Sequence[Entry]) -> Outcome:
        if next(failures, False):
            raise BackendUnavailableError("away")
        if len(arrived) == 0:  # half of the first batch is put off
            half = len(batch) // 2
            arrived.extend(entry.data for entry in batch[:half])
            return Outcome(again=list(batch[half:]), refused=[])
        arrived.extend(entry.data for entry in batch)
        return Outcome(again=[], refused=[])

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    sent = [str(number).encode() for number in range(250)]
    for data in sent:
        outbox.put(EPOCH, data)
    assert await outbox.flush(10.0)
    assert arrived == sent
    await outbox.close(1.0)
    assert not outbox.lost


async def test_refused_messages_are_counted_once() -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        return Outcome(
            again=[], refused=[(e, ValueError("no")) for e in batch if e.topic is HEALTH]
        )

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    outbox.put(HEALTH, b"1")
    outbox.put(EPOCH, b"2")
    assert await outbox.flush(10.0)
    await outbox.close(1.0)
    assert outbox.lost == {HEALTH: 1}


async def test_closing_in_an_outage_counts_what_is_in_flight_and_queued() -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        raise BackendUnavailableError("away")

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    for _ in range(250):
        outbox.put(EPOCH, b"x")
    assert not await outbox.flush(0.01)
    await outbox.close(0.01)
    assert outbox.lost == {EPOCH: 250}


async def test_flush_does_not_wait_for_what_comes_after_it() -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        outbox.put(HEALTH, b"one more")
        await asyncio.sleep(0)
        return Outcome(again=[], refused=[])

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    outbox.put(EPOCH, b"x")
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
    outbox.put(EPOCH, b"x")
    outbox.put(EPOCH, b"y")
    assert outbox.lost == {EPOCH: 2}


async def test_lost_messages_are_reported_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    async def send(batch: Sequence[Entry]) -> Outcome:
        raise BackendUnavailableError("no server at example:6379")

    outbox = Outbox(send, OutboxQueue())
    outbox.start()
    outbox.put(EPOCH, b"x")
    await outbox.close(0.01)
    err = capsys.readouterr().err
    assert "no server at example:6379" in err
    assert '"system.events.epoch": 1' in err
