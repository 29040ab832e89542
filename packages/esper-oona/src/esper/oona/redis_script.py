"""Runs a Lua script on the server, with errors as the command inside it gave them.

Redis 6 buries a command's error in a sentence about the script; our error handling goes by the code that
the error begins with.
"""

import re
from collections.abc import Collection

from redis.exceptions import ResponseError

from esper.oona.redis_client import Commands

_BURIED = re.compile(r"Error running script .*?@user_script: ?\d+: (.*)", re.DOTALL)


async def run_script(
    client: Commands, script: str, keys: Collection[str], *arguments: str | bytes | int
) -> object:
    """Return what the script returns; raises the driver's errors."""
    try:
        return await client.eval(script, len(keys), *keys, *arguments)
    except ResponseError as error:
        if buried := _BURIED.match(str(error)):
            raise ResponseError(buried[1]) from error
        raise
