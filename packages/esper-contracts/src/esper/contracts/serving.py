"""Connects a worker to a bus: receive, handle in a thread, publish the results, acknowledge.

The same loop (`serve`) runs in a thread beside the trainer and, through `run_worker`, in a worker
process of its own.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from esper.contracts.bus_port import Bus, Delivery
from esper.contracts.consuming import consume, consumer_name
from esper.contracts.errors import BackendUnavailableError, EsperError, MessageError
from esper.contracts.handlers import call_in_thread
from esper.contracts.logging import get_logger
from esper.contracts.ports import Worker, WorkerContext, WorkerFactory
from esper.contracts.registry import artifact_store_factory, bus_factory, library_factory
from esper.contracts.settings import load_settings
from esper.contracts.stopping import stop_signals

GRACE_SECONDS = 3.0
"""How long the message in hand may still take when serving ends; after that its thread is left alone:
it may wait for a server that never answers."""

DRAIN_SECONDS = 8.0
"""The same for a worker process that is told to stop; container runtimes kill after 10 s."""

_log = get_logger(__name__)


async def serve(
    worker: Worker,
    bus: Bus,
    *,
    group: str,
    trace_id: str | None = None,
    on_error: Callable[[EsperError], None] | None = None,
    stop: asyncio.Event | None = None,
    grace_seconds: float | None = None,
) -> None:
    """Serve `worker` from `bus` until stopped or cancelled.

    A message whose handling raises an `EsperError` is logged, reported to `on_error` and
    acknowledged: handled again, it would fail again. One whose payload does not fit its topic goes to
    the dead letters. When a server was away, the message is given back, to be delivered again. Any
    other exception is a bug and ends the loop, without acknowledging.

    Args:
        worker: what handles the messages.
        bus: an open bus that belongs to this event loop.
        group: the consumer group; workers in one group share the messages.
        trace_id: handle only messages with this trace id (those of one run); None handles all.
        on_error: called in the event loop with each failure.
        stop: once it is set, serving ends in good order (see `consume`).
        grace_seconds: how long that may take, or the message in hand when cancelled; None for
            `GRACE_SECONDS`.

    """
    grace = GRACE_SECONDS if grace_seconds is None else grace_seconds

    def report(_: Delivery, error: Exception) -> None:
        if not isinstance(error, EsperError):
            raise error
        if on_error is not None:
            on_error(error)

    async def handle(delivery: Delivery) -> None:
        try:
            if trace_id is None or delivery.trace_id == trace_id:
                await _handle(worker, bus, delivery, grace)
        except (BackendUnavailableError, MessageError):
            raise
        except EsperError as error:
            _log.error(
                "message failed",
                worker=worker.name,
                topic=delivery.message.topic.value,
                event_id=delivery.message.event_id,
                error=str(error),
            )
            report(delivery, error)

    await consume(
        bus,
        worker.topics,
        handle,
        group=group,
        consumer=consumer_name(worker.name),
        on_error=report,
        stop=stop,
        grace_seconds=grace,
    )


async def _handle(worker: Worker, bus: Bus, delivery: Delivery, grace_seconds: float) -> None:
    """Do the work for one message in a thread, and publish what comes of it."""
    results = await call_in_thread(
        lambda: worker.handle(delivery.payload()), name=worker.name, grace_seconds=grace_seconds
    )
    for result in results:
        await bus.publish(result, sender_id=worker.name, trace_id=delivery.trace_id)


def run_worker(
    make_worker: WorkerFactory,
    *,
    bus_url: str | None = None,
    library_url: str | None = None,
    artifacts_url: str | None = None,
    signing_key_file: Path | None = None,
    grace_seconds: float = DRAIN_SECONDS,
) -> None:
    """Serve a worker in this process until Ctrl-C or SIGTERM; what its command line calls.

    A URL that is None comes from the settings (the environment or `.env`). The message in hand when
    the process is told to stop is finished within `grace_seconds` or delivered again, never lost; a
    second signal ends the process at once.

    Raises:
        EsperError: if a setting is wrong, a backend is not installed, or a server is unavailable.

    """
    settings = load_settings()
    bus_url = bus_url or settings.redis_url.get_secret_value()
    library_url = library_url or settings.library_url()
    artifacts_url = artifacts_url or f"s3://{settings.s3_bucket_name}"
    bus = bus_factory(bus_url)(bus_url)
    artifacts = artifact_store_factory(artifacts_url)(artifacts_url)
    library = library_factory(library_url)(library_url, artifacts)
    context = WorkerContext(library=library, signing_key_file=signing_key_file)
    worker = make_worker(context)
    library.open()
    try:
        asyncio.run(_serve_until_stopped(worker, bus, grace_seconds))
    finally:
        library.close()


async def _serve_until_stopped(worker: Worker, bus: Bus, grace_seconds: float) -> None:
    await bus.open()
    try:
        with stop_signals() as stop:
            _log.info("serving", worker=worker.name, topics=sorted(worker.topics))
            await serve(worker, bus, group=worker.name, stop=stop, grace_seconds=grace_seconds)
        _log.info("stopped", worker=worker.name)
    finally:
        await bus.close()
