"""One message and its handler: called, kept from others meanwhile, and settled as the outcome says.

`consuming` and `ordering` decide which message comes next and hand it to a `Hands`.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass

from esper.contracts.bus_port import Delivery
from esper.contracts.errors import (
    BackendUnavailableError,
    ConfigError,
    EsperError,
    MessageError,
)
from esper.contracts.logging import get_logger
from esper.contracts.messages import Payload
from esper.contracts.threads import in_thread
from esper.contracts.tracing import handling
from esper.contracts.words import type_of

type Handler[T] = Callable[[T], Awaitable[object] | object]
"""Async, or sync and then called in a thread of its own. What it returns is ignored."""

type OnError = Callable[[Delivery, Exception], None]
"""Called in the event loop with each failure, before it is settled; raises to end the consuming."""

GIVE_BACK_SECONDS = 2.0
"""How long giving back may take at the end; what is not given back by then is overdue some time."""

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """When a message that failed is tried again; how often is the bus's `max_deliveries`."""

    first_seconds: float = 1.0
    """After the first failure; each further one waits twice as long."""
    longest_seconds: float = 300.0
    away_seconds: float = 5.0
    """After a failure because a server was away, which is not counted."""

    def __post_init__(self) -> None:
        """Refuse a delay that is none. Raises `ConfigError`."""
        if not (0 <= self.first_seconds <= self.longest_seconds and self.away_seconds >= 0):
            raise ConfigError(
                f"{self} is impossible; expected 0 <= first_seconds <= longest_seconds and "
                "away_seconds >= 0"
            )

    def delay_seconds(self, delivery_count: int) -> float:
        """Return how long to wait after the failure of the given delivery, counted from 1."""
        return min(self.first_seconds * 2.0 ** min(delivery_count - 1, 60), self.longest_seconds)


def typed[P: Payload](model: type[P], handler: Handler[P]) -> Handler[Delivery]:
    """Turn a handler of payloads into one of deliveries.

    A message with another payload raises `MessageError`, and so goes to the dead letters.
    """

    def payload(delivery: Delivery) -> P:
        found = delivery.payload()
        if not isinstance(found, model):
            raise MessageError(
                f"a handler of {model.__name__} got {type_of(found)}; subscribe it only to "
                "the topic of its model"
            )
        return found

    if not _is_async(handler):
        return lambda delivery: handler(payload(delivery))

    async def handle(delivery: Delivery) -> None:
        result = handler(payload(delivery))
        assert inspect.isawaitable(result)
        await result

    return handle


async def call_in_thread[T](work: Callable[[], T], *, name: str, grace_seconds: float) -> T:
    """Return what `work` returns in a thread of its own, which sees the caller's context variables.

    When cancelled, waits for the thread for the grace time, since it may use what is closed next; then,
    or when cancelled again, the thread is left to itself.
    """
    context = copy_context()
    done = asyncio.wrap_future(in_thread(lambda: context.run(work), name=name))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        finished, _ = await asyncio.wait({done}, timeout=grace_seconds)
        for future in finished:
            future.exception()  # looked at, or asyncio complains; the message comes again anyway
        raise


class Hands:
    """Holds what is being handled; renews the holds, so that a slow handler is no dead one.

    Use it as an async context manager.

    Args:
        name: of the threads of sync handlers.
        retry: when to try again.
        on_error: told of each failure.
        grace_seconds: how long a thread may still take when its handling is cancelled.

    """

    def __init__(
        self, *, name: str, retry: Retry, on_error: OnError | None, grace_seconds: float
    ) -> None:
        self._grace_seconds = grace_seconds
        self._name = name
        self._retry = retry
        self._on_error = on_error
        self._held: dict[int, tuple[Delivery, float]] = {}
        """By identity, with the time since which the handler has it."""
        self._renewing: asyncio.Task[None] | None = None
        self._is_over = False

    async def __aenter__(self) -> "Hands":
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop renewing."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})

    def caller[T](self, handler: Handler[T]) -> Callable[[T], Awaitable[object]]:
        """Return `handler` as something to await, whether it is sync or async."""
        if _is_async(handler):
            return handler  # pyright: ignore[reportReturnType] - seen to be async

        async def call(argument: T) -> object:
            result = await call_in_thread(
                lambda: handler(argument), name=self._name, grace_seconds=self._grace_seconds
            )
            return await result if inspect.isawaitable(result) else result

        return call

    def take(self, deliveries: Collection[Delivery]) -> None:
        """Hold messages from now on."""
        now = asyncio.get_running_loop().time()
        for delivery in deliveries:
            self._held[id(delivery)] = delivery, now
            if self._renewing is None:
                self._renewing = asyncio.create_task(
                    self._renew(delivery.hold_seconds / 3), name="oona-renew"
                )

    def drop(self, deliveries: Collection[Delivery]) -> None:
        """Hold them no longer."""
        for delivery in deliveries:
            self._held.pop(id(delivery), None)

    async def handle(
        self, delivery: Delivery, call: Callable[[Delivery], Awaitable[object]]
    ) -> Exception | None:
        """Let the handler have the message; return how it failed, if it did."""
        if self._is_over:
            await self._settle(delivery, delivery.nack(counted=False))
        await self.ready()
        self.take((delivery,))
        try:
            with handling(delivery):
                await call(delivery)
        except Exception as error:  # noqa: BLE001 - whatever it is, the message's end depends on it
            self.drop((delivery,))
            return error
        self.drop((delivery,))
        await self.acknowledge((delivery,))
        return None

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge what the handler has not settled itself."""
        for delivery in deliveries:
            if not delivery.is_settled:
                await self._settle(delivery, delivery.ack())

    async def give_up(self, delivery: Delivery, error: Exception) -> None:
        """Give a message back or set it aside, as its failure says."""
        if await self.condemn(delivery, error) or delivery.is_settled:
            return
        counted = not isinstance(error, BackendUnavailableError)
        delay = self.delay_seconds(delivery, error)
        await self._settle(delivery, delivery.nack(delay_seconds=delay, counted=counted))

    async def condemn(self, delivery: Delivery, error: Exception) -> bool:
        """Report the failure; set the message aside if it is hopeless, and tell whether it was."""
        self.report(delivery, error)
        reason = self._hopeless(delivery, error)
        if reason is None or delivery.is_settled:
            return False
        await self.set_aside(delivery, reason)
        return True

    async def set_aside(self, delivery: Delivery, reason: str) -> None:
        """Move the message to the dead letters."""
        await self._settle(delivery, delivery.dead_letter(reason))

    def delay_seconds(self, delivery: Delivery, error: Exception) -> float:
        """Return how long to wait until the next try."""
        if isinstance(error, BackendUnavailableError):
            return self._retry.away_seconds
        return self._retry.delay_seconds(delivery.delivery_count)

    def report(self, delivery: Delivery, error: Exception) -> None:
        """Log the failure and tell whoever wants to know."""
        _log.error(
            "message failed",
            worker=self._name,
            topic=delivery.message.topic.value,
            event_id=delivery.message.event_id,
            error=str(error) if isinstance(error, EsperError) else repr(error),
        )
        if self._on_error is not None:
            self._on_error(delivery, error)

    async def ready(self) -> None:
        """Wait, for ever, if nothing more is to be handled: the time is over."""
        if self._is_over:
            await asyncio.Event().wait()

    async def give_back_all(self) -> None:
        """Handle no more, and give back what is in hand, uncounted: its handling is broken off."""
        self._is_over = True
        held = [delivery for delivery, _ in self._held.values() if not delivery.is_settled]
        self._held.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await asyncio.gather(
                    *(self._settle(delivery, delivery.nack(counted=False)) for delivery in held)
                )

    def _hopeless(self, delivery: Delivery, error: Exception) -> str | None:
        """Return why the message will not be tried again; None if it will."""
        if isinstance(error, BackendUnavailableError):
            return None
        if isinstance(error, MessageError):
            return str(error)
        if delivery.attempts_left <= 0:
            return f"failed {delivery.delivery_count} times, the last time with {error!r}"
        return None

    async def _settle(self, delivery: Delivery, settling: Awaitable[None]) -> None:
        """Tell the bus; if it stays away, the message is overdue some time and comes again."""
        try:
            await settling
        except BackendUnavailableError as error:
            _log.warning(
                "the bus was not told what became of a message; it comes again",
                event_id=delivery.message.event_id,
                error=str(error),
            )

    async def _renew(self, interval_seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(interval_seconds)
            due = clock() - interval_seconds
            late = [delivery for delivery, since in self._held.values() if since <= due]
            await asyncio.gather(*(delivery.renew() for delivery in late))


def _is_async(handler: Callable[..., object]) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - an object may have an async one
    )
