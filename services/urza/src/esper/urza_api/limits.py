"""Bodies that are too large are refused before they fill the memory."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 32 * 2**20
"""Of records; artifacts are streamed, and have a limit of their own."""

_UPLOADS = "/api/v1/artifacts/"


class Limits:
    """Refuses a body of records beyond `MAX_BODY_BYTES` with 413."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"].startswith(_UPLOADS):
            await self._app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                detail = f"a body has at most {MAX_BODY_BYTES:,} bytes; register fewer at a time"
                raise HTTPException(413, detail)
            return message

        await self._app(scope, limited, send)


def install(app: FastAPI) -> None:
    """Put the limit in front of every endpoint."""
    app.add_middleware(Limits)
