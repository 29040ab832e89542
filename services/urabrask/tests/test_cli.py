"""The crucible's command line: help that teaches, one clear message for bad input, a clean end."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esper.contracts import (
    CompiledKernelArtifact,
    KernelCharacterized,
    KernelReady,
    KernelStatus,
    Library,
    TopicNames,
)
from esper.contracts.registry import bus_factory
from esper.kasmina import builtin_blueprints, key_id_of, verify_endorsement
from esper.testkit.redis import RedisServer
from esper.urabrask import load_or_create_key
from esper.urabrask.cli import main

type Run = Callable[..., int]
type Forge = Callable[..., tuple[CompiledKernelArtifact, bytes]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process; return its exit code."""

    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["urabrask", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


def test_the_help_shows_an_example(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "urabrask --bus redis://localhost:6379/0 --library sqlite:///library.db" in text
    assert "--signing-key crucible.key" in text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bus": "kafka://localhost"}, "unknown bus scheme 'kafka'; installed: memory, redis"),
        ({"bus": "redis://127.0.0.1:1/0"}, "127.0.0.1:1"),
        ({"signing-key": "/nowhere/crucible.key"}, "signing key file /nowhere/crucible.key cannot"),
        ({"signing-key": "bad.key"}, "signing key file bad.key is malformed; expected an Ed25519"),
    ],
)
def test_bad_input_ends_with_one_message_and_exit_code_2(
    run: Run,
    urls: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    problem: str,
) -> None:
    (tmp_path / "bad.key").write_text("not hexadecimal")
    (tmp_path / "bad.key").chmod(0o600)
    options = {"bus": "memory://", **urls} | changes
    assert run(*(f"--{name}={value}" for name, value in options.items())) == 2
    errors = capsys.readouterr().err
    assert problem in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "library.db").exists() or "bus" in changes


def test_as_a_process_it_judges_and_signs_until_it_is_told_to_stop(
    redis_server: RedisServer, library: Library, urls: dict[str, str], forge: Forge, tmp_path: Path
) -> None:
    kernel, blob = forge()
    library.submit_blueprint(next(ir for ir in builtin_blueprints() if ir.name == "residual_mlp"))
    library.register_kernel(kernel, blob)
    ready = KernelReady(
        kernel_id=kernel.kernel_id, blueprint_id=kernel.blueprint_id, signature=kernel.signature
    )
    key_file = tmp_path / "crucible.key"
    characterized, code, output = asyncio.run(
        _judge_in_a_process(redis_server.url, urls, key_file, ready)
    )
    assert code == 0, output
    assert "Traceback" not in output
    assert characterized.report.passed
    judged = library.get_kernel(kernel.kernel_id)
    assert judged.status is KernelStatus.VALIDATED
    public_key = load_or_create_key(key_file).public_key
    verify_endorsement(judged, {key_id_of(public_key): public_key})


async def _judge_in_a_process(
    bus_url: str, urls: dict[str, str], key_file: Path, ready: KernelReady
) -> tuple[KernelCharacterized, int, str]:
    """Publish `ready`, start the crucible, wait for its verdict, and stop it with Ctrl-C."""
    bus = bus_factory(bus_url)(bus_url)
    topics = [TopicNames.VALIDATION_KERNEL_CHARACTERIZED]
    await bus.open()
    try:
        await bus.create_group([TopicNames.COMPILATION_KERNEL_READY], group="urabrask")
        await bus.create_group(topics, group="test")
        await bus.publish(ready, sender_id="test", trace_id="run-1")
        code = "from esper.urabrask.cli import main; main()"
        options = [f"--artifacts={urls['artifacts']}", f"--signing-key={key_file}"]
        with subprocess.Popen(
            [sys.executable, "-c", code, *options],
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
                        assert isinstance(payload, KernelCharacterized)
                        process.send_signal(signal.SIGINT)
                        output = await asyncio.to_thread(process.communicate, timeout=30)
                        return payload, process.returncode, output[1]
            finally:
                process.kill()
        raise AssertionError("the bus ended without a message")
    finally:
        await bus.close()
