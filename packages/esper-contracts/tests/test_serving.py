"""A worker on a bus: what ends, what hangs and what is told when handling goes wrong."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from esper.contracts import (
    BackendUnavailableError,
    BusHealth,
    BusTraffic,
    DeadLetter,
    FieldReport,
    GroupLosses,
    MessageError,
    NotFoundError,
    OonaMessage,
    Payload,
    Record,
    SeedState,
    TopicNames,
    seal,
    serve,
    unseal,
)
from esper.contracts.threads import within

REPORT = FieldReport(
    run_id="run-1",
    seed_id=(0, 0),
    site="1",
    kernel_id="0" * 64,
    blueprint_id="1" * 64,
    blueprint_name="bottleneck",
    outcome=SeedState.CULLED,
    reason="it does not help",
    epoch_started=1,
    epoch_ended=5,
    parameters_added=0,
)


@dataclass
class OneMessage:
    """A delivery that remembers whether it was acknowledged."""

    message: OonaMessage
    delivery_count: int = 1
    attempts_left: int = 4
    hold_seconds: float = 60.0
    position: str = "1"
    acknowledged: bool = False
    given_back: bool = False
    dead_because: str = ""

    @property
    def trace_id(self) -> str:
        return self.message.trace_id

    @property
    def traceparent(self) -> str | None:
        return self.message.traceparent

    @property
    def is_settled(self) -> bool:
        return self.acknowledged or self.given_back or bool(self.dead_because)

    def payload(self) -> Payload:
        return unseal(self.message)

    async def attempt(self, *, counted: bool = True) -> bool:
        return counted

    async def ack(self) -> None:
        self.acknowledged = True

    async def nack(self, *, delay_seconds: float = 0.0, counted: bool = True) -> None:
        assert delay_seconds > 0
        assert not counted
        self.given_back = True

    async def dead_letter(self, reason: str) -> None:
        self.dead_because = reason

    async def renew(self) -> None: ...

    @asynccontextmanager
    async def keep(self) -> AsyncGenerator[None]:
        yield


@dataclass
class ShortBus:
    """A bus with a few messages, after which its subscription ends."""

    deliveries: list[OneMessage]
    consumers: list[str] = field(default_factory=list[str])
    published: list[Payload] = field(default_factory=list[Payload])

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(
        self, payload: Payload, *, sender_id: str, trace_id: str | None = None
    ) -> str:
        self.published.append(payload)
        return sender_id

    async def publish_many(
        self, payloads: Sequence[Payload], *, sender_id: str, trace_id: str | None = None
    ) -> Sequence[str]:
        return [
            await self.publish(each, sender_id=sender_id, trace_id=trace_id) for each in payloads
        ]

    def publish_nowait(
        self, payload: Payload, *, sender_id: str, trace_id: str | None = None
    ) -> None: ...

    async def flush(self, timeout_seconds: float) -> bool:
        return timeout_seconds > 0

    async def create_group(self, topics: Collection[TopicNames], *, group: str) -> None: ...

    async def remove_group(self, topics: Collection[TopicNames], *, group: str) -> None: ...

    async def subscribe(
        self,
        topics: Collection[TopicNames],
        *,
        group: str,
        consumer: str,
        prefetch: int = 1,
        exclusive: bool = False,
        stop: asyncio.Event | None = None,
    ) -> AsyncGenerator[OneMessage]:
        assert not exclusive
        assert topics, group
        assert stop is None
        assert prefetch == 1  # workers share slow work evenly
        self.consumers.append(consumer)
        for delivery in self.deliveries:
            yield delivery

    async def read(
        self,
        topics: Collection[TopicNames],
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[Record]:
        assert not (topics, since, until, follow)
        yield Record(topic=TopicNames.INNOVATION_FIELD_REPORTS, position="1", data=b"")

    async def replay(
        self, topics: Collection[TopicNames], *, group: str, since: datetime | str | None = None
    ) -> None: ...

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        return list[DeadLetter]()[:limit]

    async def requeue(self, letter_id: str) -> None:
        raise NotFoundError(letter_id)

    async def health(self) -> BusHealth:
        return BusHealth(address="short", is_reachable=True)

    async def group_losses(self) -> Sequence[GroupLosses]:
        return []

    @property
    def traffic(self) -> BusTraffic:
        return BusTraffic(published={}, groups=[])

    @property
    def lost(self) -> Mapping[TopicNames, int]:
        return {}


@dataclass
class Doing:
    """A worker that does what it is told with each message."""

    work: Callable[[], Sequence[Payload]]
    name: str = "doing"
    topics: frozenset[TopicNames] = frozenset({TopicNames.INNOVATION_FIELD_REPORTS})

    def handle(self, payload: Payload) -> Sequence[Payload]:
        assert payload == REPORT
        return self.work()


def _bus(num_messages: int = 1) -> ShortBus:
    message = seal(REPORT, sender_id="tamiyo", trace_id="run-1")
    return ShortBus([OneMessage(message) for _ in range(num_messages)])


def _raise(error: BaseException) -> Callable[[], Sequence[Payload]]:
    def work() -> Sequence[Payload]:
        raise error

    return work


def test_what_was_handled_is_published_and_acknowledged() -> None:
    bus = _bus(2)
    asyncio.run(serve(Doing(lambda: [REPORT]), bus, group="g"))
    assert bus.published == [REPORT, REPORT]
    assert all(delivery.acknowledged for delivery in bus.deliveries)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_worker_that_would_end_the_process_ends_its_own_serving_instead(
    error: BaseException,
) -> None:
    bus = _bus()
    with pytest.raises(RuntimeError, match=f"it raised {type(error).__name__}"):
        asyncio.run(serve(Doing(_raise(error)), bus, group="g"))
    assert not bus.deliveries[0].acknowledged


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (NotFoundError("x"), (True, False, "")),
        (BackendUnavailableError("x"), (False, True, "")),
        (MessageError("x"), (False, False, "x")),
    ],
)
def test_an_error_of_ours_is_reported_and_serving_goes_on(
    error: Exception, end: tuple[bool, bool, str]
) -> None:
    bus, reported = _bus(2), list[Exception]()
    asyncio.run(serve(Doing(_raise(error)), bus, group="g", on_error=reported.append))
    assert reported == [error, error]
    for delivery in bus.deliveries:
        assert (delivery.acknowledged, delivery.given_back, delivery.dead_because) == end


def test_serving_ends_though_the_message_in_hand_never_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esper.contracts.serving.GRACE_SECONDS", 0.05)
    begun, never = threading.Event(), threading.Event()

    def hang() -> Sequence[Payload]:
        begun.set()
        never.wait()
        return []

    async def cancel_in_the_middle() -> None:
        serving = asyncio.ensure_future(serve(Doing(hang), _bus(), group="g"))
        await asyncio.to_thread(begun.wait)
        serving.cancel()
        await serving

    try:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cancel_in_the_middle())
    finally:
        never.set()


def test_two_processes_of_one_worker_are_two_consumers() -> None:
    bus = _bus()
    asyncio.run(serve(Doing(list), bus, group="g"))
    (consumer,) = bus.consumers
    assert consumer.startswith("doing.")
    assert str(os.getpid()) in consumer


def test_work_that_takes_too_long_is_left_to_itself() -> None:
    never = threading.Event()
    try:
        with pytest.raises(TimeoutError):
            within(0.01, never.wait, name="slow")
    finally:
        never.set()
    assert within(10, lambda: 3, name="quick") == 3
