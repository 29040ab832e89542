"""One subscription over Redis: hands out what a `GroupReader` reads, tells the server what became of it.

`RedisBus.subscribe` iterates it. Waits out outages, acknowledges in batches, and is never cancelled in
the middle of a command: what the server hands to a reader that is being closed is given back too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from esper.contracts import TopicNames, get_logger
from esper.oona.delivery import SETTLE_LOOK_SECONDS, BusDelivery
from esper.oona.options import RedisOptions
from esper.oona.outbox import backoff
from esper.oona.redis_client import (
    DRIVER_ERRORS,
    Commands,
    connect,
    is_passing,
    patiently,
    unavailable,
)
from esper.oona.redis_exclusive import ExclusiveReader
from esper.oona.redis_group import GroupEntry, GroupReader
from esper.oona.redis_keeper import RedisKeeper
from esper.oona.redis_letters import stream_key
from esper.oona.traffic import Traffic

_ACKS = 100
"""More acknowledgements than this, and than the prefetch, do not wait for the next read."""
_ACK_SECONDS = 0.02
"""How long an acknowledgement waits for company."""
_RELEASE_SECONDS = 2.0
_SHORTEST_PAUSE_SECONDS = 0.01
_UNBLOCK_SECONDS = 0.05
"""Between two tries to end a blocking read; the first may come just before the read does."""

_CONNECT_TRIES = 3
"""For how many of these pauses a reader may still be connecting when it is stopped."""

_log = get_logger(__name__)


class RedisConsumer:
    """One consumer of one group; implements `Holder` for its deliveries."""

    def __init__(
        self,
        client: Commands,
        options: RedisOptions,
        topics: Collection[TopicNames],
        *,
        keeper: RedisKeeper,
        group: str,
        consumer: str,
        prefetch: int,
        traffic: Traffic,
        exclusive: bool,
        is_open: Callable[[], bool],
    ) -> None:
        self._tallies = {stream_key(options, t): traffic.group(t, group) for t in topics}
        self._client = client
        self._options = options
        self._is_bus_open = is_open
        self._blocking = connect(options, max_connections=1)
        self._blocking_id: int | None = None
        self._prefetch = prefetch
        self.reader = (ExclusiveReader if exclusive else GroupReader)(
            client,
            self._blocking,
            options,
            topics,
            keeper=keeper,
            group=group,
            consumer=consumer,
            tallies=self._tallies,
        )
        self._acks: dict[str, list[bytes]] = {}
        self._num_acks = 0
        self._sending_acks = asyncio.Lock()
        """Who stops waits for what is on its way."""
        self._ack_timer: asyncio.TimerHandle | None = None
        self._acknowledging: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[GroupEntry | None] | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._leading: asyncio.Task[None] | None = None
        self._is_stopped = False
        self._is_draining = False
        self._stopping: asyncio.Task[None] | None = None

    @property
    def hold_seconds(self) -> float:
        """After how long others get a message that is not renewed."""
        return self._options.reclaim_after_seconds

    @property
    def max_deliveries(self) -> int:
        """How often a message is handed out at most."""
        return self._options.max_deliveries

    def position(self, entry: GroupEntry) -> str:
        """Return the id of the stream entry."""
        return entry.entry_id.decode()

    async def next(self) -> BusDelivery[GroupEntry] | None:
        """Return the next message, however long it takes; None once the consumer is stopped."""
        entry = None if self._is_stopped else self.reader.pop()
        if entry is None and not self._is_draining:
            self._fetching = asyncio.create_task(self._fetch(), name="oona-fetch")
            entry = await asyncio.shield(self._fetching)
        if entry is None:
            while self._is_draining and not self._is_stopped and self.reader.is_holding:
                await asyncio.sleep(SETTLE_LOOK_SECONDS)
            return None
        tally = self._tallies[entry.key]
        tally.received += 1
        if entry.delivery_count > 1:
            tally.redelivered += 1
        return BusDelivery(entry.envelope, entry.delivery_count, entry=entry, holder=self)

    async def attempt(self, entry: GroupEntry, *, counted: bool) -> int:
        """Count a try of an exclusive consumer; return the tries so far, 0 for not to be handled."""
        reader = self.reader
        assert isinstance(reader, ExclusiveReader), "only an exclusive subscription counts tries"
        return await patiently(
            self._options,
            lambda: reader.attempt(entry, counted=counted),
            is_open=self._is_bus_open,
        )

    async def drain_at(self, stop: asyncio.Event) -> None:
        """Once the event is set, hand out what was fetched already and read no more."""
        await stop.wait()
        self._is_draining = True
        with suppress(*DRIVER_ERRORS):  # then the reader notices after its next try
            await self._end_fetching()

    async def stop(self) -> None:
        """End reading, acknowledge what is noted, let others have the rest at once.

        Best effort: where the server is away, they get it when it is overdue. Everyone who calls it
        waits for the same end: a client that is closed does not leave a reader behind.
        """
        if self._stopping is None:
            self._is_stopped = True
            self._stopping = asyncio.create_task(self._stop(), name="oona-stop")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        try:
            if self._ack_timer is not None:
                self._ack_timer.cancel()
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._end_fetching()
                await self._send_acks()
                await self.reader.release()
        except DRIVER_ERRORS as error:
            _log.warning("messages stay with a closed consumer", reason=str(error))
        finally:
            own = (self._fetching, self._housekeeping, self._leading, self._acknowledging)
            tasks = {task for task in own if task is not None}
            for task in tasks:
                task.cancel()
            try:
                await _ended(tasks)
            finally:  # also if the loop ends and cancels us: the connection is ours to close
                with suppress(*DRIVER_ERRORS):
                    await self._blocking.aclose()

    async def acknowledge(self, entry: GroupEntry) -> None:
        """Note that the message was handled; with a prefetch, the server is told a little later."""
        self.reader.note_done(entry)
        # What was tried before must not be blamed for the next one that kills its process.
        if self._prefetch == 1 or self._is_stopped or entry.delivery_count > 1:
            await self._patiently(
                lambda: self._client.xack(entry.key, self.reader.group, entry.entry_id)
            )
            self._tallies[entry.key].count_acknowledged([entry.entry_id])
            return
        self._acks.setdefault(entry.key, []).append(entry.entry_id)
        self._num_acks += 1
        if self._num_acks > max(_ACKS, self._prefetch):
            await self._send_acks_quietly()
        elif self._ack_timer is None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(_ACK_SECONDS, self._acknowledge_soon)

    async def give_back(self, entry: GroupEntry, *, delay_seconds: float, counted: bool) -> None:
        """Let the group have it again after the delay."""
        await self._patiently(
            lambda: self.reader.give_back(entry, delay_seconds=delay_seconds, counted=counted)
        )

    async def bury(self, entry: GroupEntry, reason: str) -> None:
        """Move it to the dead letters."""
        await self._patiently(lambda: self.reader.bury(entry, reason))

    async def renew(self, entry: GroupEntry) -> None:
        """Renew the hold; without a server, nobody else can have the message either."""
        with suppress(*DRIVER_ERRORS):
            await self.reader.renew(entry)

    async def _patiently(self, call: Callable[[], Awaitable[object]]) -> None:
        await patiently(self._options, call, is_open=self._is_bus_open)

    async def _fetch(self) -> GroupEntry | None:
        """Read until there is something, however long the outages."""
        if self._housekeeping is None:
            self._housekeeping = asyncio.create_task(self._keep_house(), name="oona-house")
            if isinstance(self.reader, ExclusiveReader):
                self._leading = asyncio.create_task(self.reader.lease.keep(), name="oona-lease")
        pauses, reported = backoff(), False
        while not (self._is_stopped or self._is_draining):
            try:
                if self._blocking_id is None:
                    self._blocking_id = await self._blocking.client_id()
                await self._read_and_acknowledge()
            except DRIVER_ERRORS as error:
                self._blocking_id = None
                if self._is_stopped:
                    break
                if not is_passing(error):
                    raise unavailable(self._options, error) from error
                if not reported:
                    reported = True
                    _log.warning(
                        "consumer waits for the bus", group=self.reader.group, reason=str(error)
                    )
                await asyncio.sleep(next(pauses))
                continue
            if reported:
                _log.warning("consumer is connected again", group=self.reader.group)
                pauses, reported = backoff(), False
            if not self._is_stopped and (entry := self.reader.pop()):
                return entry
        return None

    async def _read_and_acknowledge(self) -> None:
        """Read; acknowledge at the same time, on another connection, if that is worth a round trip.

        What is not acknowledged yet and what is read are together no more than the prefetch. Before a
        suspect is handed out everything is acknowledged: what was handled must not be blamed with it.
        """
        if 2 * self._num_acks < self._prefetch and not self.reader.has_suspects:
            await self.reader.fetch(self._prefetch - self._num_acks)
            return
        acknowledging = asyncio.create_task(self._send_acks(), name="oona-acks")
        try:
            await self.reader.fetch(self._prefetch)
        finally:  # neither is left half done if the other fails
            await _ended({acknowledging})
        acknowledging.result()

    def _acknowledge_soon(self) -> None:
        self._ack_timer = None
        if self._num_acks and not self._is_stopped:
            self._acknowledging = asyncio.create_task(self._send_acks_quietly(), name="oona-acks")

    async def _send_acks_quietly(self) -> None:
        """Try to; what could not be sent stays noted, and goes with the next read."""
        with suppress(*DRIVER_ERRORS):
            await self._send_acks()

    async def _end_fetching(self) -> None:
        """Have the server end a blocking read, so that nothing is handed to nobody."""
        num_tries = 0
        while self._fetching is not None and not self._fetching.done():
            if self._blocking_id is not None:
                await self._client.client_unblock(self._blocking_id)
            elif num_tries >= _CONNECT_TRIES:
                return  # it waits out an outage
            num_tries += 1
            await asyncio.wait({self._fetching}, timeout=_UNBLOCK_SECONDS)

    async def _send_acks(self) -> None:
        async with self._sending_acks:
            if self._num_acks:
                await self._send_noted_acks()

    async def _send_noted_acks(self) -> None:
        acks, self._acks, self._num_acks = self._acks, {}, 0
        pipeline = self._client.pipeline(transaction=False)
        for key, ids in acks.items():
            pipeline.xack(key, self.reader.group, *ids)
        try:
            await pipeline.execute(raise_on_error=True)
        except BaseException:  # cancelled too: acknowledging twice is harmless, forgetting is not
            for key, ids in acks.items():
                self._acks.setdefault(key, []).extend(ids)
                self._num_acks += len(ids)
            raise
        for key, ids in acks.items():
            self._tallies[key].count_acknowledged(ids)

    async def _keep_house(self) -> None:
        """Do what must not wait for a slow handler."""
        while not self._is_stopped:
            await asyncio.sleep(max(self.reader.pause_seconds, _SHORTEST_PAUSE_SECONDS))
            with suppress(*DRIVER_ERRORS):  # the next read waits the outage out
                await self.reader.release_stale()


async def _ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Wait until all have ended, and see what they raised: with two that fail, only one can tell."""
    for task in tasks:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
    if tasks:
        await asyncio.wait(tasks)
