"""The pins script: what it reads, what it writes, and what it says when pins do not hold."""

import importlib.util
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)

REQUIREMENTS = """\
attrs==25.1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
greenlet==3.2.0 ; sys_platform == 'linux' \\
    --hash=sha256:cc
numpy==2.0.0 ; sys_platform == 'darwin' \\
    --hash=sha256:dd
numpy==2.1.0 ; sys_platform == 'linux' \\
    --hash=sha256:ee
"""


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    """The script as a module; it is not part of any package."""
    spec = importlib.util.spec_from_file_location("esper_infra_lock", ROOT / "infra" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def workspace(lock: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose pins hold, with a stand-in for uv: attrs can be resolved to the pin or 26."""

    def resolve(_root: Path, pyproject: str) -> str:
        version = "25.1.0" if '"attrs==25.1.0"' in pyproject else "26.0.0"
        return f"attrs=={version} \\\n    --hash=sha256:aa\n"

    monkeypatch.setattr(lock, "resolve", resolve)
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    empty = f"[tool.uv]\n{lock.BEGIN}\n{lock.END}\n\n[tool.other]\n"
    pyproject = lock.write_pins(empty, ["attrs==25.1.0"], "2026-01-01T00:00:00Z")
    (tmp_path / "pyproject.toml").write_text(pyproject)
    (tmp_path / "requirements.lock").write_text("attrs==25.1.0 \\\n    --hash=sha256:aa\n")
    return tmp_path


def test_a_marker_is_kept_only_where_platforms_need_different_versions(lock: ModuleType) -> None:
    assert lock.read_pins(REQUIREMENTS) == [
        "attrs==25.1.0",
        "greenlet==3.2.0",
        "numpy==2.0.0 ; sys_platform == 'darwin'",
        "numpy==2.1.0 ; sys_platform == 'linux'",
    ]


def test_a_line_that_is_no_pin_is_named(lock: ModuleType) -> None:
    with pytest.raises(lock.PinsError, match=r"requirements.lock:2: expected .* got 'attrs>=25'"):
        lock.read_pins("idna==3.1\nattrs>=25\n")


def test_writing_replaces_the_generated_block_and_nothing_else(lock: ModuleType) -> None:
    before = f"[tool.uv]\npackage = false\n{lock.BEGIN}\nold\n{lock.END}\n\n[tool.ruff]\n"
    once = lock.write_pins(before, ["a==1"], "2026-01-01T00:00:00Z")
    assert once.startswith("[tool.uv]\npackage = false\n# ---")
    assert once.endswith(f"{lock.END}\n\n[tool.ruff]\n")
    assert "old" not in once
    assert lock.write_pins(once, ["a==1"], "2026-01-01T00:00:00Z") == once
    assert lock.read_exclude_newer(once) == "2026-01-01T00:00:00Z"


def test_a_root_file_without_the_markers_is_refused(lock: ModuleType) -> None:
    with pytest.raises(lock.PinsError, match=r"needs these two lines once each in \[tool.uv\]"):
        lock.write_pins("[tool.uv]\n", ["a==1"], "2026-01-01T00:00:00Z")


def test_pins_that_hold_pass(lock: ModuleType, workspace: Path) -> None:
    assert lock.main(["--check"]) == 0


def test_a_resolve_that_differs_fails_with_a_diff_and_what_to_do(
    lock: ModuleType, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "attrs==25.1.0 \\\n    --hash=sha256:other\n"
    (workspace / "requirements.lock").write_text(lines)
    assert lock.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert "-    --hash=sha256:other\n+    --hash=sha256:aa" in said
    assert "refresh the pins: uv run --no-project infra/lock.py" in said


def test_constraints_that_say_otherwise_than_the_lock_fail(
    lock: ModuleType, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "requirements.lock").write_text("attrs==24.0.0 \\\n    --hash=sha256:aa\n")
    assert lock.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert '-    "attrs==25.1.0",\n+    "attrs==24.0.0",' in said


def test_a_refresh_keeps_versions_and_an_upgrade_moves_them(
    lock: ModuleType, workspace: Path
) -> None:
    assert not lock.refresh(workspace, upgrade=False, now=NOW)
    lock_file, pyproject = workspace / "requirements.lock", workspace / "pyproject.toml"
    assert lock_file.read_text().startswith("attrs==25.1.0")
    assert lock.refresh(workspace, upgrade=True, now=NOW)
    assert lock_file.read_text().startswith("attrs==26.0.0")
    assert '"attrs==26.0.0"' in pyproject.read_text()
    assert lock.read_exclude_newer(pyproject.read_text()) == "2026-11-22T00:00:00Z"


def test_an_upgrade_that_does_not_repeat_itself_writes_nothing(
    lock: ModuleType, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["a==1 \\\n    --hash=sha256:aa\n", "a==2 \\\n    --hash=sha256:bb\n"])

    def resolve(_root: Path, _pyproject: str) -> str:
        return next(answers)

    monkeypatch.setattr(lock, "resolve", resolve)
    before = {path: path.read_text() for path in workspace.iterdir()}
    with pytest.raises(lock.PinsError, match="do not reproduce their own resolution"):
        lock.refresh(workspace, upgrade=True, now=NOW)
    assert {path: path.read_text() for path in workspace.iterdir()} == before


def test_the_committed_pins_agree_with_each_other(lock: ModuleType) -> None:
    """The comparison with a fresh resolve is a step of its own in CI."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    pins = lock.read_pins((ROOT / "requirements.lock").read_text())
    moment = lock.read_exclude_newer(pyproject)
    assert moment is not None
    assert lock.write_pins(pyproject, pins, moment) == pyproject
    assert len(pins) > 100


def test_every_pin_carries_a_hash(lock: ModuleType) -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert line.startswith("    --hash=sha256:") or following.startswith("    --hash=sha256:")


def test_all_platforms_of_users_are_resolved() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    assert settings["environments"] == settings["required-environments"]
    platforms = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
    for system, machine in platforms:
        marker = f"sys_platform == '{system}' and platform_machine == '{machine}'"
        assert marker in settings["environments"]
