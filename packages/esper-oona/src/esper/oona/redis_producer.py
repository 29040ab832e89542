"""Appends batches of messages to Redis streams so that each lands once, however often it is sent.

`RedisBus` drains its outbox through a `RedisProducer`.
"""

from collections.abc import Sequence

from redis.exceptions import ResponseError

from esper.contracts import get_logger
from esper.contracts.base import new_id
from esper.oona.options import RedisOptions
from esper.oona.outbox import Outcome
from esper.oona.outbox_queue import Entry
from esper.oona.redis_client import Commands
from esper.oona.redis_errors import DRIVER_ERRORS, code_of, is_passing_code, unavailable
from esper.oona.redis_letters import MESSAGE_FIELD, stream_key

_REMEMBERED_SECONDS = 3600
"""For how long the server knows a producer that is silent."""

_APPEND = r"""
local known = redis.call('GET', KEYS[1])
if known then
  local number, failures = string.match(known, '^(%d+):(.*)$')
  if tonumber(number) >= tonumber(ARGV[1]) then return failures end
end
local marked = redis.pcall('SET', KEYS[1], ARGV[1] .. ':', 'EX', ARGV[2])
if marked['err'] then return marked end
local failures = ''
for i = 4, #ARGV, 2 do
  local added = redis.pcall('XADD', KEYS[tonumber(ARGV[i])], '*', ARGV[3], ARGV[i + 1])
  if type(added) == 'table' and added['err'] then
    failures = failures .. (i - 4) / 2 .. ' ' .. added['err'] .. '\n'
  end
end
if failures ~= '' then redis.call('SET', KEYS[1], ARGV[1] .. ':' .. failures, 'EX', ARGV[2]) end
return failures
"""
"""Marks the batch first: if the server takes no writes, nothing has happened. A batch that is known
answers what it answered before, also when the first copy arrives after the second."""

_log = get_logger(__name__)


class RedisProducer:
    """One producer with numbered batches; the server knows the latest number."""

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._key = f"{options.prefix}:producer:{new_id()}"
        self._number = 0
        self._batch: Sequence[Entry] | None = None

    async def append(self, client: Commands, batch: Sequence[Entry]) -> Outcome:
        """Append the batch; the very same object again is the same batch, and lands once.

        Raises:
            BackendUnavailableError: if nothing of it is known to have landed; append it again.

        """
        if batch is not self._batch:
            self._batch, self._number = batch, self._number + 1
        keys = {
            topic: index for index, topic in enumerate({e.envelope.topic: None for e in batch}, 2)
        }
        arguments: list[str | bytes | int] = [
            self._number,
            _REMEMBERED_SECONDS,
            MESSAGE_FIELD,
        ]
        for entry in batch:
            arguments += (keys[entry.envelope.topic], entry.envelope.data)
        names = [stream_key(self._options, topic) for topic in keys]
        try:
            failures = await client.eval(_APPEND, 1 + len(names), self._key, *names, *arguments)
        except DRIVER_ERRORS as error:
            raise unavailable(self._options, error) from error
        assert isinstance(failures, bytes)
        return self._outcome(batch, failures.decode(errors="replace"))

    def _outcome(self, batch: Sequence[Entry], failures: str) -> Outcome:
        outcome = Outcome(again=[], refused=[])
        for line in failures.splitlines():
            index, _, reason = line.partition(" ")
            entry = batch[int(float(index))]
            error = unavailable(self._options, ResponseError(reason))
            code = code_of(reason)
            if is_passing_code(code) or code == "NOPERM":  # somebody has to allow it; it can wait
                outcome = outcome._replace(trouble=error)
                outcome.again.append(entry)
            else:
                _log.error("message refused", topic=entry.envelope.topic.value, reason=reason)
                outcome.refused.append((entry, error))
        return outcome
