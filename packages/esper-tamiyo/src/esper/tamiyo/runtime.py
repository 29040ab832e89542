"""Everything beside the training thread: the bus, the library and the workers of one run.

One thread runs the event loop with the bus client; each worker handles its messages in a thread of its
own. The training thread only ever queues messages (`publish`) and, before the first step, waits for
the forge and the crucible (`forge.prepare`).
"""

import asyncio
import math
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    Delivery,
    Endorser,
    EsperError,
    HealthSignal,
    KasminaCommand,
    KernelCharacterized,
    KernelReady,
    Library,
    MessageError,
    OonaMessage,
    Payload,
    SystemStatePacket,
    TopicNames,
    Worker,
    WorkerContext,
    get_logger,
    new_id,
    serve,
    topic_of,
)
from esper.contracts.registry import (
    artifact_store_factory,
    bus_factory,
    library_factory,
    worker_factory,
)
from esper.contracts.threads import within

_log = get_logger(__name__)

SENDER = "tamiyo"
ENDORSER = "urabrask"
WORKERS = ("tezzeret", ENDORSER, "urza")
"""The workers of a run: forge, crucible, archivist."""

SETTLE_TIMEOUT_SECONDS = 5.0
CLOSE_TIMEOUT_SECONDS = 3.0
"""A run whose server died ends this much later, and not never."""
OPEN_TIMEOUT_SECONDS = 60.0
END_TIMEOUT_SECONDS = 15.0
"""For everything that closing does, each step of which has a shorter limit of its own."""

LINGER_SECONDS = 0.2
"""Telemetry that follows on telemetry sooner than this waits for the next message. Each waking of the bus'
thread holds up the training thread, which short epochs would feel."""

REMEMBERED_EVENTS = 10_000
"""Messages whose ids are kept, to count once what the bus delivers twice; it does so within minutes."""


@dataclass(frozen=True, kw_only=True)
class RuntimeUrls:
    """Where a run's bus, library and artifacts are."""

    bus: str
    library: str
    artifacts: str


class Runtime:
    """The bus, library and workers of one run; a context manager.

    Opening it connects everything or raises with nothing left running.
    """

    def __init__(self, run_id: str, urls: RuntimeUrls) -> None:
        self.run_id = run_id
        self._bus: Bus = bus_factory(urls.bus)(urls.bus)
        artifacts = artifact_store_factory(urls.artifacts)(urls.artifacts)
        self.library: Library = library_factory(urls.library)(urls.library, artifacts)
        # No key file: this run trusts its own crucible, whose key lives as long as the run.
        context = WorkerContext(library=self.library)
        self._workers: list[Worker] = [worker_factory(name)(context) for name in WORKERS]
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = threading.Condition()
        self._topic_counts: Counter[TopicNames] = Counter()
        self._published: Counter[TopicNames] = Counter()
        self._commands: list[KasminaCommand] = []
        self._ready: dict[tuple[str, str], str] = {}
        self._characterized: dict[str, KernelCharacterized] = {}
        self._failures: list[EsperError] = []
        self._pause = threading.Event()
        self._seen: set[str] = set()
        self._seen_in_order: deque[str] = deque()
        self._lingering: list[Payload] = []
        self._sent_at = -math.inf
        self.unfiled = 0
        """Outcomes that the library had not confirmed when `settle` gave up."""

    def __enter__(self) -> Self:
        """Connect to the library and the bus and start the workers.

        Raises:
            BackendUnavailableError: if a server cannot be reached or refuses the credentials.

        """
        self.library.open()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="esper-bus", daemon=True
        )
        self._thread.start()
        try:
            self._run(self._open(), OPEN_TIMEOUT_SECONDS)
        except BaseException:
            self._stop_loop()
            self._close_library()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the workers, send what is queued, disconnect; gives up on servers that do not answer."""
        try:
            self.send_lingering()
            self._run(self._close(), END_TIMEOUT_SECONDS)
        except EsperError as failure:
            _log.warning("the bus was not closed in order", error=str(failure))
        finally:
            self._stop_loop()
            self._close_library()

    @property
    def public_key(self) -> bytes:
        """The key that the crucible's endorsements verify against."""
        crucible = next(worker for worker in self._workers if worker.name == ENDORSER)
        return cast("Endorser", crucible).public_key

    @property
    def topic_counts(self) -> dict[str, int]:
        """Messages of this run that came back from the bus, by topic."""
        with self._changed:
            return {topic.value: self._topic_counts[topic] for topic in TopicNames}

    @property
    def lost(self) -> dict[str, int]:
        """Messages that never reached the bus, by topic; empty when all went well."""
        return {topic.value: count for topic, count in self._bus.lost.items() if count}

    def publish(self, payload: Payload) -> None:
        """Queue `payload` for the bus and return at once; never blocks, never raises.

        Telemetry may linger here for a while; all else takes what lingers with it, in order.
        """
        with self._changed:
            self._published[topic_of(payload)] += 1
        self._lingering.append(payload)
        is_telemetry = isinstance(payload, SystemStatePacket | HealthSignal)
        if not is_telemetry or time.monotonic() - self._sent_at >= LINGER_SECONDS:
            self.send_lingering()

    def send_lingering(self) -> None:
        """Send what lingers. What the bus does not take, as too large, is logged and not waited for."""
        lingering, self._lingering = self._lingering, []
        for payload in lingering:
            try:
                self._bus.publish_nowait(payload, sender_id=SENDER, trace_id=self.run_id)
            except EsperError as error:
                _log.error("a message was not sent", error=str(error))
                with self._changed:
                    self._published[topic_of(payload)] -= 1
        self._sent_at = time.monotonic()

    def take_commands(self) -> list[KasminaCommand]:
        """Return the commands that others sent over the bus since the last call."""
        with self._changed:
            commands, self._commands = self._commands, []
        return commands

    def wait_for_kernels(
        self,
        expected: set[tuple[str, str]],
        timeout_seconds: float,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Mapping[tuple[str, str], KernelCharacterized]:
        """Wait until every expected kernel was forged and judged.

        Args:
            expected: pairs of blueprint id and signature key.
            timeout_seconds: how long nothing may happen; each step forward starts it again.
            on_progress: told at each step forward how many are judged, and how many there will be.

        Raises:
            EsperError: the first failure of a worker.
            BackendUnavailableError: if time runs out.

        """

        def missing() -> int:
            return sum(self._ready.get(pair) not in self._characterized for pair in expected)

        def progress() -> tuple[int, int, int]:
            return len(self._failures), len(self._ready), len(self._characterized)

        with self._changed:
            while missing() and not self._failures:
                if on_progress is not None:
                    on_progress(len(expected) - missing(), len(expected))
                before = progress()
                if not self._changed.wait_for(lambda b=before: progress() != b, timeout_seconds):
                    raise BackendUnavailableError(
                        f"{missing()} of {len(expected)} kernels are neither forged nor judged, and "
                        f"nothing came back from the bus for {timeout_seconds:.0f} s; check that the "
                        "server of --bus still runs, or leave out --bus to use the embedded one"
                    )
            if self._failures:
                raise self._failures[0]
            return {pair: self._characterized[self._ready[pair]] for pair in expected}

    def settle(
        self, num_field_reports: int, timeout_seconds: float = SETTLE_TIMEOUT_SECONDS
    ) -> bool:
        """Wait until every message went round and the library has every outcome.

        Returns False if that did not happen in time, as with a dead or frozen server: the run's own
        record is complete all the same. `unfiled` then says how many outcomes the library lacks.
        """
        deadline = time.monotonic() + timeout_seconds
        self.unfiled = num_field_reports
        self.send_lingering()
        try:
            sent = self._run(self._bus.flush(timeout_seconds), timeout_seconds + 1)
            with self._changed:
                seen = sent and self._changed.wait_for(
                    lambda: self._topic_counts >= self._published, deadline - time.monotonic()
                )
            while self.unfiled > 0:
                self.unfiled = num_field_reports - self._num_filed(deadline)
                if not seen or time.monotonic() > deadline:
                    break
                self._pause.wait(
                    0.02 if self.unfiled > 0 else 0
                )  # the archivist has its own thread
            return seen and self.unfiled <= 0
        except (EsperError, TimeoutError) as error:
            _log.warning("the record outside the run folder is incomplete", error=str(error))
            return False

    def _num_filed(self, deadline: float) -> int:
        """Count the outcomes in the library; a frozen server costs the time left and no more."""
        remaining_seconds = max(1.0, deadline - time.monotonic())
        return len(
            within(
                remaining_seconds,
                lambda: self.library.field_reports(self.run_id),
                name="esper-library",
            )
        )

    def _close_library(self) -> None:
        try:
            within(CLOSE_TIMEOUT_SECONDS, self.library.close, name="esper-library")
        except TimeoutError:
            _log.warning("the library was not closed in order: it does not answer")

    def _run[T](self, work: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
        """Run `work` in the event loop's thread and return its result.

        Raises:
            BackendUnavailableError: if that takes too long.

        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_seconds)
        except TimeoutError as error:
            future.cancel()
            raise BackendUnavailableError(
                f"the bus did not answer within {timeout_seconds:.0f} s; check that the server of "
                "--bus still runs, or leave out --bus to use the embedded one"
            ) from error

    async def _open(self) -> None:
        await self._bus.open()
        for worker in self._workers:
            # Groups exist before the first message is sent, or a worker would miss it.
            await self._bus.create_group(worker.topics, group=self._group(worker.name))
            self._start(
                serve(
                    worker,
                    self._bus,
                    group=self._group(worker.name),
                    trace_id=self.run_id,
                    on_error=self._note_failure,
                )
            )
        await self._bus.create_group(TopicNames, group=self._group(SENDER))
        self._start(self._listen())

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                for worker in self._workers:
                    await self._bus.remove_group(worker.topics, group=self._group(worker.name))
                await self._bus.remove_group(TopicNames, group=self._group(SENDER))
        except (EsperError, TimeoutError) as error:
            _log.warning("consumer groups were left on the bus", error=str(error))
        await self._bus.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._note_end)
        self._tasks.append(task)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Make a crashed worker known at once instead of by a time-out."""
        if not task.cancelled() and (error := task.exception()) is not None:
            failure = EsperError(f"a worker crashed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            _log.error("a worker crashed", error=str(error), exc_info=error)
            self._note_failure(failure)

    def _note_failure(self, error: EsperError) -> None:
        with self._changed:
            self._failures.append(error)
            self._changed.notify_all()

    async def _listen(self) -> None:
        """Count every message of this run and keep those that the training thread waits for."""
        subscription = self._bus.subscribe(
            TopicNames, group=self._group(SENDER), consumer=SENDER, prefetch=100
        )
        async with aclosing(subscription):
            async for delivery in subscription:
                message = delivery.message
                if message.trace_id == self.run_id and self._is_new(message.event_id):
                    with self._changed:
                        self._topic_counts[message.topic] += 1
                        self._keep(delivery, message)
                        self._changed.notify_all()
                await delivery.ack()

    def _is_new(self, event_id: str) -> bool:
        """Tell a message from its repetition: the bus delivers at least once."""
        if event_id in self._seen:
            return False
        if len(self._seen_in_order) >= REMEMBERED_EVENTS:
            self._seen.discard(self._seen_in_order.popleft())
        self._seen.add(event_id)
        self._seen_in_order.append(event_id)
        return True

    def _keep(self, delivery: Delivery, message: OonaMessage) -> None:
        try:
            payload = delivery.payload()
        except MessageError as error:
            _log.error("message ignored", error=str(error))
            return
        match payload:
            case KernelReady():
                self._ready[payload.blueprint_id, payload.signature.key] = payload.kernel_id
            case KernelCharacterized():
                self._characterized[payload.report.kernel_id] = payload
            case KasminaCommand() if message.sender_id != SENDER:
                self._commands.append(payload)
            case _:
                pass

    def _group(self, name: str) -> str:
        """Consumer groups are the run's own, so that runs sharing a server do not share work."""
        return f"{name}.{self.run_id}"

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


def embedded_runtime(closing: ExitStack) -> Runtime:
    """Return a runtime with nothing outside this process: its files are gone when `closing` closes."""
    folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="esper-")))
    run_id = f"run-{new_id()}"
    return Runtime(
        run_id,
        RuntimeUrls(
            bus=f"memory://{run_id}",
            library=f"sqlite:///{folder / 'library.db'}",
            artifacts=f"file://{folder / 'artifacts'}",
        ),
    )
