"""Bytes are hashed while they are read or written, and nobody gets the last of them unverified.

Both stores read through `read_verified` and `verified_chunks`, and hash what they write with
`RunningHash`. SHA-256 runs in a thread beside the one that moves the bytes (hashlib lets go of the
interpreter meanwhile), so a verified read takes as long as the slower of the two, not their sum.
"""

import hashlib
import io
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from esper.contracts import ArtifactIntegrityError

CHUNK_BYTES = 2**20
"""Measured: from 256 KiB to 4 MiB all read about as fast; less costs switches, more costs cache."""

_WORTH_A_THREAD = 2**18
"""Chunks from here on are hashed in a thread; shorter ones take less time than handing them over."""
_CHUNKS_AHEAD = 4
"""How far reading may get ahead of hashing, which bounds the memory."""


class RunningHash:
    """The sha256 of bytes that keep coming; `with` ends its thread."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self._pending = deque[Future[None]]()
        self.size_bytes = 0

    def __enter__(self) -> "RunningHash":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def update(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self.size_bytes += len(chunk)
        if len(chunk) < _WORTH_A_THREAD and not self._pending:
            self._hash.update(chunk)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._pending.append(self._thread.submit(self._hash.update, chunk))
        if len(self._pending) > _CHUNKS_AHEAD:
            self._pending.popleft().result()

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""
        while self._pending:
            self._pending.popleft().result()
        return self._hash.hexdigest()


def merged(chunks: Iterable[bytes]) -> Generator[bytes]:
    """Give the same bytes in chunks of at least `CHUNK_BYTES`, but for the last: few large writes.

    What is given does not change any more, even if the caller hands in one buffer again and again.
    """
    waiting: list[bytes] = []
    num_waiting = 0
    for chunk in chunks:
        waiting.append(bytes(chunk))  # of bytes itself, not a copy
        num_waiting += len(chunk)
        if num_waiting >= CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, num_waiting = [], 0
    if waiting:
        yield b"".join(waiting)


def check_digest(actual: str, expected: str, *, place: str) -> None:
    """Pass silently if what was read at `place` is what belongs there.

    Raises:
        ArtifactIntegrityError: naming the place, both hashes, and what to do.

    """
    if actual != expected:
        raise ArtifactIntegrityError(
            f"{place} was changed or damaged: expected sha256 {expected}, found {actual}; "
            "delete it, and the kernel will be forged again"
        )


def check_upload(actual: str, expected: str | None) -> None:
    """Pass silently if what was sent is what the sender announced, or if nothing was announced.

    Raises:
        ArtifactIntegrityError: with both hashes.

    """
    if expected is not None and actual != expected:
        raise ArtifactIntegrityError(
            f"the upload was damaged or misnamed: expected sha256 {expected}, received bytes of "
            f"{actual}; nothing was stored, send it again"
        )


def check_chunks(chunks: Iterable[bytes], sha256: str, *, place: str) -> int:
    """Verify and forget the bytes; return how many there were. Raises `ArtifactIntegrityError`."""
    with RunningHash() as running:
        for chunk in chunks:
            running.update(chunk)
        check_digest(running.hexdigest(), sha256, place=place)
        return running.size_bytes


def verified_chunks(chunks: Iterable[bytes], sha256: str, *, place: str) -> Generator[bytes]:
    """Give the chunks as they come, each after the next has arrived; the last once all are verified.

    Raises:
        ArtifactIntegrityError: instead of the last chunk, if the bytes are others.

    """
    held = b""
    with RunningHash() as running:
        for chunk in chunks:
            running.update(chunk)
            if held:
                yield held
            held = chunk
        check_digest(running.hexdigest(), sha256, place=place)
    if held:
        yield held


def read_verified(chunks: Iterable[bytes], sha256: str, *, place: str) -> bytes:
    """Read to the end and return the bytes, of which there is never a second copy.

    Raises:
        ArtifactIntegrityError: if the bytes are others.

    """
    # Its buffer grows in place, and becomes the result without a copy. Filling it through
    # `getbuffer` would be faster, but CPython 3.12.1 crashes when the garbage collector meets a
    # buffer with a view, as in the traceback of a read that failed.
    content = io.BytesIO()
    with RunningHash() as running:
        for chunk in chunks:
            running.update(chunk)
            content.write(chunk)
        check_digest(running.hexdigest(), sha256, place=place)
    return content.getvalue()
