"""Logging: JSON for machines, pretty for people, and hands off the host application."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from esper.contracts import bind_trace, get_logger, setup_logging, trace_context


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    yield
    setup_logging("esper", logging.WARNING)
    structlog.contextvars.clear_contextvars()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_stream_that_is_no_terminal_gets_one_json_object_per_line() -> None:
    stream = io.StringIO()
    log = setup_logging("tezzeret", stream=stream)
    log.info("kernel forged", kernel="abc", count=3)
    (line,) = lines_of(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "kernel forged",
        "kernel": "abc",
        "count": 3,
        "logger_name": "tezzeret",
        "level": "info",
        "service": "tezzeret",
    }


def test_a_terminal_gets_the_pretty_form() -> None:
    stream = Terminal()
    setup_logging("tezzeret", stream=stream).info("kernel forged", kernel="abc")
    text = stream.getvalue()
    assert "kernel forged" in text
    assert "\x1b[" in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


@pytest.mark.parametrize(("stream", "as_json"), [(Terminal(), True), (io.StringIO(), False)])
def test_the_format_can_be_forced(stream: io.StringIO, as_json: bool) -> None:
    setup_logging("tezzeret", json=as_json, stream=stream).warning("hello")
    assert stream.getvalue().startswith("{") == as_json


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    log = setup_logging("tezzeret", "warning", stream=stream)
    log.debug("no")
    log.info("no")
    log.warning("yes")
    log.error("yes")
    assert [line["level"] for line in lines_of(stream)] == ["warning", "error"]


def test_an_unknown_level_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"log level 'loud'; expected one of CRITICAL, .*DEBUG"):
        setup_logging("tezzeret", "loud")


def test_a_logger_made_at_import_follows_a_later_setup() -> None:
    log = get_logger("early")
    stream = io.StringIO()
    setup_logging("late", stream=stream)
    log.info("hello")
    assert lines_of(stream)[0]["service"] == "late"


def test_the_trace_id_is_in_every_line_of_its_context_and_of_no_other() -> None:
    stream = io.StringIO()
    log = setup_logging("tezzeret", stream=stream)
    with trace_context("run-1"):
        log.info("inside")
    log.info("outside")
    bind_trace("run-2")
    log.info("bound")
    thread = threading.Thread(target=log.info, args=("another thread",))
    thread.start()
    thread.join()
    traces = [line.get("trace_id") for line in lines_of(stream)]
    assert traces == ["run-1", None, "run-2", None]


def test_an_exception_is_written_with_its_traceback() -> None:
    stream = io.StringIO()
    log = setup_logging("tezzeret", stream=stream)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        log.exception("failed")
    assert "RuntimeError: broken" in lines_of(stream)[0]["exception"]


def test_the_host_application_keeps_its_logging() -> None:
    root = logging.getLogger()
    host_handler = logging.StreamHandler(io.StringIO())
    root.addHandler(host_handler)
    before = (list(root.handlers), root.level, structlog.is_configured(), structlog.get_config())
    stream = io.StringIO()
    try:
        setup_logging("tezzeret", logging.DEBUG, stream=stream).info("hello")
        after = (list(root.handlers), root.level, structlog.is_configured(), structlog.get_config())
        assert after == before
        assert host_handler.stream.getvalue() == ""
        # The founding sketch wrote nothing at all when the host had handlers already.
        assert lines_of(stream)[0]["event"] == "hello"
    finally:
        root.removeHandler(host_handler)


def test_standard_error_is_looked_up_when_a_line_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging("tezzeret").info("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"
