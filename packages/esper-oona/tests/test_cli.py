"""The command line `oona`: what it shows, what it changes, and how it ends when something is wrong."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from esper.contracts import (
    PAYLOADS,
    Bus,
    DeadLetter,
    HealthSignal,
    KasminaCommand,
    SeedState,
    TopicNames,
)
from esper.contracts.registry import bus_factory
from esper.oona.cli import main
from esper.oona.options import RedisOptions
from esper.oona.redis_client import connect
from esper.testkit.redis import RedisServer

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
CONTROL = TopicNames.CONTROL_KASMINA_COMMANDS
CULL = '{"seed_id": [1, 0], "target": "CULLED", "epoch": 3, "reason": "by hand"}'

type Run = Callable[..., int]
type Health = Callable[[int], HealthSignal]


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    """Streams that no other test uses."""
    return f"{redis_server.url}?prefix={uuid4().hex}"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, url: str, tmp_path: Path) -> Run:
    """Run the command line in this process on those streams; return its exit code."""
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def oona(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["oona", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return oona


def _on(url: str, work: Callable[[Bus], Coroutine[Any, Any, None]]) -> None:
    """Do some work with a client of the bus."""

    async def connected() -> None:
        bus = bus_factory(url)(url)
        await bus.open()
        try:
            await work(bus)
        finally:
            await bus.close()

    asyncio.run(connected())


@pytest.fixture
def letters(url: str, health: Health) -> list[DeadLetter]:
    """Two dead letters of the group `fails`, in epochs 0 and 1."""
    found: list[DeadLetter] = []

    async def fail(bus: Bus) -> None:
        await bus.create_group([HEALTH], group="fails")
        await bus.publish_many([health(0), health(1)], sender_id="test", trace_id="run")
        async with aclosing(bus.subscribe([HEALTH], group="fails", consumer="one")) as deliveries:
            for reason in ("no good", "broken\nat line 7"):
                await (await anext(deliveries)).dead_letter(reason)
        found.extend(await bus.dead_letters())

    _on(url, fail)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("topics",),
        ("health",),
        ("publish",),
        ("tail",),
        ("replay",),
        ("bench",),
        ("groups",),
        ("groups", "create"),
        ("groups", "remove"),
        ("dead-letters", "list"),
        ("dead-letters", "show"),
        ("dead-letters", "requeue"),
    ],
)
def test_the_help_of_every_command_fits_a_terminal(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(*arguments, "--help") == 0
    text = capsys.readouterr().out
    assert "Usage: oona" in text
    assert "Show this message and exit" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ((), "oona dead-letters requeue --all"),
        (("topics",), "oona topics control"),
        (("health",), "until oona health > health.txt; do sleep 1; done"),
        (("publish",), "oona publish field_reports --file report.json --trace run-7"),
        (("groups",), "oona groups create archive --topic health --topic epoch"),
        (("dead-letters",), "oona dead-letters requeue --all --group urabrask"),
    ],
)
def test_the_help_shows_examples(
    run: Run, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], example: str
) -> None:
    assert run(*command, "--help") == 0
    assert example in capsys.readouterr().out


def test_topics_lists_every_topic_with_its_model_and_who_reads_it(
    run: Run, url: str, health: Health, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fill(bus: Bus) -> None:
        await bus.create_group([HEALTH], group="nissa")
        await bus.publish_many([health(0), health(1)], sender_id="test", trace_id="run")

    _on(url, fill)
    assert run("topics") == 0
    text = capsys.readouterr().out
    for topic, model in PAYLOADS.items():
        assert f"{topic.value} " in text
        assert model.__name__ in text
    assert "read by nissa (2 behind)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert run("topics", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    [row] = [row for row in rows if row["topic"] == HEALTH]
    assert (row["payload"], row["length"], row["groups"]) == ("HealthSignal", 2, {"nissa": 2})


def test_the_fields_of_a_topic_are_listed_without_a_server(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert run("topics", "control") == 0
    text = capsys.readouterr().out
    assert f"carries KasminaCommand, {len(KasminaCommand.model_fields)} fields" in text
    assert "  epoch       int            required\n" in text
    assert run("topics", "control", "--json") == 0
    assert "seed_id" in json.loads(capsys.readouterr().out)["required"]


def test_health_says_that_the_bus_is_up_and_who_is_behind(
    run: Run, letters: list[DeadLetter], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(letters) == 2
    assert run("health") == 0
    text = capsys.readouterr().out
    assert text.startswith("up  ")
    assert "telemetry.seed.health  2 messages" in text
    assert "2 dead letters; `oona dead-letters list` shows them" in text
    assert max(map(len, text.splitlines())) <= 80
    assert run("health", "--json") == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["is_reachable"], state["num_dead_letters"]) == (True, 2)
    assert state["topics"][0]["groups"][0]["group"] == "fails"


@pytest.mark.parametrize("command", ["health", "topics", "groups"])
def test_a_dead_server_ends_with_one_line_and_exit_code_1(
    run: Run, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(command, "--url", "redis://:geheim@127.0.0.1:1/0") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("oona: no Redis server answers at 127.0.0.1:1")
    assert errors.count("\n") == 1
    assert "geheim" not in errors


def test_a_dead_server_is_an_answer_for_machines_too(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("health", "--json", "--url", "redis://:geheim@127.0.0.1:1/0") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["is_reachable"] is False
    assert "geheim" not in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ("health", "--url", "memory://"),
            "a memory:// bus lives inside the process that opened it",
        ),
        (("health", "--url", "kafka://x"), "unknown bus scheme 'kafka'; installed: memory, redis"),
        (("topics", "weather"), "'weather' is no topic; expected one of telemetry.seed.health"),
        (("topics", "kernel"), "'kernel' fits 2 topics; expected one of compilation.kernel.ready"),
        (("groups", "remove", "nobody", "--yes"), "there is no group 'nobody' on any topic"),
        (("dead-letters", "show", "7-0"), "there is no dead letter '7-0'"),
        (("dead-letters", "requeue"), "expected either the ids of letters, or --all"),
        (
            ("dead-letters", "requeue", "7-0", "--all"),
            "expected either the ids of letters, or --all",
        ),
        (("publish", "control"), "expected the payload either inline, or as --file FILE"),
        (("publish", "control", "--file", "none.json"), "file none.json cannot be read"),
        (("publish", "control", "{"), "payload: Invalid JSON"),
        (("publish", "control", "{}"), "seed_id: Field required; target: Field required"),
        (("publish", "control", CULL[:-1] + ', "why": 1}'), "why: no such field"),
        (
            ("publish", "control", CULL.replace("3", "-3")),
            "epoch: Input should be greater than or equal to 0, got -3. `oona topics control.kasmina",
        ),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("oona: ")
    assert problem in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("how", ["inline", "file", "stdin"])
def test_a_published_message_arrives(
    run: Run,
    url: str,
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("groups", "create", "kasmina", "--topic", "control") == 0
    assert "group kasmina receives from control.kasmina.commands" in capsys.readouterr().out
    (tmp_path / "cull.json").write_text(CULL)
    arguments = {"inline": [CULL], "file": ["--file", "cull.json"], "stdin": ["-"]}[how]
    with (tmp_path / "cull.json").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("publish", "control", *arguments, "--trace", "run-7", "--json") == 0
    event_id = json.loads(capsys.readouterr().out)["event_id"]

    async def receive(bus: Bus) -> None:
        async with aclosing(bus.subscribe([CONTROL], group="kasmina", consumer="one")) as found:
            delivery = await anext(found)
            assert delivery.message.event_id == event_id
            assert (delivery.message.sender_id, delivery.message.trace_id) == ("oona", "run-7")
            payload = delivery.payload()
            assert isinstance(payload, KasminaCommand)
            assert (payload.target, payload.reason) == (SeedState.CULLED, "by hand")
            await delivery.ack()

    _on(url, receive)


def test_a_group_is_removed_only_when_it_was_agreed(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert run("groups", "create", "archive", "--topic", "health", "--topic", "epoch") == 0
        assert run("groups", "remove", "archive") == 2
    assert "There is no terminal to ask at; give --yes" in capsys.readouterr().err
    assert run("groups", "--json") == 0
    assert {row["topic"] for row in json.loads(capsys.readouterr().out)} == {
        HEALTH,
        TopicNames.SYSTEM_EVENTS_EPOCH,
    }
    assert run("groups", "remove", "archive", "--yes") == 0
    assert run("groups") == 0
    assert "no groups yet" in capsys.readouterr().out


def test_dead_letters_are_listed_shown_and_requeued(
    run: Run, url: str, letters: list[DeadLetter], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (letter.letter_id for letter in letters)
    assert run("dead-letters", "list", "-n", "1") == 0
    text = capsys.readouterr().out
    assert f"{first}  telemetry.seed.health  group fails, handed out 1 time\n  no good\n" in text
    assert "and 1 more; -n shows more" in text
    assert run("dead-letters", "show", second) == 0
    text = capsys.readouterr().out
    assert "reason broken\nat line 7\n" in text
    assert '"epoch": 1,' in text
    assert run("dead-letters", "list", "--json", "--group", "fails", "--topic", "health") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["message"]["payload"]["epoch"] for row in rows] == [0, 1]
    assert run("dead-letters", "list", "--group", "works") == 0
    assert capsys.readouterr().out == "no dead letters\n"

    assert run("dead-letters", "requeue", first, "7-0") == 1
    captured = capsys.readouterr()
    assert "1 message handed to their groups again" in captured.out
    assert "there is no dead letter '7-0'" in captured.err
    assert run("dead-letters", "requeue", "--all", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"requeued": [second], "problems": []}

    async def receive(bus: Bus) -> None:
        async with aclosing(bus.subscribe([HEALTH], group="fails", consumer="two")) as found:
            epochs = [(await anext(found)).message.payload["epoch"] for _ in range(2)]
            assert sorted(epochs) == [0, 1]

    _on(url, receive)


def test_bench_measures_and_leaves_nothing_behind(
    run: Run, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _keys(url)
    assert run("bench", "-n", "200", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["messages"] == 200
    assert min(result.values()) > 0
    assert result["latency_p50_seconds"] <= result["latency_p99_seconds"]
    assert run("bench", "-n", "200") == 0
    assert "publish_many" in capsys.readouterr().out
    assert _keys(url) == before


def _keys(url: str) -> int:
    """Count the keys of all benches."""

    async def count() -> int:
        client = connect(RedisOptions.from_url(url))
        script = "return #redis.call('KEYS', 'oona-bench-*')"
        found = await client.eval(script, 0)
        await client.aclose()
        assert isinstance(found, int)
        return found

    return asyncio.run(count())


def test_as_a_process_it_ends_quietly_when_nobody_reads(url: str) -> None:
    """`oona topics | head -1`: no traceback, and no word about a broken pipe."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from esper.oona.cli import main; main()", "topics", "--json"],
            env={**os.environ, "REDIS_URL": url},
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_program_is_installed_and_takes_the_password_from_the_settings(
    redis_server: RedisServer,
) -> None:
    program = Path(sys.executable).with_name("oona")
    done = subprocess.run(
        [program, "health", "--json"],
        env={**os.environ, "REDIS_URL": redis_server.url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["is_reachable"] is True
