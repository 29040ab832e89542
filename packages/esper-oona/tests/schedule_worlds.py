"""The two backends as `test_any_schedule` plays with them: one clock, and the model that each must match.

Nothing waits for time to pass: the buses are shown a clock of ours, and on a real server the entries in
hand are made so much older.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, cast
from unittest.mock import patch
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from schedule_model import (
    IN_FLIGHT,
    MAX_DELIVERIES,
    OPEN,
    RECLAIM_SECONDS,
    Group,
    Letter,
    Model,
    State,
    Tracked,
)

from esper.contracts import Bus, DeadLetter, Delivery, NotFoundError, SystemStatePacket, TopicNames
from esper.contracts.registry import bus_factory
from esper.oona import broker, redis_group
from esper.oona.envelope import decode
from esper.oona.options import RedisOptions
from esper.oona.redis_letters import groups_key
from esper.oona.redis_tending import tend

TOPIC = TopicNames.SYSTEM_EVENTS_EPOCH

_PATIENCE_SECONDS = 60.0
_GLANCE_SECONDS = 6.0
"""A reader looks this often, by our clock, for what others gave back."""

_AGE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = flat[2]
  for _, row in ipairs(redis.call('XPENDING', KEYS[1], group, '-', '+', 1000)) do
    redis.call('XCLAIM', KEYS[1], group, row[2], 0, row[1],
      'IDLE', math.min(row[3] + ARGV[1], 1e12), 'RETRYCOUNT', row[4], 'JUSTID')
  end
  local delays = KEYS[1] .. ':delays:' .. group
  for _, id in ipairs(redis.call('ZRANGE', delays, 0, -1)) do
    redis.call('ZINCRBY', delays, -ARGV[1], id)
  end
end
"""
"""Makes all that is in hand so much older."""

type Place = tuple[str, str]
"""Of a reader: its group and its name."""


@dataclass(eq=False)
class Hand:
    """A message as its consumer knows it, perhaps long after others have it."""

    group: str
    number: int
    delivery: Delivery
    reader: object


class World:
    """A bus with its readers, and the model of what it promises."""

    def __init__(self, url: str, clocks: Sequence[ModuleType]) -> None:
        options = f"reclaim_after_seconds={RECLAIM_SECONDS}&max_deliveries={MAX_DELIVERIES}"
        self.url = f"{url}{'&' if '?' in url else '?'}{options}"
        self.bus: Bus = bus_factory(url)(self.url)
        self.model = Model()
        self.hands: list[Hand] = []
        self.readers: dict[Place, AsyncGenerator[Delivery]] = {}
        self._abandoned: list[AsyncGenerator[Delivery]] = []
        self._num_glances = 0
        self._patches = ExitStack()
        for module in clocks:
            clock = SimpleNamespace(monotonic=self.monotonic)
            self._patches.enter_context(patch.object(module, "time", clock))

    def monotonic(self) -> float:
        return 1_000.0 + self.model.now + self._num_glances * _GLANCE_SECONDS

    async def open(self) -> None:
        await self.bus.open()

    async def close(self) -> None:
        for reader in (*self.readers.values(), *self._abandoned):
            await reader.aclose()
        assert self.bus.lost == {}
        await self.bus.close()
        self._patches.close()

    async def check(self) -> None:
        """Compare what the bus says with the model."""
        letters = await self.bus.dead_letters(limit=1000)
        self.model.check_letters({letter.letter_id: _read(letter) for letter in letters})
        health = await self.bus.health()
        self.model.check_health([group for topic in health.topics for group in topic.groups])

    async def publish(self, numbers: Sequence[int]) -> None:
        packets = [_packet(number) for number in numbers]
        if len(packets) == 1:
            await self.bus.publish(packets[0], sender_id="tests", trace_id="run")
        elif packets:
            await self.bus.publish_many(packets, sender_id="tests", trace_id="run")
        for number in numbers:
            self.model.publish(number)

    async def create_group(self, group: str) -> None:
        await self.bus.create_group([TOPIC], group=group)
        self.model.groups.setdefault(group, Group())

    async def remove_group(self, group: str) -> None:
        for place in [place for place in self.readers if place[0] == group]:
            await self.close_reader(place)
        await self.bus.remove_group([TOPIC], group=group)
        self.model.groups.pop(group, None)

    async def lose_group(self, group: str) -> None:
        """Let a group vanish, where that can happen, and begin anew."""

    async def trim(self) -> None:
        """Have what all have acknowledged trimmed, where that waits for somebody."""

    async def pass_time(self, seconds: float) -> None:
        self.model.now += seconds

    async def take(self, place: Place, number: int) -> None:
        """Take so many messages, or what there is."""
        group, _ = place
        for _ in range(number):
            if group not in self.model.groups or not self.model.available(group):
                break
            self._note(place, await self._next(place))

    async def close_reader(self, place: Place) -> None:
        """End a subscription: what it holds waits for others."""
        reader = self.readers.pop(place, None)
        if reader is None:
            return
        await reader.aclose()
        for hand in self.hands:
            message = self._in_flight(hand)
            if message is not None and self._has(hand, message) and hand.reader is reader:
                self.model.give_back(message, counted=True)

    async def abandon_reader(self, place: Place) -> None:
        """Let a consumer fall silent, with what it holds."""
        if (reader := self.readers.pop(place, None)) is not None:
            self._abandoned.append(reader)

    async def acknowledge(self, hand: Hand) -> None:
        await hand.delivery.ack()
        if message := self._in_flight(hand):
            message.state = State.ACKNOWLEDGED

    async def bury(self, hand: Hand) -> None:
        await hand.delivery.dead_letter("ugly")
        if message := self._in_flight(hand):
            self.model.bury(hand.group, message, "ugly", is_late=not self._has(hand, message))

    async def give_back(self, hand: Hand, *, delay_seconds: float, counted: bool) -> None:
        """Give a message back; too late, it changes nothing. Twice is not asked for."""
        if hand.delivery.is_settled:
            return
        message = self._in_flight(hand)
        if message is not None and self.model.is_overdue(message):
            delay_seconds, counted = 0.0, True  # others may have it already: at once, or not at all
        await hand.delivery.nack(delay_seconds=delay_seconds, counted=counted)
        if message is not None and self._has(hand, message):
            self.model.give_back(message, delay_seconds=delay_seconds, counted=counted)

    async def renew(self, hand: Hand) -> None:
        if hand.delivery.is_settled:
            return
        message = self._in_flight(hand)
        if message is not None and self.model.is_overdue(message):
            return  # whether that is still in time is not promised
        await hand.delivery.renew()
        if message is not None and self._has(hand, message):
            message.held_since = self.model.now

    async def requeue(self, pick: int) -> None:
        """Requeue one of the letters, if there is one."""
        letters = [
            letter_id
            for letter_id, letter in sorted(self.model.letters.items())
            if self.model.find(letter.group, letter.number)
            is None  # a lost group repeats it anyway
        ]
        if letters:
            await self._requeue(letters[pick % len(letters)])

    async def _requeue(self, letter_id: str) -> None:
        if self.model.letters[letter_id].group in self.model.groups:
            await self.bus.requeue(letter_id)
            self.model.requeue(letter_id)
        else:
            with pytest.raises(NotFoundError, match="create the group first"):
                await self.bus.requeue(letter_id)

    async def bury_doomed(self, group: str, name: str = "undertaker") -> None:
        """Let somebody who finds nothing to handle set aside what was tried too often."""
        is_needed = any(each == group for each, _ in self.model.doomed())
        if not is_needed or self.model.available(group):
            return
        waiting = asyncio.ensure_future(self._next((group, name)))
        while any(each == group for each, _ in self.model.doomed()):
            assert not waiting.done()
            await asyncio.sleep(0.001)
            await self.check()
        waiting.cancel()
        await asyncio.wait({waiting})
        await self.readers.pop((group, name)).aclose()

    async def drain(self, number: int) -> None:
        """Handle all that is left; of what is settled nothing comes again."""
        await self.pass_time(4 * RECLAIM_SECONDS)
        for group in self.model.groups:
            while self.model.available(group):
                await self.take((group, "last"), 1)
                await self.acknowledge(self.hands[-1])
            await self.bury_doomed(group)
        await self.publish([number])
        for group in self.model.groups:
            await self.take((group, "last"), 1)
            await self.acknowledge(self.hands[-1])
            assert self.model.groups[group].in_state(OPEN) == []
        await self.check()

    async def _next(self, place: Place) -> Delivery:
        if place not in self.readers:
            group, name = place
            self.readers[place] = self.bus.subscribe([TOPIC], group=group, consumer=name)
        self._num_glances += 1
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await anext(self.readers[place])

    def _note(self, place: Place, delivery: Delivery) -> None:
        group, _ = place
        number = cast("SystemStatePacket", delivery.payload()).epoch
        self.model.hand_out(group, number, delivery.delivery_count, delivery)
        assert delivery.attempts_left == MAX_DELIVERIES - delivery.delivery_count
        self.hands.append(Hand(group, number, delivery, self.readers[place]))

    def _has(self, hand: Hand, message: Tracked) -> bool:
        """Tell whether nobody was handed the message since."""
        return message.state is State.HELD and message.holder is hand.delivery

    def _in_flight(self, hand: Hand) -> Tracked | None:
        message = self.model.find(hand.group, hand.number)
        return message if message is not None and message.state in IN_FLIGHT else None


def _packet(number: int) -> SystemStatePacket:
    return SystemStatePacket(
        run_id="run", epoch=number, step=number, val_loss=0.5, learning_rate=0.1, num_parameters=7
    )


def _read(letter: DeadLetter) -> Letter:
    payload = cast("SystemStatePacket", decode(letter.data, topic=TOPIC).payload())
    return Letter(
        group=letter.group,
        number=payload.epoch,
        reason=letter.reason,
        num_tries=letter.delivery_count,
    )


class MemoryWorld(World):
    """A broker of this process."""

    def __init__(self) -> None:
        super().__init__(f"memory://{uuid4().hex}", [broker])


class RedisWorld(World):
    """Streams on a real server, under a prefix of their own."""

    def __init__(self, server_url: str) -> None:
        super().__init__(f"{server_url}?prefix={uuid4().hex}&retain=3,keep", [redis_group])
        self._options = RedisOptions.from_url(self.url)
        self._key = f"{self._options.prefix}:{TOPIC.value}"
        self._raw: Any = Redis.from_url(server_url)  # pyright: ignore[reportUnknownMemberType]

    async def close(self) -> None:
        await super().close()
        keys = await self._raw.keys(f"{self._options.prefix}*")
        await self._raw.delete(*keys, "no key at all")
        await self._raw.aclose()

    async def pass_time(self, seconds: float) -> None:
        await super().pass_time(seconds)
        await self._raw.eval(_AGE, 1, self._key, round(seconds * 1000))

    async def trim(self) -> None:
        await tend(self._raw, self._options, TOPIC)

    async def _requeue(self, letter_id: str) -> None:
        """Requeue, unless the entry was trimmed: then it is published anew, which is another story."""
        [(_, fields)] = await self._raw.xrange(
            f"{self._options.prefix}:dead-letters", letter_id, letter_id
        )
        if await self._raw.xrange(self._key, fields[b"entry_id"], fields[b"entry_id"]):
            await super()._requeue(letter_id)

    async def lose_group(self, group: str) -> None:
        """Destroy the group; it is found missing by a reader, or by who creates it."""
        if group not in self.model.groups:
            return
        place = next((place for place in self.readers if place[0] == group), None)
        await self._raw.xgroup_destroy(self._key, group)
        if place is not None and self.model.groups[group].in_state(OPEN):
            delivery = await self._next(place)
            await self._begin_anew(group)
            self._note(place, delivery)
        else:
            await self.bus.create_group([TOPIC], group=group)
            await self._begin_anew(group)

    async def _begin_anew(self, group: str) -> None:
        """Compare where the group begins with what it is owed; what it had done may come again."""
        note = await self._raw.hget(groups_key(self._options, TOPIC), f"group:{group}")
        entries = await self._raw.xrange(self._key, b"(" + note.split()[0], "+")
        ahead = {
            cast("SystemStatePacket", decode(fields[b"message"], topic=TOPIC).payload()).epoch
            for _, fields in entries
        }
        owed = {message.number for message in self.model.groups[group].in_state(OPEN)}
        assert owed <= ahead, "a group that vanished misses what it had not acknowledged"
        self.model.groups[group].messages.update((n, Tracked(number=n)) for n in sorted(ahead))
