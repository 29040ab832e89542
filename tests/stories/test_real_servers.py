"""The same run on real Redis, PostgreSQL and S3, and what happens when a server dies."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from torch import nn

from esper.contracts import BackendUnavailableError
from esper.kasmina import wrap
from esper.tamiyo import Runtime, RuntimeUrls
from esper.tamiyo.forge import forge_kernels
from esper.testkit.postgres import PostgresServer
from esper.testkit.redis import RedisServer, start_redis
from esper.testkit.runs import COMMAND, Train
from esper.testkit.s3 import S3Server


def _options(redis: RedisServer, database: str, s3: S3Server, bucket: str) -> list[str]:
    return [
        *("--bus", redis.url),
        *("--library", database),
        *("--artifacts", f"s3://{bucket}?endpoint={s3.endpoint}"),
    ]


def _keys(s3: S3Server) -> dict[str, str]:
    return {"MINIO_ROOT_USER": s3.access_key, "MINIO_ROOT_PASSWORD": s3.secret_key}


def test_the_run_is_the_same_on_real_servers_as_embedded(
    train: Train, redis_server: RedisServer, postgres_server: PostgresServer, s3_server: S3Server
) -> None:
    options = _options(redis_server, postgres_server.create_database(), s3_server, "esper-run")
    real = train("--epochs", "25", "--no-twin", *options, env=_keys(s3_server))
    embedded = train("--epochs", "25", "--no-twin")
    assert real.exit_code == 0, real.stderr
    assert embedded.exit_code == 0, embedded.stderr
    assert real.summary["weights_sha256"] == embedded.summary["weights_sha256"]
    assert real.summary["topics"] == embedded.summary["topics"]
    assert real.summary["complete"]
    assert not {"library.db", "artifacts"} & {path.name for path in real.folder.iterdir()}


def test_two_runs_on_one_set_of_servers_do_not_disturb_each_other(
    train: Train,
    redis_server: RedisServer,
    postgres_server: PostgresServer,
    s3_server: S3Server,
    tmp_path: Path,
) -> None:
    options = _options(redis_server, postgres_server.create_database(), s3_server, "esper-shared")
    environment = os.environ | _keys(s3_server)
    processes = [
        subprocess.Popen(
            [*COMMAND, "--epochs", "20", "--no-twin", "--seed", str(seed), *options],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (0, 1)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert len([p for p in (tmp_path / "runs").iterdir() if p.is_dir()]) == 2
    assert train("--epochs", "20", "--no-twin").summary["weights_sha256"] in _hashes(tmp_path)


def _hashes(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("runs/*/summary.json"))


def test_no_password_is_written_into_the_run_folder(
    train: Train, postgres_server: PostgresServer
) -> None:
    url = postgres_server.create_database()
    password = url.split("@")[0].rpartition(":")[2]
    run = train("--epochs", "1", "--no-twin", "--library", url, "--artifacts", "file:kernels")
    assert run.exit_code == 0, run.stderr
    again = train(
        "--config", str(run.folder / "config.yaml"), cwd=run.cwd, env={"DATABASE_URL": url}
    )
    assert again.exit_code == 0, again.stderr
    texts = [p for p in run.cwd.rglob("*") if p.suffix in {".json", ".jsonl", ".yaml", ".html"}]
    assert len(texts) >= 8
    assert all(password not in path.read_text() for path in texts)


def test_a_redis_that_dies_costs_telemetry_and_not_the_run(train: Train, tmp_path: Path) -> None:
    """Training goes on to the same weights, and the loss is counted."""
    with start_redis(tmp_path) as redis:
        process = subprocess.Popen(
            [*COMMAND, "--bus", redis.url, "--no-twin", "--epochs", "120"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch" in line:
                break
        redis.stop()
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "did not confirm every message" in stdout
    (summary,) = (tmp_path / "runs").glob("*/summary.json")
    undisturbed = train("--no-twin", "--epochs", "120")
    assert undisturbed.summary["weights_sha256"] in summary.read_text()
    written = json.loads(summary.read_text())
    assert not written["complete"]
    assert written["lost"]["system.events.epoch"] > 0
    delivered_and_lost = (
        written["topics"]["system.events.epoch"] + written["lost"]["system.events.epoch"]
    )
    assert delivered_and_lost == 120


def test_a_redis_that_dies_while_kernels_are_forged_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.tamiyo.forge.FORGE_TIMEOUT_SECONDS", 2.0)
    with start_redis(tmp_path) as redis:
        urls = RuntimeUrls(
            bus=redis.url,
            library=f"sqlite:///{tmp_path / 'library.db'}",
            artifacts=f"file://{tmp_path / 'artifacts'}",
        )
        with Runtime("run-1", urls) as runtime:
            redis.stop()
            bed = wrap(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
            with pytest.raises(BackendUnavailableError, match="check that the server of --bus"):
                forge_kernels(bed, runtime)
