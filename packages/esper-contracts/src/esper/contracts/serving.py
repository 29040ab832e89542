"""Connects a worker to a bus: receive, handle in the worker's thread, publish the results, acknowledge.

The same loop runs in a thread beside the trainer and in a worker process of its own.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from esper.contracts.errors import EsperError
from esper.contracts.logging import get_logger
from esper.contracts.ports import Bus, Worker

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
    acknowledged: handled again, it would fail again. Any other exception is a bug and ends the loop
    with the message unacknowledged, so that it is delivered again.

    Args:
        worker: what handles the messages.
        bus: an open bus that belongs to this event loop.
        group: the consumer group; workers in one group share the messages.
        trace_id: handle only messages with this trace id (those of one run); None handles all.
        on_error: called in the event loop with each failure.

    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=worker.name) as thread:
        async for delivery in bus.subscribe(worker.topics, group=group, consumer=worker.name):
            message = delivery.message
            if trace_id is None or message.trace_id == trace_id:
                try:
                    results = await loop.run_in_executor(
                        thread, lambda d=delivery: worker.handle(d.payload())
                    )
                except EsperError as error:
                    _log.error(
                        "message failed",
                        worker=worker.name,
                        topic=message.topic.value,
                        event_id=message.event_id,
                        error=str(error),
                    )
                    if on_error is not None:
                        on_error(error)
                else:
                    for result in results:
                        await bus.publish(result, sender_id=worker.name, trace_id=message.trace_id)
            await delivery.ack()
