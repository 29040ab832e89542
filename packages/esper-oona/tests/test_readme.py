"""The README's examples run as printed, and its commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from esper.oona.cli import app, main

README = Path(__file__).parents[1] / "README.md"


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
SAID = ["control.kasmina.commands no help\n", "(0, 0) no help\n"]


@pytest.mark.parametrize(
    ("example", "said"), list(zip(EXAMPLES, SAID, strict=True)), ids=("subscribe", "consume")
)
def test_example_in_the_readme_runs_and_prints_what_it_received(example: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == (said, "")


def test_every_command_in_the_readme_exists_with_its_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [commands] = re.findall(r"```sh\n(oona.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in commands.splitlines()]
    assert {line[1] for line in lines} == set(_names(app))
    for line in lines:
        monkeypatch.setattr(sys, "argv", [*line, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), line
        text = capsys.readouterr().out
        assert all(word in text for word in line if word.startswith("-")), line


def _names(app: typer.Typer) -> list[str | None]:
    return [each.name for each in (*app.registered_commands, *app.registered_groups)]
