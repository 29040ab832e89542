"""Connects a worker to a bus: receive, handle in a thread, publish the results, acknowledge.

The same loop (`serve`) runs in a thread beside the trainer and, through `run_worker`, in a worker
process of its own.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from esper.contracts.errors import BackendUnavailableError, EsperError, MessageError
from esper.contracts.logging import get_logger
from esper.contracts.messages import Payload
from esper.contracts.ports import Bus, Delivery, Worker, WorkerContext, WorkerFactory
from esper.contracts.registry import artifact_store_factory, bus_factory, library_factory
from esper.contracts.settings import load_settings
from esper.contracts.threads import in_thread

GRACE_SECONDS = 3.0
"""How long the message in hand may still take when serving ends; after that its thread is left alone:
it may wait for a server that never answers."""

_RETRY_SECONDS = 5.0
"""Until a message is tried again that failed because a server was away."""

_log = get_logger(__name__)


async def serve(
    worker: Worker,
    bus: Bus,
    *,
    group: str,
    trace_id: str | None = None,
    on_error: Callable[[EsperError], None] | None = None,
) -> None:
    """Serve `worker` from `bus` until cancelled.

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

    """
    subscription = bus.subscribe(worker.topics, group=group, consumer=_consumer_name(worker))
    async with aclosing(subscription):
        async for delivery in subscription:
            try:
                if trace_id is None or delivery.message.trace_id == trace_id:
                    async with delivery.keep():
                        await _handle(worker, bus, delivery)
            except EsperError as error:
                _log.error(
                    "message failed",
                    worker=worker.name,
                    topic=delivery.message.topic.value,
                    event_id=delivery.message.event_id,
                    error=str(error),
                )
                if on_error is not None:
                    on_error(error)
                if isinstance(error, BackendUnavailableError):
                    await delivery.nack(delay_seconds=_RETRY_SECONDS, counted=False)
                    continue
                if isinstance(error, MessageError):
                    await delivery.dead_letter(str(error))
                    continue
            await delivery.ack()


def _consumer_name(worker: Worker) -> str:
    """Return a name that no other process serving the same worker has."""
    return f"{worker.name}.{socket.gethostname()}.{os.getpid()}"


async def _handle(worker: Worker, bus: Bus, delivery: Delivery) -> None:
    """Do the work for one message in a thread, and publish what comes of it."""
    for result in await _work(worker, delivery):
        await bus.publish(result, sender_id=worker.name, trace_id=delivery.message.trace_id)


async def _work(worker: Worker, delivery: Delivery) -> Sequence[Payload]:
    handling = in_thread(lambda: worker.handle(delivery.payload()), name=worker.name)
    done = asyncio.wrap_future(handling)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        finished, _ = await asyncio.wait({done}, timeout=GRACE_SECONDS)
        for future in finished:
            future.exception()  # looked at, or asyncio complains; the message comes again anyway
        raise


def run_worker(
    make_worker: WorkerFactory,
    *,
    bus_url: str | None = None,
    library_url: str | None = None,
    artifacts_url: str | None = None,
    signing_key_file: Path | None = None,
) -> None:
    """Serve a worker in this process until Ctrl-C or SIGTERM; what its command line calls.

    A URL that is None comes from the settings (the environment or `.env`). The message in hand when
    the process is told to stop is finished or delivered again, never lost.

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
        asyncio.run(_serve_until_stopped(worker, bus))
    finally:
        library.close()


async def _serve_until_stopped(worker: Worker, bus: Bus) -> None:
    loop = asyncio.get_running_loop()
    await bus.open()
    try:
        serving = asyncio.ensure_future(serve(worker, bus, group=worker.name))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, serving.cancel)
        _log.info("serving", worker=worker.name, topics=sorted(worker.topics))
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()
        _log.info("stopped", worker=worker.name)
    finally:
        await bus.close()
