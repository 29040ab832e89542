#!/usr/bin/env python3
"""Makes and checks the pins: `requirements.lock` and the generated block of the root `pyproject.toml`.

Reads every member's `pyproject.toml`, resolves them with uv in a scratch folder, and writes exact
versions, so that the `uv.lock` which each clone makes for itself is the same everywhere. Needs only
uv and the standard library: `uv run --no-project infra/lock.py [--check | --upgrade]`.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT, REQUIREMENTS = "pyproject.toml", "requirements.lock"
BEGIN = "# --- pins: made by infra/lock.py, do not edit by hand ---"
END = "# --- end of pins ---"
EXPORT = (
    *("export", "--locked", "--no-header", "--no-annotate", "--format", "requirements.txt"),
    *("--all-packages", "--all-groups", "--all-extras", "--no-emit-workspace"),
)
PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\]+?))?\s*\\?$"
)


class PinsError(Exception):
    """The pins cannot be made or do not hold; the message says what to do."""


def read_pins(requirements: str) -> list[str]:
    """Return the constraints that `requirements` stands for, in its order.

    A package keeps its marker only where several versions of it are needed, one per platform.

    Raises:
        PinsError: for a line that is neither a pin nor a hash.

    """
    found: list[re.Match[str]] = []
    for number, line in enumerate(requirements.splitlines(), start=1):
        if line.startswith("    --hash="):
            continue
        match = PIN.match(line)
        if match is None:
            raise PinsError(f"{REQUIREMENTS}:{number}: expected 'name==version', got {line!r}")
        found.append(match)
    copies = Counter(match["name"] for match in found)
    return [
        f"{match['name']}=={match['version']}"
        + (f" ; {match['marker']}" if copies[match["name"]] > 1 else "")
        for match in found
    ]


def write_pins(pyproject: str, pins: Sequence[str], exclude_newer: str) -> str:
    """Return the text of `pyproject` with its generated block replaced.

    Raises:
        PinsError: if the block's two marker lines are not there once each.

    """
    if pyproject.count(BEGIN) != 1 or pyproject.count(END) != 1:
        raise PinsError(
            f"{PYPROJECT} needs these two lines once each in [tool.uv]:\n{BEGIN}\n{END}"
        )
    head, rest = pyproject.split(BEGIN)
    tail = rest.split(END)[1]
    lines = [f'    "{pin}",' for pin in pins]
    block = [
        BEGIN,
        f'exclude-newer = "{exclude_newer}"',
        "constraint-dependencies = [",
        *lines,
        "]",
        END,
    ]
    return head + "\n".join(block) + tail


def read_exclude_newer(pyproject: str) -> str | None:
    """Return the moment after which uploads are ignored, or None if none is set."""
    return tomllib.loads(pyproject).get("tool", {}).get("uv", {}).get("exclude-newer")


def resolve(root: Path, pyproject: str) -> str:
    """Resolve the workspace at `root`, with `pyproject` as its root file, from nothing.

    Works on copies of the project files in a scratch folder: no existing `uv.lock` has a say, and
    nothing under `root` changes.

    Raises:
        PinsError: with uv's own words if uv is missing or finds no resolution.

    """
    with tempfile.TemporaryDirectory(prefix="esper-pins-") as name:
        scratch = Path(name)
        (scratch / PYPROJECT).write_text(pyproject, encoding="utf-8")
        shutil.copy(root / ".python-version", scratch)
        members = tomllib.loads(pyproject)["tool"]["uv"]["workspace"]["members"]
        for pattern in members:
            for member in sorted(root.glob(f"{pattern}/{PYPROJECT}")):
                copy = scratch / member.relative_to(root)
                copy.parent.mkdir(parents=True)
                shutil.copy(member, copy)
        _uv(["lock"], scratch)
        return _uv(EXPORT, scratch)


def _uv(arguments: Sequence[str], folder: Path) -> str:
    # `uv run` names its own path in UV, so that the same uv is used when it is not on PATH.
    command = [os.environ.get("UV", "uv"), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise PinsError(f"uv cannot be started ({error}); install it: pip install uv") from error
    if done.returncode != 0:
        raise PinsError(f"`uv {' '.join(arguments)}` failed:\n{done.stderr.strip()}")
    return done.stdout


def check(root: Path) -> None:
    """Hold the committed pins against each other and against a fresh resolve.

    Raises:
        PinsError: with a diff, if anything differs.

    """
    pyproject = (root / PYPROJECT).read_text(encoding="utf-8")
    requirements = (root / REQUIREMENTS).read_text(encoding="utf-8")
    expected = write_pins(pyproject, read_pins(requirements), read_exclude_newer(pyproject) or "")
    _compare(PYPROJECT, pyproject, f"{PYPROJECT} as {REQUIREMENTS} implies it", expected)
    _compare(REQUIREMENTS, requirements, "a fresh resolve", resolve(root, pyproject))


def _compare(name: str, committed: str, other_name: str, other: str) -> None:
    if committed == other:
        return
    diff = difflib.unified_diff(
        committed.splitlines(), other.splitlines(), name, other_name, n=1, lineterm=""
    )
    raise PinsError(
        f"{name} differs from {other_name}:\n" + "\n".join(diff) + "\n"
        "If a member's dependencies changed, refresh the pins: uv run --no-project infra/lock.py\n"
        "If only hashes differ, a published file was added or replaced: find out why first."
    )


def refresh(root: Path, *, upgrade: bool, now: datetime) -> bool:
    """Write both files anew and tell whether anything changed.

    Without `upgrade` every pin stays and only what members added or dropped changes. With it the
    pins are let go and `exclude-newer` moves to yesterday's first minute (UTC), not to this one: a
    file that mirrors do not have yet would make clones differ.

    Raises:
        PinsError: if there is no resolution, or if it does not repeat itself.

    """
    before = (root / PYPROJECT).read_text(encoding="utf-8")
    old_requirements = root / REQUIREMENTS
    exclude_newer = read_exclude_newer(before)
    draft = before
    if upgrade or exclude_newer is None:
        yesterday = now.astimezone(UTC).date() - timedelta(days=1)
        midnight = datetime.combine(yesterday, time(), UTC)
        exclude_newer = midnight.isoformat().replace("+00:00", "Z")
        draft = write_pins(before, [], exclude_newer)
    try:
        requirements = resolve(root, draft)
    except PinsError as error:
        raise PinsError(f"{error}\nIf a pin is in the way, let them move: --upgrade") from error
    after = write_pins(before, read_pins(requirements), exclude_newer)
    if resolve(root, after) != requirements:
        raise PinsError("the pins do not reproduce their own resolution; nothing was written")
    changed = after != before or not old_requirements.exists()
    changed = changed or old_requirements.read_text(encoding="utf-8") != requirements
    (root / PYPROJECT).write_text(after, encoding="utf-8")
    old_requirements.write_text(requirements, encoding="utf-8")
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 fine, 1 the pins do not hold."""
    parser = argparse.ArgumentParser(description="Makes and checks Esper's pins.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="change nothing; compare and report")
    choice.add_argument("--upgrade", action="store_true", help="let every version move up")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            check(ROOT)
            print(f"{REQUIREMENTS} and {PYPROJECT} equal a fresh resolve, hashes included")
        else:
            changed = refresh(ROOT, upgrade=options.upgrade, now=datetime.now(UTC))
            print("pins written" if changed else "pins were up to date")
    except PinsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
