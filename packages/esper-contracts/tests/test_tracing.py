"""Traces: what is caused by a message belongs to its trace; spans go along where OpenTelemetry runs."""

import asyncio
import subprocess
import sys

import pytest

from esper.contracts import HealthSignal, OonaMessage, get_logger, handling, seal, trace_for

SIGNAL = HealthSignal(
    layer_id=1,
    seed_id=2,
    chunk_id=0,
    epoch=0,
    activation_variance=0.5,
    dead_neuron_ratio=0.25,
    avg_correlation=-0.125,
)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def sealed(trace_id: str, traceparent: str | None = None) -> OonaMessage:
    return seal(SIGNAL, sender_id="tests", trace_id=trace_id, traceparent=traceparent)


def test_a_message_in_hand_gives_its_trace_until_it_is_done() -> None:
    with handling(sealed("run-1", PARENT)):
        assert trace_for(None).trace_id == "run-1"
        with handling(sealed("run-2")):
            assert trace_for(None).trace_id == "run-2"
        assert trace_for("other").trace_id == "other"
    first, second = trace_for(None), trace_for(None)
    assert first.trace_id != second.trace_id
    assert first.traceparent is None


async def _one_of_two(trace_id: str, barrier: asyncio.Barrier) -> str:
    with handling(sealed(trace_id)):
        await barrier.wait()
        return trace_for(None).trace_id


def test_tasks_do_not_see_each_others_messages() -> None:
    async def both() -> list[str]:
        barrier = asyncio.Barrier(2)
        return list(await asyncio.gather(_one_of_two("a", barrier), _one_of_two("b", barrier)))

    assert asyncio.run(both()) == ["a", "b"]


def test_log_lines_carry_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with handling(sealed("run-1")):
        get_logger("tests").warning("something")
    assert '"trace_id": "run-1"' in capsys.readouterr().err


_WITHOUT = f"""
import sys
from esper.contracts import handling, seal, trace_for
from esper.contracts.messages import HealthSignal
message = seal(
    HealthSignal.model_validate_json('''{SIGNAL.model_dump_json()}'''),
    sender_id="tests", trace_id="run-1", traceparent="{PARENT}",
)
with handling(message):
    print(trace_for(None).traceparent)
print(any(name.startswith("opentelemetry") for name in sys.modules))
"""

_WITH = (
    "from opentelemetry import trace\n"
    "from opentelemetry.sdk.trace import TracerProvider\n"
    "trace.set_tracer_provider(TracerProvider())\n"
    + _WITHOUT
    + """
with handling(message), trace.get_tracer("tests").start_as_current_span("work") as span:
    print(f"{span.get_span_context().trace_id:032x}")
    print(trace_for(None).traceparent.split("-")[1:3])
    print(f"{span.get_span_context().span_id:016x}")
"""
)


def _run(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_without_opentelemetry_a_span_is_passed_on_and_nothing_is_imported() -> None:
    assert _run(_WITHOUT) == [PARENT, "False"]


def test_with_opentelemetry_spans_are_children_and_travel() -> None:
    inherited, loaded, trace_id, published, span_id = _run(_WITH)
    assert inherited == PARENT
    assert loaded == "True"
    assert trace_id == PARENT.split("-")[1]
    assert published == str([trace_id, span_id])
