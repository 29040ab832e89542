"""The forge's command line: help that teaches, one clear message for bad input, a clean end."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from esper.contracts import (
    BlueprintIR,
    BlueprintSubmitted,
    EsperError,
    KernelReady,
    KernelSignature,
    Library,
    TopicNames,
)
from esper.contracts.registry import bus_factory
from esper.testkit.redis import RedisServer
from esper.tezzeret.cli import main

type Run = Callable[..., int]
type MakeIR = Callable[..., BlueprintIR]
type MakeSignature = Callable[..., KernelSignature]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process; return its exit code."""

    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tezzeret", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


def test_the_help_shows_an_example(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "tezzeret --bus redis://localhost:6379/0 --library sqlite:///library.db" in text
    for option in ("--bus", "--library", "--artifacts", "--debug"):
        assert option in text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bus": "kafka://localhost"}, "unknown bus scheme 'kafka'; installed: memory, redis"),
        ({"library": "library.db"}, "unknown library URL 'library.db' (no scheme)"),
        ({"artifacts": "ftp://host"}, "unknown artifact store scheme 'ftp'; installed: file, s3"),
        ({"bus": "redis://127.0.0.1:1/0"}, "127.0.0.1:1"),
        ({"library": "sqlite:////nowhere/at/all/library.db"}, "/nowhere/at/all/library.db"),
    ],
)
def test_bad_input_ends_with_one_message_and_exit_code_2(
    run: Run,
    urls: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    problem: str,
) -> None:
    options = {"bus": "memory://", **urls} | changes
    assert run(*(f"--{name}={value}" for name, value in options.items())) == 2
    errors = capsys.readouterr().err
    assert problem in errors
    assert "Traceback" not in errors


def test_without_any_setting_it_says_what_to_set(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 2
    assert "POSTGRES_PASSWORD and DATABASE_URL are both unset" in capsys.readouterr().err


def test_with_debug_the_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tezzeret", "--debug"])
    with pytest.raises(EsperError, match="POSTGRES_PASSWORD"):
        main()


def test_as_a_process_it_serves_until_it_is_told_to_stop(
    redis_server: RedisServer,
    library: Library,
    urls: dict[str, str],
    make_ir: MakeIR,
    make_signature: MakeSignature,
) -> None:
    blueprint = library.submit_blueprint(make_ir())
    wanted = BlueprintSubmitted(
        blueprint_id=blueprint.blueprint_id, signatures=(make_signature(8),)
    )
    ready, code, output = asyncio.run(_forge_in_a_process(redis_server.url, urls, wanted))
    assert ready.blueprint_id == blueprint.blueprint_id
    assert library.get_kernel(ready.kernel_id).signature == make_signature(8)
    assert code == 0, output
    assert "Traceback" not in output


async def _forge_in_a_process(
    bus_url: str, urls: dict[str, str], wanted: BlueprintSubmitted
) -> tuple[KernelReady, int, str]:
    """Publish `wanted`, start the forge, wait for its answer, and stop it as a container does."""
    bus = bus_factory(bus_url)(bus_url)
    topics = [TopicNames.COMPILATION_KERNEL_READY]
    await bus.open()
    try:
        await bus.create_group([TopicNames.COMPILATION_BLUEPRINT_SUBMITTED], group="tezzeret")
        await bus.create_group(topics, group="test")
        await bus.publish(wanted, sender_id="test", trace_id="run-1")
        code = "from esper.tezzeret.cli import main; main()"
        with subprocess.Popen(
            [sys.executable, "-c", code, f"--artifacts={urls['artifacts']}"],
            env=os.environ
            | {"REDIS_URL": bus_url, "DATABASE_URL": urls["library"], "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                async with asyncio.timeout(60):
                    async for delivery in bus.subscribe(topics, group="test", consumer="test"):
                        payload = delivery.payload()
                        await delivery.ack()
                        assert isinstance(payload, KernelReady)
                        process.send_signal(signal.SIGTERM)
                        output = await asyncio.to_thread(process.communicate, timeout=30)
                        return payload, process.returncode, output[1]
            finally:
                process.kill()
        raise AssertionError("the bus ended without a message")
    finally:
        await bus.close()
