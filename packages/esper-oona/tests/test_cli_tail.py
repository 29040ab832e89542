"""`oona tail` and `oona replay`: looking back, following, filters, and handing a group what it had."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from esper.contracts import (
    ConfigError,
    HealthSignal,
    KasminaCommand,
    Payload,
    Record,
    SeedState,
    TopicNames,
    utc_now,
)
from esper.contracts.registry import bus_factory
from esper.oona.cli import main
from esper.oona.commands.moments import moment
from esper.oona.commands.records import Filter, as_json, as_lines
from esper.oona.options import RedisOptions
from esper.oona.redis_client import connect
from esper.testkit.redis import RedisServer

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
CONTROL = TopicNames.CONTROL_KASMINA_COMMANDS
PROGRAM = [sys.executable, "-c", "from esper.oona.cli import main; main()"]

type Run = Callable[..., int]
type Health = Callable[[int], HealthSignal]


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    """Streams that no other test uses."""
    return f"{redis_server.url}?prefix={uuid4().hex}"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, url: str) -> Run:
    """Run the command line in this process on those streams; return its exit code."""
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("COLUMNS", "80")

    def oona(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["oona", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return oona


def _publish(url: str, payloads: list[Payload], trace_id: str = "run") -> None:
    async def work() -> None:
        bus = bus_factory(url)(url)
        await bus.open()
        try:
            await bus.publish_many(payloads, sender_id="test", trace_id=trace_id)
        finally:
            await bus.close()

    asyncio.run(work())


def _command(layer: int) -> KasminaCommand:
    return KasminaCommand(
        seed_id=(layer, 0), target=SeedState.CULLED, epoch=3, reason="loss with it 0.512"
    )


def _epochs(output: str) -> list[int]:
    return [json.loads(line)["payload"]["epoch"] for line in output.splitlines()]


def test_the_newest_messages_are_shown_oldest_first(
    run: Run, url: str, health: Health, capsys: pytest.CaptureFixture[str]
) -> None:
    _publish(url, [health(epoch) for epoch in range(30)])
    assert run("tail", "--no-follow", "--json") == 0
    assert _epochs(capsys.readouterr().out) == list(range(10, 30))
    assert run("tail", "health", "--no-follow", "--json", "-n", "2") == 0
    assert _epochs(capsys.readouterr().out) == [28, 29]
    assert run("tail", "health", "--no-follow", "--json", "--since", "1h") == 0
    lines = capsys.readouterr().out
    assert _epochs(lines) == list(range(30))
    position = json.loads(lines.splitlines()[27])["position"]
    assert run("tail", "health", "--no-follow", "--json", "--since", position) == 0
    assert _epochs(capsys.readouterr().out) == [27, 28, 29]
    assert run("tail", "control", "--no-follow") == 0
    assert capsys.readouterr().out == ""


def test_seed_and_trace_choose_what_is_shown(
    run: Run, url: str, health: Health, capsys: pytest.CaptureFixture[str]
) -> None:
    _publish(url, [health(1), _command(1), _command(2)], trace_id="run-1")
    _publish(url, [health(2), _command(2)], trace_id="run-2")
    assert run("tail", "--no-follow", "--json", "--seed", "2,0") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["topic"], row["trace_id"]) for row in rows] == [
        (CONTROL, "run-1"),
        (CONTROL, "run-2"),
    ]
    assert run("tail", "--no-follow", "--json", "--seed", "1,2", "--trace", "run-2") == 0
    assert _epochs(capsys.readouterr().out) == [2]
    assert run("tail", "--seed", "one") == 2
    assert "--seed is 'one'; expected LAYER,SEED such as 1,0" in capsys.readouterr().err


def test_people_see_who_said_what_within_80_columns(
    run: Run, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _publish(url, [_command(1)], trace_id="a-trace-that-is-longer-than-it-should-be")
    assert run("tail", "--no-follow") == 0
    head, *body = capsys.readouterr().out.splitlines()
    assert head.endswith("Z control.kasmina.commands  test  a-trace-that-is…")
    assert "seed_id=[1,0]  target=CULLED  epoch=3  reason=loss with it 0.512" in " ".join(body)
    assert max(len(line) for line in (head, *body)) <= 80
    assert run("tail", "--no-follow", "--full") == 0
    assert '    "kernel_id": null,' in capsys.readouterr().out


def test_what_is_no_message_is_shown_with_the_reason(
    run: Run, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def spoil() -> None:
        options = RedisOptions.from_url(url)
        client = connect(options)
        script = "return redis.call('XADD', KEYS[1], '*', 'message', ARGV[1])"
        await client.eval(script, 1, f"{options.prefix}:{CONTROL.value}", b"\xff[bold]no")
        await client.aclose()

    asyncio.run(spoil())
    assert run("tail", "--no-follow") == 0
    assert "no envelope" in capsys.readouterr().out
    assert run("tail", "--no-follow", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["topic"], row["data"]) == (CONTROL, "\\xff[bold]no")
    assert "no envelope" in row["problem"]
    assert run("tail", "--no-follow", "--trace", "run") == 0
    assert capsys.readouterr().out == ""


def test_as_a_process_it_follows_and_ends_quietly_with_ctrl_c(url: str, health: Health) -> None:
    _publish(url, [health(0)])
    with subprocess.Popen(
        [*PROGRAM, "tail", "health", "--json", "-n", "1"],
        env={**os.environ, "REDIS_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert _epochs(process.stdout.readline()) == [0]
            for epoch in (1, 2):
                _publish(url, [health(epoch)])
                assert _epochs(process.stdout.readline()) == [epoch]
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, errors) == (130, "", "")


def test_as_a_process_it_ends_without_a_traceback_when_nobody_reads(
    url: str, health: Health
) -> None:
    _publish(url, [health(epoch) for epoch in range(2000)])
    with subprocess.Popen(
        [*PROGRAM, "tail", "health", "--since", "1h"],
        env={**os.environ, "REDIS_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == ""
            assert process.wait(timeout=30) == 1
        finally:
            process.kill()


def test_a_group_gets_again_what_it_had(
    run: Run, url: str, health: Health, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("groups", "create", "archive", "--topic", "health") == 0
    _publish(url, [health(0), health(1)])

    async def receive() -> list[int]:
        bus = bus_factory(url)(url)
        await bus.open()
        try:
            async with aclosing(bus.subscribe([HEALTH], group="archive", consumer="one")) as found:
                epochs: list[int] = []
                for _ in range(2):
                    delivery = await anext(found)
                    epochs.append(delivery.message.payload["epoch"])
                    await delivery.ack()
                return epochs
        finally:
            await bus.close()

    assert asyncio.run(receive()) == [0, 1]
    capsys.readouterr()
    assert run("replay", "health", "--group", "archive", "--since", "1h", "--yes") == 0
    assert "group archive has 2 messages to read" in capsys.readouterr().out
    assert asyncio.run(receive()) == [0, 1]
    assert run("replay", "health", "--group", "archive", "--all", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["lag"] == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--group", "nobody", "--all", "--yes"), "has no group 'nobody'"),
        (("--group", "nobody", "--yes"), "expected either --since, or --all"),
        (("--group", "nobody", "--since", "1h", "--all", "--yes"), "expected either --since, or"),
        (("--group", "nobody", "--since", "soon", "--yes"), "--since is 'soon'; expected how long"),
    ],
)
def test_an_impossible_replay_changes_nothing(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    assert run("replay", "health", *arguments) == 2
    assert problem in capsys.readouterr().err


def test_a_replay_asks_first(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert run("replay", "health", "--group", "archive", "--all") == 2
    assert (
        "Hand group archive everything on telemetry.seed.health again?" in capsys.readouterr().err
    )


def test_moments_are_read_as_people_write_them() -> None:
    found = moment("1.5h")
    assert isinstance(found, datetime)
    assert timedelta(minutes=89) < utc_now() - found < timedelta(minutes=91)
    assert moment("2026-11-23T08:00:00+00:00") == datetime(2026, 11, 23, 8, tzinfo=UTC)
    local = moment("2026-11-23")
    assert isinstance(local, datetime)
    assert local.tzinfo is not None
    assert moment("1764000000000-0") == "1764000000000-0"
    for wrong in ("", "10", "10 m", "yesterday", "999999999d"):
        with pytest.raises(ConfigError, match="expected how long ago"):
            moment(wrong)


def test_a_packet_about_many_seeds_is_about_each_of_them() -> None:
    payload = {"run_id": "r", "seeds": [{"seed_id": [1, 0]}, {"seed_id": [2, 1]}]}
    envelope = {
        "sender_id": "tamiyo",
        "trace_id": "r",
        "topic": TopicNames.SYSTEM_EVENTS_EPOCH.value,
        "schema_version": "1.1",
        "payload": payload,
    }
    record = Record(
        topic=TopicNames.SYSTEM_EVENTS_EPOCH, position="1-0", data=json.dumps(envelope).encode()
    )
    assert Filter(seed=(2, 1)).takes(record)
    assert not Filter(seed=(2, 0)).takes(record)
    assert as_json(record)["payload"] == payload
    assert "run_id=r  seeds=[2]" in as_lines(record, width=80, is_full=False)[1]
