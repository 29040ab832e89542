"""One consumer of one group on Redis streams: what to hand out next.

Takes over overdue entries of other consumers (`redis_claim`), reads new ones (XREADGROUP), and keeps
what is read but not yet handed out. `redis_consumer` drives it, waits out outages and hands out.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from redis.exceptions import ResponseError

from esper.contracts import MessageError, TopicNames
from esper.oona.delivery import exhausted
from esper.oona.envelope import Envelope, decode
from esper.oona.options import RedisOptions
from esper.oona.redis_claim import FROM_THE_START, ClaimedEntry, claim_overdue
from esper.oona.redis_client import Commands, Fields
from esper.oona.redis_delay import park
from esper.oona.redis_keeper import RedisKeeper, order
from esper.oona.redis_letters import MESSAGE_FIELD, Failed, file_letter, stream_key
from esper.oona.redis_membership import sweep_consumers
from esper.oona.redis_watch import StreamWatch
from esper.oona.traffic import GroupTally

_LONGEST_BLOCK_SECONDS = 1.0
"""A reader looks up at least this often, so that it notices overdue entries."""
_LONGEST_PAUSE_SECONDS = 5.0
_GLANCE_SECONDS = 0.02
"""While overdue entries are at hand, new ones that were not there are looked for this often."""
_LATE_SECONDS = 0.005
"""Clocks are read in milliseconds: what is looked for too early is missed until the next look."""
_DAY_MS = 86_400_000
_SWEEP_SECONDS = 60.0
_SILENT_SECONDS = 3600.0
"""After this the name of a consumer that holds nothing goes."""
_RELEASED = "released"
"""Holds what a consumer left behind that has ended, until somebody takes it."""


@dataclass(kw_only=True, eq=False, slots=True)
class GroupEntry:
    """One entry of a stream in the hands of this consumer."""

    key: str
    topic: TopicNames
    entry_id: bytes
    envelope: Envelope
    delivery_count: int
    held_since: float
    """Monotonic seconds of the reading or the latest renewal."""
    is_handed_out: bool = False


class GroupReader:
    """Reads for one consumer, and remembers what that consumer has not acknowledged.

    Raises the driver's errors; after one it can simply be asked again.

    Args:
        client: for everything that does not block.
        blocking: a client of its own connection, for the reads that wait.
        options: of the bus.
        topics: what to read.
        keeper: tends what is read, and counts what is lost.
        group: for whom.
        consumer: by whom.
        tallies: by stream, where to count what is set aside.

    """

    def __init__(
        self,
        client: Commands,
        blocking: Commands,
        options: RedisOptions,
        topics: Collection[TopicNames],
        *,
        keeper: RedisKeeper,
        group: str,
        consumer: str,
        tallies: Mapping[str, GroupTally],
    ) -> None:
        self.group = group
        self._tallies = tallies
        self._watch = StreamWatch(client, options, keeper, group)
        self._client = client
        self._blocking = blocking
        self._options = options
        self._consumer = consumer
        self._topics = {stream_key(options, topic): topic for topic in topics}
        self._cursor = dict.fromkeys(self._topics, FROM_THE_START)
        self._buffer: deque[GroupEntry] = deque()
        self._suspects: deque[GroupEntry] = deque()
        """Taken over, and not yet counted as tried."""
        self._held: dict[tuple[str, bytes], GroupEntry] = {}
        self._reclaim_ms = max(1, round(options.reclaim_after_seconds * 1000))
        self.pause_seconds = min(options.reclaim_after_seconds / 4, _LONGEST_PAUSE_SECONDS)
        """How often to look for what is overdue."""
        self._look_at = 0.0
        self._due: list[float] = []
        """Heap of when something that was given back here is due."""
        self._glance_at = 0.0
        self._inspect_at = 0.0
        self._sweep_at = 0.0
        self._may_claim = True

    def pop(self) -> GroupEntry | None:
        """Hand out the next entry that was read and is still ours, if there is one."""
        while self._buffer:
            entry = self._buffer.popleft()
            if self.is_ours(entry):
                entry.is_handed_out = True
                return entry
            self.forget(entry)  # it comes again, to this consumer or to another
        return None

    async def fetch(self, limit: int) -> None:
        """Read what comes next, at most `limit` entries per topic; perhaps nothing, after a moment."""
        try:
            if time.monotonic() >= self._inspect_at:
                await self._inspect()
            # Every other time at most, so that failing messages do not hold up the new ones.
            if self._may_claim and self._has_overdue():
                self._may_claim = False
                if await self._try_overdue(limit):
                    return
            self._may_claim = True
            if not self._has_overdue():
                await self._read_new(limit, self._seconds_to_block())
            elif time.monotonic() >= self._glance_at:
                await self._read_new(limit, None)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            for topic in self._topics.values():
                await self._watch.create(topic)

    def is_ours(self, entry: GroupEntry) -> bool:
        """Tell whether nobody can have taken the entry over since it was read or renewed."""
        return time.monotonic() - entry.held_since < self._options.reclaim_after_seconds

    def forget(self, entry: GroupEntry) -> bool:
        """Note that the entry is no longer in hand; tell whether it was."""
        return self._held.pop((entry.key, entry.entry_id), None) is not None

    def note_done(self, entry: GroupEntry) -> None:
        """Forget an entry that was handled."""
        self.forget(entry)
        self._watch.note_done(entry.topic)

    def _is_latest(self, entry: GroupEntry) -> bool:
        """Tell whether the entry is in hand, and was not read again since: late words concern nobody."""
        return self._held.get((entry.key, entry.entry_id)) is entry

    async def renew(self, entry: GroupEntry) -> None:
        """Start the time anew after which others get the entry."""
        if self._is_latest(entry) and self.is_ours(entry):
            now = time.monotonic()
            await self._set_idle(entry.key, [entry.entry_id], idle_ms=0)
            entry.held_since = now

    async def give_back(
        self, entry: GroupEntry, *, delay_seconds: float = 0.0, counted: bool = True
    ) -> None:
        """Make the entry overdue after the delay, unless others may have it already."""
        if not self.is_ours(entry) or not self._is_latest(entry):
            return
        delay_ms = round(delay_seconds * 1000)
        if delay_ms > self._reclaim_ms:
            await park(
                self._client,
                self._options,
                entry.topic,
                self.group,
                entry.entry_id,
                delay_ms=delay_ms,
            )
        idle_ms = max(self._reclaim_ms - delay_ms, 0) if delay_ms else _DAY_MS
        retry_count = None if counted else entry.delivery_count - 1
        await self._set_idle(entry.key, [entry.entry_id], idle_ms=idle_ms, retry_count=retry_count)
        self.forget(entry)
        due_at = time.monotonic() + delay_seconds + _LATE_SECONDS
        heapq.heappush(self._due, due_at)
        self._look_at = min(self._look_at, due_at)

    @property
    def is_holding(self) -> bool:
        """Whether something that was read is neither settled nor overdue."""
        return any(self.is_ours(entry) for entry in self._held.values())

    @property
    def has_suspects(self) -> bool:
        """Whether the next entry may be one that kills its consumer."""
        return bool(self._suspects)

    def look_soon(self) -> None:
        """Look for overdue entries next, because there may be some."""
        self._look_at = 0.0

    async def release_stale(self) -> None:
        """Let others have what waits behind a slow handler, before they take it for abandoned."""
        patience = self._options.reclaim_after_seconds / 2
        for waiting in (self._buffer, self._suspects):
            if waiting and time.monotonic() - waiting[0].held_since > patience:
                released = list(waiting)
                waiting.clear()
                await self._release(released, to=self._consumer)

    async def release(self) -> None:
        """Let others have at once what was not acknowledged, and take this consumer's name back."""
        held = list(self._held.values())
        self._buffer.clear()
        self._suspects.clear()
        await self._release(held, to=_RELEASED)
        await sweep_consumers(self._client, self._topics, self.group, name=self._consumer)

    async def bury(self, entry: GroupEntry, reason: str) -> None:
        """Move the entry to the dead letters."""
        await self._file(
            entry.key,
            entry.entry_id,
            entry.envelope.data,
            reason,
            delivery_count=entry.delivery_count,
        )
        self.forget(entry)

    async def _release(self, entries: Iterable[GroupEntry], *, to: str) -> None:
        """Make entries overdue for anyone; what was not handed out was not tried."""
        ours = [entry for entry in entries if self.is_ours(entry)]
        order: Callable[[GroupEntry], tuple[str, int]] = lambda entry: (  # noqa: E731
            entry.key,
            -1 if entry.is_handed_out else entry.delivery_count - 1,
        )
        for (key, retry_count), group in groupby(sorted(ours, key=order), order):
            ids = [entry.entry_id for entry in group]
            await self._set_idle(
                key,
                ids,
                idle_ms=_DAY_MS,
                retry_count=None if retry_count < 0 else retry_count,
                holder=to,
            )
        for entry in entries:
            self.forget(entry)

    async def _set_idle(
        self,
        key: str,
        ids: list[bytes],
        *,
        idle_ms: int,
        retry_count: int | None = None,
        holder: str | None = None,
    ) -> int:
        """Set since when entries are held, and perhaps more; count those that are still pending."""
        try:
            done = await self._client.xclaim(
                key,
                self.group,
                consumername=holder or self._consumer,
                min_idle_time=0,
                message_ids=ids,
                idle=idle_ms,
                retrycount=retry_count,
                justid=True,
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return 0  # a group that vanished has nothing in hand, and hands it out anew
        return len(done)

    async def _inspect(self) -> None:
        for topic in self._topics.values():
            await self._watch.look(topic)
        self._inspect_at = time.monotonic() + self.pause_seconds
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS
            silent_seconds = max(_SILENT_SECONDS, 2 * self._options.reclaim_after_seconds)
            await sweep_consumers(
                self._client, self._topics, self.group, idle_seconds=silent_seconds
            )

    def _has_overdue(self) -> bool:
        """Tell whether overdue entries are at hand, or it is time to look for some."""
        return bool(self._suspects) or time.monotonic() >= self._look_at

    async def _try_overdue(self, limit: int) -> bool:
        """Make an overdue entry the next to be handed out; tell whether anything was found."""
        while self._suspects:
            entry = self._suspects.popleft()
            if await self._count_try(entry):
                self._buffer.appendleft(entry)
                return True
        for key, topic in self._topics.items():
            claim = await claim_overdue(
                self._client,
                self._options,
                topic,
                group=self.group,
                consumer=self._consumer,
                cursor=self._cursor[key],
                limit=limit,
            )
            self._cursor[key] = claim.cursor
            self._watch.count_trimmed(topic, claim.num_gone)
            for claimed in claim.entries:
                await self._take_over(key, claimed)
            if claim.entries or claim.num_gone or claim.num_parked:
                return True
        now = time.monotonic()
        while self._due and self._due[0] <= now:
            heapq.heappop(self._due)
        self._look_at = min([now + self.pause_seconds, *self._due[:1]])
        return False

    async def _count_try(self, entry: GroupEntry) -> bool:
        """Count a suspect as tried, on the server; tell whether it still waits and is ours."""
        if self.is_ours(entry):
            now = time.monotonic()
            count = entry.delivery_count
            if await self._set_idle(entry.key, [entry.entry_id], idle_ms=0, retry_count=count):
                entry.held_since = now
                return True
        self.forget(entry)
        return False

    async def _take_over(self, key: str, claimed: ClaimedEntry) -> None:
        """Put a claimed entry where it is handed out, or file it if it was tried too often."""
        count = claimed.delivery_count
        if count >= self._options.max_deliveries:
            data = claimed.fields.get(MESSAGE_FIELD.encode(), b"")
            await self._file(key, claimed.entry_id, data, exhausted(count), delivery_count=count)
        elif entry := await self._accept(
            key, claimed.entry_id, claimed.fields, delivery_count=count + 1
        ):
            if claimed.is_tried:
                self._buffer.appendleft(entry)
            elif count:
                self._suspects.append(entry)
            else:
                self._buffer.append(entry)

    def _seconds_to_block(self) -> float:
        until_look = self._look_at - time.monotonic()
        return min(self.pause_seconds, _LONGEST_BLOCK_SECONDS, max(until_look, 0.001))

    async def _read_new(self, limit: int, block_seconds: float | None) -> None:
        """Read new entries; None: without waiting for them."""
        reply = await self._blocking.xreadgroup(
            self.group,
            self._consumer,
            streams=dict.fromkeys(self._topics, ">"),
            count=limit,
            block=None if block_seconds is None else max(1, round(block_seconds * 1000)),
        )
        if not reply:
            self._glance_at = time.monotonic() + _GLANCE_SECONDS
        for raw_key, found in reply or []:
            key = raw_key.decode()
            for entry_id, fields in found:
                if entry := await self._accept(key, entry_id, fields or {}, delivery_count=1):
                    self._buffer.append(entry)
        if len(reply or []) > 1:
            self._buffer = deque(sorted(self._buffer, key=lambda entry: order(entry.entry_id)))

    async def _accept(
        self, key: str, entry_id: bytes, fields: Fields, *, delivery_count: int
    ) -> GroupEntry | None:
        """Hold an entry that is a message; file one that is none."""
        topic = self._topics[key]
        data = fields.get(MESSAGE_FIELD.encode())
        try:
            if data is None:
                raise MessageError(f"an entry of {key} has no field {MESSAGE_FIELD!r}")
            envelope = decode(data, topic=topic)
        except MessageError as error:
            await self._file(key, entry_id, data or b"", str(error), delivery_count=delivery_count)
            return None
        entry = GroupEntry(
            key=key,
            topic=topic,
            entry_id=entry_id,
            envelope=envelope,
            delivery_count=delivery_count,
            held_since=time.monotonic(),
        )
        self._held[key, entry_id] = entry
        return entry

    async def _file(
        self, key: str, entry_id: bytes, data: bytes, reason: str, *, delivery_count: int
    ) -> None:
        failed = Failed(
            topic=self._topics[key],
            group=self.group,
            entry_id=entry_id,
            delivery_count=delivery_count,
            data=data,
            reason=reason,
        )
        if await file_letter(self._client, self._options, failed):
            self._tallies[key].dead_lettered += 1
