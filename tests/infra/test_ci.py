"""Holds the CI workflow and `.ci/run` against the workspace: every package has a job, tools are pinned."""

import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / ".ci" / "run"


@pytest.fixture
def jobs() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    """Return the shell commands of a job, in order."""
    return [step["run"] for step in job["steps"] if "run" in step]


def test_every_package_has_a_job_of_its_own(jobs: dict[str, Any]) -> None:
    packages = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
    assert jobs["package"]["strategy"]["matrix"]["package"] == packages
    assert commands(jobs["package"])[-1] == "bash infra/test_packages.sh ${{ matrix.package }}"


def test_services_and_stories_have_a_job(jobs: dict[str, Any]) -> None:
    assert commands(jobs["together"])[-1] == "uv run pytest services tests"


def test_what_nobody_here_wrote_has_jobs_with_its_packages(jobs: dict[str, Any]) -> None:
    assert commands(jobs["hosts"])[-1] == "uv run --locked --group hosts pytest tests/hosts"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    by_hand = {"rivals"}  # for one table of the benchmarks, which no job runs
    with_jobs = {"adapters", "hosts", "tracking"}
    assert set(settings["dependency-groups"]) - by_hand - {"dev"} == with_jobs
    for group in with_jobs:
        assert f"--locked --group {group} pytest" in commands(jobs[group])[-1]
    assert "default-groups" not in settings["tool"]["uv"]  # dev alone: nobody else installs them


def test_lint_types_and_pins_have_a_job(jobs: dict[str, Any]) -> None:
    assert {
        "uv run --no-project infra/lock.py --check",
        "uv run ruff format --check .",
        "uv run ruff check .",
        "uv run pyright",
    } <= set(commands(jobs["checks"]))


def test_a_locked_sync_comes_after_a_lock(jobs: dict[str, Any]) -> None:
    """A clone has no uv.lock until it makes one."""
    for job in jobs.values():
        lines = commands(job)
        locked = [index for index, line in enumerate(lines) if "--locked" in line]
        assert all("uv lock" in lines[:index] for index in locked)


def test_every_action_and_uv_itself_is_pinned(jobs: dict[str, Any]) -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"][
        "required-version"
    ]
    for job in jobs.values():
        steps = [step for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"[\w/-]+@v\d+(\.\d+)*", step["uses"]) for step in steps)
        (uv,) = [step for step in steps if "setup-uv" in step["uses"]]
        assert uv["with"]["version"] == required


def test_the_local_script_runs_what_the_workflow_runs(jobs: dict[str, Any]) -> None:
    script = RUN.read_text()
    for line in commands(jobs["checks"]):
        assert line in script or line in {"uv lock", "uv sync --locked"}
    assert "bash infra/test_packages.sh" in script
    assert "uv run pytest ||" in script


@pytest.mark.parametrize("script", [".ci/run", "infra/test_packages.sh"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


@pytest.fixture
def run_with_fakes(tmp_path: Path) -> Callable[[dict[str, str]], str]:
    """Run `.ci/run` with these commands (name: shell script) before all others; returns its output.

    The script's clone is a folder that holds nothing else, so it ends at its first real step.
    """
    clone, fakes = tmp_path / "clone", tmp_path / "fakes"
    (clone / ".ci").mkdir(parents=True)
    fakes.mkdir()
    (clone / ".ci" / "run").write_bytes(RUN.read_bytes())
    (clone / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())

    def run(commands: dict[str, str]) -> str:
        for name, script in {"git": "exit 0", **commands}.items():
            (fakes / name).write_text(f"#!/bin/bash\n{script}\n")
            (fakes / name).chmod(0o755)
        done = subprocess.run(
            ["/bin/bash", ".ci/run"],
            cwd=clone,
            env={"PATH": f"{fakes}:/usr/bin:/bin", "HOME": str(tmp_path), "CI": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        return done.stdout + done.stderr

    return run


def test_a_suitable_uv_is_used_as_it_is(run_with_fakes: Callable[[dict[str, str]], str]) -> None:
    fake = '[ "$1" = --version ] && echo "uv 0.13.99 (fake)" || exit 7'
    output = run_with_fakes({"uv": fake, "python3": "echo pip was called; exit 1"})
    assert "uv 0.13.99 (fake)" in output
    assert "pip was called" not in output


@pytest.mark.parametrize(
    "broken",
    ["echo 'pyenv: uv: command not found' >&2; exit 127", "echo 'uv 0.2.1 (too old)'"],
)
def test_a_broken_or_old_uv_is_replaced_by_one_from_pip(
    run_with_fakes: Callable[[dict[str, str]], str], broken: str
) -> None:
    """Such as a pyenv shim that is on PATH and fails where `.python-version` names another Python."""
    install = """
    while [ $# -gt 0 ]; do [ "$1" = --target ] && target=$2; last=$1; shift; done
    echo "asked for $last"
    mkdir -p "$target/bin"
    printf '#!/bin/bash\\n[ "$1" = --version ] && echo "uv 0.13.42 (from pip)"' > "$target/bin/uv"
    chmod +x "$target/bin/uv"
    """
    output = run_with_fakes({"uv": broken, "python3": install})
    assert "asked for uv==0.13.*" in output
    assert "uv 0.13.42 (from pip)" in output
