"""The runtime beside a training: what it counts, waits for, and leaves on the bus."""

import threading
from pathlib import Path
from typing import Any

import pytest

from esper.contracts import (
    Action,
    AdaptationSignal,
    FieldReport,
    KasminaCommand,
    SeedState,
    SystemStatePacket,
)
from esper.oona.broker import shared_broker
from esper.tamiyo import Runtime, RuntimeUrls

REPORT = FieldReport(
    run_id="run-1",
    seed_id=(0, 0),
    site="1",
    kernel_id="0" * 64,
    blueprint_id="1" * 64,
    blueprint_name="bottleneck",
    outcome=SeedState.CULLED,
    reason="it does not help",
    epoch_started=1,
    epoch_ended=5,
    parameters_added=0,
)


def _command(epoch: int) -> KasminaCommand:
    return KasminaCommand(seed_id=(0, 0), target=SeedState.LOADING, epoch=epoch, reason="r")


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(
        "run-1",
        RuntimeUrls(
            bus=f"memory://{tmp_path.name}",
            library=f"sqlite:///{tmp_path / 'library.db'}",
            artifacts=f"file://{tmp_path / 'artifacts'}",
        ),
    )


def test_settling_sees_every_message_once(runtime: Runtime) -> None:
    with runtime:
        for epoch in range(200):
            runtime.publish(_command(epoch))
        runtime.publish(REPORT)
        assert runtime.settle(num_field_reports=1)
        counts = {topic: count for topic, count in runtime.topic_counts.items() if count}
    assert counts == {"control.kasmina.commands": 200, "innovation.field_reports": 1}
    assert runtime.lost == {}
    assert runtime.unfiled == 0


def _telemetry(epoch: int, *, reason: str = "r") -> SystemStatePacket:
    decision = AdaptationSignal(epoch=epoch, policy="gap", action=Action.WAIT, reason=reason)
    return SystemStatePacket(
        run_id="run-1",
        epoch=epoch,
        step=epoch,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=None,
        learning_rate=1e-3,
        num_parameters=1,
        seeds=(),
        decisions=(decision,),
        events=(),
    )


def test_telemetry_lingers_until_another_message_or_the_end(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    bus = runtime._bus  # pyright: ignore[reportPrivateUsage]
    publish = bus.publish_nowait

    def note(payload: Any, *, sender_id: str, trace_id: str | None = None) -> None:
        sent.append(payload)
        publish(payload, sender_id=sender_id, trace_id=trace_id)

    monkeypatch.setattr(bus, "publish_nowait", note)
    monkeypatch.setattr("esper.tamiyo.runtime.LINGER_SECONDS", 1e6)
    epochs = [_telemetry(epoch) for epoch in range(5)]
    with runtime:
        for epoch in epochs[:3]:
            runtime.publish(epoch)
        assert sent == epochs[:1]
        runtime.publish(REPORT)
        assert sent == [*epochs[:3], REPORT]
        runtime.publish(epochs[3])
        runtime.send_lingering()
        assert sent[4:] == epochs[3:4]
        runtime.publish(epochs[4])
        assert runtime.settle(num_field_reports=1)
        assert sent[5:] == epochs[4:]
        assert runtime.topic_counts["system.events.epoch"] == 5


def test_a_message_that_is_too_large_costs_no_other(runtime: Runtime) -> None:
    with runtime:
        for epoch in (_telemetry(0), _telemetry(1, reason="x" * 2**21), _telemetry(2)):
            runtime.publish(epoch)
        runtime.publish(REPORT)
        assert runtime.settle(num_field_reports=1)
        assert runtime.topic_counts["system.events.epoch"] == 2


def test_settling_waits_for_the_library(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    may_file = threading.Event()
    record = runtime.library.record_field_report

    def slow(report: FieldReport) -> None:
        may_file.wait()
        record(report)

    monkeypatch.setattr(runtime.library, "record_field_report", slow)
    with runtime:
        runtime.publish(REPORT)
        try:
            assert not runtime.settle(num_field_reports=1, timeout_seconds=0.3)
            assert runtime.unfiled == 1
        finally:
            soon = threading.Timer(0.3, may_file.set)
            soon.start()
        assert runtime.settle(num_field_reports=1, timeout_seconds=30)
        assert may_file.is_set()
        assert runtime.library.field_reports("run-1") == [REPORT]


def test_a_library_that_never_answers_does_not_hold_the_end_of_a_run(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr("esper.contracts.serving.GRACE_SECONDS", 0.05)
    monkeypatch.setattr("esper.tamiyo.runtime.CLOSE_TIMEOUT_SECONDS", 0.5)

    def hang(*_: object) -> None:
        never.wait()

    for name in ("record_field_report", "field_reports", "close"):
        monkeypatch.setattr(runtime.library, name, hang)
    try:
        with runtime:
            runtime.publish(REPORT)
            assert not runtime.settle(num_field_reports=1, timeout_seconds=0.2)
        assert runtime.unfiled == 1
    finally:
        never.set()


def test_a_message_that_comes_twice_is_counted_once(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(("the one", "the one", "another"))
    monkeypatch.setattr("esper.oona.envelope.new_id", lambda: next(ids))
    with runtime:
        runtime.publish(_command(1))
        runtime.publish(_command(1))
        runtime.publish(_command(2))
        runtime.settle(num_field_reports=0, timeout_seconds=0.5)
        assert runtime.topic_counts["control.kasmina.commands"] == 2


def test_a_closed_runtime_leaves_no_group_on_the_bus(runtime: Runtime, tmp_path: Path) -> None:
    with shared_broker(tmp_path.name) as broker:
        with runtime:
            runtime.publish(_command(1))
            runtime.settle(num_field_reports=0)
        assert broker.groups() == set()
