"""Messages in order of their key: each key has a lane, and a lane has one message in hand at a time.

`consuming.consume` runs it when it is given a key, on a subscription that no other consumer of the group
shares. A message that failed stays at the head of its lane until it is tried again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import dataclass, field

from esper.contracts.bus_port import Delivery
from esper.contracts.errors import BackendUnavailableError
from esper.contracts.handlers import Handler, Hands
from esper.contracts.messages import Payload

MAX_WAITING = 10_000
"""Messages that wait in lanes; about 10 MB at a kilobyte each."""


@dataclass(kw_only=True, eq=False)
class _Lane:
    """The messages of one key, oldest first; the first is in hand or waits for its next try."""

    waiting: deque[Delivery] = field(default_factory=deque[Delivery])
    is_counted: bool = False
    """The next try of the first was counted already: a server was away, which does not count."""


class Lanes:
    """Pulls messages into lanes, and lets several takers handle the first of each."""

    def __init__(
        self,
        subscription: AsyncGenerator[Delivery],
        handler: Handler[Delivery],
        hands: Hands,
        *,
        key: Callable[[Payload], Hashable],
        max_waiting: int,
    ) -> None:
        self._subscription = subscription
        self._hands = hands
        self._call = hands.caller(handler)
        self._key = key
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._num_active = 0
        """Lanes whose first message is in hand or may be taken now."""
        self._lanes: dict[Hashable, _Lane] = {}
        self._ready: asyncio.Queue[Hashable] = asyncio.Queue()
        self._progress = asyncio.Event()
        self._is_pulling = True

    async def pull(self) -> None:
        """Put messages into their lanes until there are no more."""
        while (delivery := await anext(self._subscription, None)) is not None:
            await self._sort(delivery)
            while self._num_waiting >= self._max_waiting:
                await self._next_progress()
        self._is_pulling = False
        self._progress.set()

    async def run(self) -> None:
        """Handle the first message of lane after lane, until there is nothing left to do now."""
        while self._is_pulling or self._num_active:
            if self._ready.empty():
                await self._next_progress()
            else:
                await self._advance(self._ready.get_nowait())

    async def _next_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    async def _sort(self, delivery: Delivery) -> None:
        try:
            key = self._key(delivery.payload())
            hash(key)
        except Exception as error:  # noqa: BLE001 - the key is the caller's code
            self._hands.report(delivery, error)
            await self._hands.set_aside(delivery, f"it has no key to be ordered by: {error!r}")
            return
        self._num_waiting += 1
        lane = self._lanes.setdefault(key, _Lane())
        lane.waiting.append(delivery)
        if len(lane.waiting) == 1:
            self._make_ready(key)

    def _make_ready(self, key: Hashable) -> None:
        self._num_active += 1
        self._ready.put_nowait(key)
        self._progress.set()

    async def _advance(self, key: Hashable) -> None:
        """Try the first message of a lane; the lane goes on when it is settled."""
        lane = self._lanes[key]
        pause_seconds = await self._try(lane)
        if pause_seconds is not None:
            asyncio.get_running_loop().call_later(pause_seconds, self._make_ready, key)
        else:
            lane.waiting.popleft()
            self._num_waiting -= 1
            if lane.waiting:
                self._make_ready(key)
            else:
                del self._lanes[key]
        self._num_active -= 1
        self._progress.set()

    async def _try(self, lane: _Lane) -> float | None:
        """Handle the first message; return the seconds until its next try, None if it is settled."""
        await self._hands.ready()
        delivery = lane.waiting[0]
        try:
            is_ours = await delivery.attempt(counted=not lane.is_counted)
        except BackendUnavailableError as error:
            return self._hands.delay_seconds(delivery, error)
        lane.is_counted = False
        if not is_ours:
            return None  # it comes again, or was tried too often
        error = await self._hands.handle(delivery, self._call)
        if error is None or await self._hands.condemn(delivery, error) or delivery.is_settled:
            return None
        lane.is_counted = isinstance(error, BackendUnavailableError)
        return self._hands.delay_seconds(delivery, error)
