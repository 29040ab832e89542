"""Who caused what: the trace of the message in hand goes into every message that is published for it.

Consumers enter `handling`; buses ask for the trace when a message is published without one. Where the
program has loaded OpenTelemetry, spans go along as W3C `traceparent`; it is never imported here otherwise.
"""

import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from esper.contracts.base import new_id
from esper.contracts.logging import trace_context


class Trace(NamedTuple):
    """What a message inherits from the one that caused it."""

    trace_id: str
    traceparent: str | None
    """The span in which it was caused (W3C Trace Context), if there is one."""


class Traced(Protocol):
    """A message, or the delivery of one."""

    @property
    def trace_id(self) -> str:
        """What it belongs to."""
        ...

    @property
    def traceparent(self) -> str | None:
        """The span that it was published in (W3C Trace Context), if there was one."""
        ...


_NOTHING = Trace("", None)
_current: ContextVar[Trace] = ContextVar("esper-trace", default=_NOTHING)


@contextmanager
def handling(message: Traced) -> Generator[None]:
    """Within the context, what is published and logged belongs to the trace of `message`.

    Holds for the current task and for the threads that `asyncio.to_thread` starts from it. With
    OpenTelemetry loaded, new spans become children of the span that the message was published in.
    """
    with ExitStack() as stack:
        stack.enter_context(trace_context(message.trace_id))
        token = _current.set(Trace(message.trace_id, message.traceparent))
        stack.callback(_current.reset, token)
        if message.traceparent is not None and _has_opentelemetry():
            from opentelemetry import context, propagate

            parent = propagate.extract({"traceparent": message.traceparent})
            stack.callback(context.detach, context.attach(parent))
        yield


def trace_for(trace_id: str | None) -> Trace:
    """Return the trace of a message that is published now; a new one if nothing caused it.

    Args:
        trace_id: what the publisher says; None for that of the message in hand.

    """
    current = _current.get()
    if trace_id is not None and current is _NOTHING and not _has_opentelemetry():
        return Trace(trace_id, None)  # the usual case of a training loop, kept short
    if trace_id is None:
        trace_id = current.trace_id or new_id()
    if _has_opentelemetry():
        return Trace(trace_id, _span() or current.traceparent)
    return Trace(trace_id, current.traceparent)


def _has_opentelemetry() -> bool:
    return "opentelemetry.trace" in sys.modules


def _span() -> str | None:
    from opentelemetry import trace

    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
