"""Structured logging: pretty in a terminal, one JSON object per line otherwise.

Esper's loggers write to standard error by themselves. They touch neither the handlers of the standard
`logging` module nor structlog's global configuration, both of which belong to the host application.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Any, TextIO, cast

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, merge_contextvars
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

__all__ = ["bind_trace", "get_logger", "setup_logging", "trace_context"]


@dataclass(kw_only=True)
class _Output:
    """Where and how log lines are written; changed by `setup_logging` only."""

    service_name: str = "esper"
    level: int = logging.WARNING
    json: bool | None = None
    """None: JSON unless the stream is a terminal."""
    stream: TextIO | None = None
    """None: standard error as it is at the time of writing."""


_output = _Output()
_console = {colors: structlog.dev.ConsoleRenderer(colors=colors) for colors in (False, True)}
_json = structlog.processors.JSONRenderer()


class _StreamLogger:
    """The end of the chain: writes a rendered line to the configured stream."""

    def msg(self, message: str) -> None:
        stream = _output.stream or sys.stderr
        stream.write(message + "\n")
        stream.flush()

    debug = info = warning = error = critical = msg


def _drop_below_level(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if logging.getLevelNamesMapping()[method.upper()] < _output.level:
        raise structlog.DropEvent
    return event


def _add_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["service"] = _output.service_name
    return event


def _render(logger: WrappedLogger, method: str, event: EventDict) -> str:
    stream = _output.stream or sys.stderr
    as_json = _output.json if _output.json is not None else not stream.isatty()
    rendered = (_json if as_json else _console[stream.isatty()])(logger, method, event)
    return rendered if isinstance(rendered, str) else bytes(rendered).decode()


def setup_logging(
    service_name: str,
    level: int | str = logging.INFO,
    *,
    json: bool | None = None,
    stream: TextIO | None = None,
) -> FilteringBoundLogger:
    """Set the service name, level and format of all of Esper's loggers; return one for the service.

    Args:
        service_name: written into every line.
        level: lowest level that is written, as in the standard `logging` module.
        json: force JSON (True) or the pretty form (False); None decides by the stream.
        stream: where lines go; None means standard error.

    Raises:
        ValueError: if `level` is no level's name.

    """
    if isinstance(level, str):
        names = logging.getLevelNamesMapping()
        if level.upper() not in names:
            raise ValueError(f"log level {level!r}; expected one of {', '.join(names)}")
        level = names[level.upper()]
    _output.service_name = service_name
    _output.level = level
    _output.json = json
    _output.stream = stream
    return get_logger(service_name)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger; may be called at import, before `setup_logging`."""
    logger: Any = structlog.wrap_logger(  # pyright: ignore[reportUnknownVariableType]
        _StreamLogger(),
        processors=[
            _drop_below_level,
            merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_service,
            structlog.processors.format_exc_info,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_name=name,
    )
    return cast("FilteringBoundLogger", logger)


def bind_trace(trace_id: str) -> None:
    """Write `trace_id` into every following line of this thread or task."""
    bind_contextvars(trace_id=trace_id)


def trace_context(trace_id: str) -> Any:
    """Return a context manager within which every line carries `trace_id`."""
    return bound_contextvars(trace_id=trace_id)
