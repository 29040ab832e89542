"""Dead letters on Redis: what a group could not handle, with the reason, and the way back.

`redis_consumer` files letters here; `redis_streams` lists and requeues them. All letters of a prefix
are entries of one stream; the entry that a letter is about stays in its own stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from esper.contracts import DeadLetter, TopicNames
from esper.oona.delivery import (
    MAX_DEAD_LETTERS,
    letter_without_group,
    tell_dead_letter,
    unknown_letter,
)
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands, Fields

MESSAGE_FIELD = "message"
"""The one field of every stream entry: the envelope as JSON."""

_FILE = """
local letter = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  redis.call('XDEL', KEYS[2], letter)
  return false
end
return letter
"""
"""Two consumers may file one entry, and one of them twice after a lost answer; one letter remains."""

_REQUEUE = """
if #redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1]) == 0 then return 'no letter' end
if #redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3]) == 1 then
  local claimed = redis.pcall('XCLAIM', KEYS[1], ARGV[2], 'requeued', 0, ARGV[3],
    'IDLE', ARGV[4], 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
  if claimed['err'] then return 'no group' end
  local field = 'group:' .. ARGV[2]
  local known = redis.call('HGET', KEYS[3], field) or ''
  local milliseconds = tonumber(string.match(ARGV[3], '^%d+'))
  local done_up_to, rest = string.match(known, '^(%d+)%S* (.*) %S+$')
  if done_up_to and tonumber(done_up_to) >= milliseconds then  -- it is owed again
    local start = string.format('%.0f-18446744073709551615', milliseconds - 1)
    redis.pcall('HSET', KEYS[3], field, start .. ' ' .. rest .. ' -1')
  end
else
  redis.call('XADD', KEYS[1], '*', ARGV[5], ARGV[6])
end
redis.call('XDEL', KEYS[2], ARGV[1])
return 'done'
"""
"""An entry that still exists goes back to its group alone; one that was trimmed is published anew.

A group that vanishes after that begins before it: the note beside the stream is set back."""

_LONG_IDLE_MS = 86_400_000


def stream_key(options: RedisOptions, topic: TopicNames) -> str:
    """Return the key of a topic's stream."""
    return f"{options.prefix}:{topic.value}"


def groups_key(options: RedisOptions, topic: TopicNames) -> str:
    """Return the key of what is noted about a topic's groups."""
    return f"{stream_key(options, topic)}:groups"


def letters_key(options: RedisOptions) -> str:
    """Return the key of the stream of dead letters."""
    return f"{options.prefix}:dead-letters"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An entry that a group gives up."""

    topic: TopicNames
    group: str
    entry_id: bytes
    delivery_count: int
    data: bytes
    reason: str


async def file_letter(client: Commands, options: RedisOptions, failed: Failed) -> bool:
    """Acknowledge the entry and file the letter, as one; tell if it was not acknowledged before."""
    fields: dict[str, str | bytes | int] = {
        "topic": failed.topic.value,
        "group": failed.group,
        "entry_id": failed.entry_id,
        "reason": failed.reason,
        "delivery_count": failed.delivery_count,
        MESSAGE_FIELD: failed.data,
    }
    filed = await client.eval(
        _FILE,
        2,
        stream_key(options, failed.topic),
        letters_key(options),
        failed.group,
        failed.entry_id,
        MAX_DEAD_LETTERS,
        *(part for pair in fields.items() for part in pair),
    )
    if not isinstance(filed, bytes):
        return False
    letter = _letter(filed, {k.encode(): _bytes(v) for k, v in fields.items()})
    assert letter is not None
    tell_dead_letter(letter)
    return True


async def list_letters(client: Commands, options: RedisOptions, limit: int) -> Sequence[DeadLetter]:
    """Return the oldest letters."""
    found = await client.xrange(letters_key(options), count=limit)
    letters = [_letter(letter_id, fields or {}) for letter_id, fields in found]
    return [letter for letter in letters if letter is not None]


async def requeue_letter(client: Commands, options: RedisOptions, letter_id: str) -> None:
    """Let the letter's group have its entry again. Raises `NotFoundError`."""
    if not letter_id.replace("-", "", 1).isdigit():
        raise unknown_letter(letter_id)
    found = await client.xrange(letters_key(options), min=letter_id, max=letter_id, count=1)
    fields: Fields = found[0][1] or {} if found else {}
    letter = _letter(letter_id.encode(), fields)
    if letter is None:
        raise unknown_letter(letter_id)
    done = await client.eval(
        _REQUEUE,
        3,
        stream_key(options, letter.topic),
        letters_key(options),
        groups_key(options, letter.topic),
        letter_id,
        letter.group,
        fields[b"entry_id"],
        _LONG_IDLE_MS,
        MESSAGE_FIELD,
        letter.data,
    )
    if done == b"no group":
        raise letter_without_group(letter)
    if done == b"no letter":
        raise unknown_letter(letter_id)


def _bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _letter(letter_id: bytes, fields: Fields) -> DeadLetter | None:
    """Read a letter; None for what somebody else put there."""
    # The first letters had no count, and the key of the stream instead of the topic.
    topic = fields.get(b"topic") or fields.get(b"key", b"").rpartition(b":")[2]
    if topic.decode(errors="replace") not in TopicNames or b"entry_id" not in fields:
        return None
    return DeadLetter(
        letter_id=letter_id.decode(),
        topic=TopicNames(topic.decode()),
        group=fields.get(b"group", b"").decode(errors="replace"),
        reason=fields.get(b"reason", b"").decode(errors="replace"),
        delivery_count=int(fields.get(b"delivery_count", 1)),
        data=fields.get(MESSAGE_FIELD.encode(), b""),
    )
