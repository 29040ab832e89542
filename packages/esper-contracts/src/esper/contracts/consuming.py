"""Runs handlers on a bus: one message at a time, several, in batches, or in order of a key.

`serving` builds workers on it. A handler that returns acknowledges; one that raises gives the message
back or sets it aside (`handlers`).
"""

import asyncio
import os
import socket
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Hashable,
    Sequence,
)
from contextlib import aclosing
from typing import Any, Literal

from esper.contracts.bus_port import Bus, Delivery
from esper.contracts.errors import BackendUnavailableError, ConfigError
from esper.contracts.handlers import Handler, Hands, OnError, Retry
from esper.contracts.logging import get_logger
from esper.contracts.messages import Payload, TopicNames
from esper.contracts.ordering import MAX_WAITING, Lanes

GRACE_SECONDS = 5.0
"""How long messages in hand or fetched may still take once the consumer is told to stop."""

_ASIDE_SECONDS = 1.0
"""A message that was tried before waits so long for another such one to be done."""

_CLEAN_UP_SECONDS = 0.5
"""What a handler that is broken off may take before it is told again."""

_log = get_logger(__name__)


async def consume(
    bus: Bus,
    topics: Collection[TopicNames],
    handler: Handler[Delivery],
    *,
    group: str,
    consumer: str | None = None,
    prefetch: int = 1,
    concurrency: int = 1,
    key: Callable[[Payload], Hashable] | None = None,
    max_waiting: int = MAX_WAITING,
    retry: Retry | None = None,
    on_error: OnError | None = None,
    stop: asyncio.Event | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> None:
    """Call `handler` with each message until stopped or cancelled.

    Returning acknowledges the message, unless the handler has settled it already (`ack`, `nack`,
    `dead_letter`). Raising `BackendUnavailableError` gives it back after a while, uncounted;
    `MessageError` sets it aside with the error as the reason; anything else gives it back after a
    growing delay, counted, and sets it aside when the bus's `max_deliveries` are used up, with the
    last error as the reason. The hold on a message is renewed as long as its handler runs. What the
    handler publishes belongs to the trace of its message.

    Args:
        bus: an open bus that belongs to this event loop.
        topics: what to consume.
        handler: called with a `Delivery` (or, through `typed`, with the payload); if it is not async,
            in a thread.
        group: the consumer group; its consumers share the messages.
        consumer: the name within the group; None for one of this process.
        prefetch: how many messages are fetched and acknowledged together.
        concurrency: how many messages are handled at the same time. A message that was tried before
            has no other such one beside it, so that one which kills its process is found alone.
        key: handle messages of the same key one after another, in the order of their topic, also
            when one is tried again: its key waits, others go on. Of the group's consumers, only one
            is active then, and another takes over within seconds when it dies; all of them must be
            given a key. Handlers raise instead of calling `nack`.
        max_waiting: with a key, how many messages may wait for an earlier one of theirs; when there
            are more, no key gets new ones.
        retry: when to try again.
        on_error: told of each failure; what it raises ends the consuming.
        stop: once it is set, what is in hand or fetched is handled, for `grace_seconds` at most; the
            rest is given back uncounted, and `consume` returns.
        grace_seconds: see `stop`; also how long a sync handler is waited for when cancelled.

    Raises:
        ConfigError: if a number is impossible.
        BackendUnavailableError: if the bus is not open.

    """
    if concurrency < 1 or max_waiting < 1:
        raise ConfigError(
            f"concurrency is {concurrency} and max_waiting {max_waiting}; expected 1 or more"
        )
    subscription = bus.subscribe(
        topics,
        group=group,
        consumer=consumer or consumer_name(group),
        prefetch=prefetch,
        exclusive=key is not None,
        stop=stop,
    )
    hands = Hands(
        name=group, retry=retry or Retry(), on_error=on_error, grace_seconds=grace_seconds
    )
    async with aclosing(subscription), hands:
        if key is None:
            parts = [_Workers(subscription, handler, hands).run] * concurrency
        else:
            lanes = Lanes(subscription, handler, hands, key=key, max_waiting=max_waiting)
            parts = [lanes.pull, *[lanes.run] * concurrency]
        await _run(parts, hands, stop, grace_seconds)


async def consume_batches(
    bus: Bus,
    topics: Collection[TopicNames],
    handler: Handler[Sequence[Delivery]],
    *,
    group: str,
    consumer: str | None = None,
    max_size: int = 100,
    max_seconds: float = 1.0,
    retry: Retry | None = None,
    on_error: OnError | None = None,
    stop: asyncio.Event | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> None:
    """Call `handler` with several messages at once until stopped or cancelled.

    Returning acknowledges all of the batch that the handler has not settled itself. When it raises,
    it gets those that it has not settled one by one, so that a bad message is found and its
    neighbours do not suffer; what it raises for one message counts as in `consume`. A message that
    was tried before comes alone.

    Args:
        bus: see `consume`, here and where nothing else is said.
        topics: what to consume.
        handler: called with 1 to `max_size` messages.
        group: the consumer group.
        consumer: the name within the group.
        max_size: messages in a batch at most; so many are fetched together, too.
        max_seconds: how long the first message of a batch waits for more, at most.
        retry: when to try again.
        on_error: told of each failure of a single message.
        stop: ends the consuming in good order.
        grace_seconds: how long that may take.

    Raises:
        ConfigError: if a number is impossible.
        BackendUnavailableError: if the bus is not open.

    """
    if max_size < 1 or not max_seconds >= 0:
        raise ConfigError(
            f"max_size is {max_size} and max_seconds {max_seconds}; expected 1 or more, 0 or more"
        )
    subscription = bus.subscribe(
        topics,
        group=group,
        consumer=consumer or consumer_name(group),
        prefetch=max_size,
        stop=stop,
    )
    hands = Hands(
        name=group, retry=retry or Retry(), on_error=on_error, grace_seconds=grace_seconds
    )
    batches = _Batches(subscription, handler, hands, max_size=max_size, max_seconds=max_seconds)
    async with aclosing(subscription), hands:
        try:
            await _run([batches.run], hands, stop, grace_seconds)
        finally:
            await batches.close()


def consumer_name(base: str) -> str:
    """Return a name that no other process consuming for the same purpose has."""
    return f"{base}.{socket.gethostname()}.{os.getpid()}"


async def _run(
    parts: Sequence[Callable[[], Coroutine[None, None, None]]],
    hands: Hands,
    stop: asyncio.Event | None,
    grace_seconds: float,
) -> None:
    """Run all parts to their end, with limited time once told to stop; one that raises ends all."""
    tasks = {asyncio.create_task(part()) for part in parts}
    stopping = asyncio.create_task((stop or asyncio.Event()).wait())
    try:
        await _until_done(tasks, or_else=stopping)
        if stopping.done() and not _failed(tasks):
            await asyncio.wait(tasks, timeout=grace_seconds, return_when=asyncio.FIRST_EXCEPTION)
            if not all(task.done() for task in tasks):
                # Before anything is cancelled: the subscription ends with that, and what it has
                # yielded counts as tried.
                await hands.give_back_all()
    finally:
        is_late = stopping.done()
        stopping.cancel()
        await _cancel(tasks, patience_seconds=_CLEAN_UP_SECONDS if is_late else None)
    for task in _failed(tasks):
        task.result()


async def _until_done(
    tasks: Collection[asyncio.Task[None]], *, or_else: asyncio.Task[Literal[True]]
) -> None:
    """Wait until all tasks are done, one has failed, or something else has happened."""
    open_tasks = set(tasks)
    while open_tasks and not or_else.done() and not _failed(tasks):
        await asyncio.wait({or_else, *open_tasks}, return_when=asyncio.FIRST_COMPLETED)
        open_tasks = {task for task in tasks if not task.done()}


def _failed(tasks: Collection[asyncio.Task[None]]) -> list[asyncio.Task[None]]:
    return [t for t in tasks if t.done() and not t.cancelled() and t.exception() is not None]


async def _cancel(
    tasks: Collection[asyncio.Task[Any]], *, patience_seconds: float | None = None
) -> None:
    """Cancel tasks and wait until they have ended; those that take too long are told again."""
    while open_tasks := {task for task in tasks if not task.done()}:
        for task in open_tasks:
            task.cancel()
        await asyncio.wait(open_tasks, timeout=patience_seconds)


class _Workers:
    """Several takers of one subscription, each handling one message at a time."""

    def __init__(
        self, subscription: AsyncGenerator[Delivery], handler: Handler[Delivery], hands: Hands
    ) -> None:
        self._subscription = subscription
        self._hands = hands
        self._call = hands.caller(handler)
        self._turn = asyncio.Lock()
        self._has_suspect = False

    async def run(self) -> None:
        """Take messages and handle them, one after another, until there are no more."""
        while True:
            async with self._turn:
                delivery = await anext(self._subscription, None)
            if delivery is None:
                return
            if delivery.delivery_count == 1:
                await self._handle(delivery)
            elif self._has_suspect:
                await delivery.nack(delay_seconds=_ASIDE_SECONDS, counted=False)
            else:
                self._has_suspect = True
                try:
                    await self._handle(delivery)
                finally:
                    self._has_suspect = False

    async def _handle(self, delivery: Delivery) -> None:
        error = await self._hands.handle(delivery, self._call)
        if error is not None:
            await self._hands.give_up(delivery, error)


class _Batches:
    """One taker of a subscription that collects messages before it hands them over."""

    def __init__(
        self,
        subscription: AsyncGenerator[Delivery],
        handler: Handler[Sequence[Delivery]],
        hands: Hands,
        *,
        max_size: int,
        max_seconds: float,
    ) -> None:
        self._subscription = subscription
        self._hands = hands
        self._call = hands.caller(handler)
        self._max_size = max_size
        self._max_seconds = max_seconds
        self._next: asyncio.Task[Delivery | None] | None = None

    async def run(self) -> None:
        """Collect and handle, batch after batch, until there are no more messages."""
        while (first := await self._pull(None)) is not None:
            batch = [first]
            alone = await self._fill(batch) if first.delivery_count == 1 else None
            await self._handle(batch)
            if alone is not None:
                await self._handle([alone])

    async def close(self) -> None:
        """Stop waiting for the next message."""
        if self._next is not None:
            await _cancel({self._next})

    async def _fill(self, batch: list[Delivery]) -> Delivery | None:
        """Collect more messages for the batch; return one that must come alone, if that ends it."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._max_seconds
        self._hands.take(batch)
        while len(batch) < self._max_size:
            delivery = await self._pull(max(0.0, deadline - clock()))
            if delivery is None:
                return None
            self._hands.take((delivery,))
            if delivery.delivery_count > 1:
                return delivery
            batch.append(delivery)
        return None

    async def _pull(self, timeout_seconds: float | None) -> Delivery | None:
        """Return the next message; None if there is none in time, or never again.

        Waiting is not cancelled when the time is up: that would end the subscription.
        """
        if self._next is None:
            self._next = asyncio.create_task(anext(self._subscription, None))
        await asyncio.wait({self._next}, timeout=timeout_seconds)
        if not self._next.done():
            return None
        pulled, self._next = self._next, None
        return pulled.result()

    async def _handle(self, batch: Sequence[Delivery]) -> None:
        """Hand the batch over; if that fails, each of its messages alone."""
        await self._hands.ready()
        self._hands.take(batch)
        try:
            await self._call(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the messages' end depends on it
            await self._part(batch, error)
        else:
            self._hands.drop(batch)
            await self._hands.acknowledge(batch)

    async def _part(self, batch: Sequence[Delivery], error: Exception) -> None:
        unsettled = [delivery for delivery in batch if not delivery.is_settled]
        if len(batch) == 1 or isinstance(error, BackendUnavailableError):
            self._hands.drop(batch)
            for delivery in unsettled:
                await self._hands.give_up(delivery, error)
            return
        _log.warning("a batch failed; its messages are handled alone", error=repr(error))
        for delivery in unsettled:
            await self._handle([delivery])
        self._hands.drop(batch)
