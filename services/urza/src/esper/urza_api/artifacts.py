"""Endpoints for kernels' bytes, streamed and verified both ways, with little of them in memory."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

from anyio import from_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from esper.contracts import Contract, EsperError, get_logger
from esper.urza_api.answers import answer, has_it
from esper.urza_api.bodies import Id
from esper.urza_api.problems import ProblemError
from esper.urza_api.state import FORGES, READS, TheLibrary

_log = get_logger(__name__)

MAX_ARTIFACT_BYTES = 4 * 2**30
_SMALL_BYTES = 8 * 2**20
"""So few are verified whole before the answer begins, which can then say what is wrong with them."""
_OCTETS = "application/octet-stream"

router = APIRouter(tags=["artifacts"])


class Stored(Contract):
    """Bytes that are stored."""

    sha256: str
    size_bytes: int


_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {_OCTETS: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.put(
    "/artifacts/{sha256}", dependencies=FORGES, response_model=Stored, openapi_extra=_UPLOAD
)
async def put_artifact(request: Request, library: TheLibrary, sha256: Id) -> Response:
    """Upload bytes under their sha256; nothing is kept of an upload that is cut off or does not match.

    Bytes of which no kernel is registered within a day may be deleted.
    """
    chunks = request.stream()

    def upload() -> Stored:
        stored = library.artifacts.put_stream(_from_loop(chunks), sha256=sha256)
        return Stored(sha256=stored.sha256, size_bytes=stored.size_bytes)

    return answer(request, await run_in_threadpool(upload))


@router.get(
    "/kernels/{kernel_id}/artifact",
    dependencies=READS,
    response_class=Response,
    responses={200: {"content": {_OCTETS: {"schema": {"type": "string", "format": "binary"}}}}},
)
@router.head("/kernels/{kernel_id}/artifact", dependencies=READS, include_in_schema=False)
def get_artifact(request: Request, library: TheLibrary, kernel_id: Id) -> Response:
    """Download a kernel's bytes; the connection breaks off before the end if they are not right."""
    kernel = library.get_kernel(kernel_id)
    tag = f'"{kernel_id}"'
    headers = {"ETag": tag, "Content-Length": str(kernel.size_bytes)}
    if has_it(request, tag):
        return Response(status_code=304, headers={"ETag": tag})
    if request.method == "HEAD":
        return Response(headers=headers, media_type=_OCTETS)
    if kernel.size_bytes <= _SMALL_BYTES:
        return Response(library.artifacts.get(kernel_id), headers=headers, media_type=_OCTETS)
    stack = ExitStack()
    chunks = stack.enter_context(library.artifacts.stream(kernel_id))
    return StreamingResponse(_closing(stack, chunks), headers=headers, media_type=_OCTETS)


def _closing(stack: ExitStack, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield an open artifact's chunks; what goes wrong can only break the connection off now."""
    try:
        with stack:
            yield from chunks
    except EsperError as error:
        _log.error("a download was broken off", error=str(error))
        raise ConnectionAbortedError("the bytes are not right") from error


def _from_loop(chunks: AsyncIterator[bytes]) -> Iterator[bytes]:
    """Yield in a worker thread what the event loop receives.

    Raises:
        ProblemError: 413 for too much.

    """
    size = 0
    while (chunk := from_thread.run(_next, chunks)) is not None:
        size += len(chunk)
        if size > MAX_ARTIFACT_BYTES:
            raise ProblemError(
                413, "too-large", f"an artifact has at most {MAX_ARTIFACT_BYTES:,} bytes"
            )
        if chunk:
            yield chunk


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)
