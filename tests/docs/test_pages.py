"""The documentation is true: snippets run, links lead somewhere, generated pages are what the code says.

A page's snippets run in its order in one fresh folder. `python` blocks run as they are, unless their first
line names a file (`# mynet.py`), as `yaml` blocks' does: then they are written there. Of `console` blocks the
lines behind `$ ` run (a first one that says `# press Ctrl-C` is interrupted); `text` is for reading only.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import pytest

from esper.testkit.postgres import PostgresServer
from esper.testkit.redis import RedisServer
from esper.testkit.runs import start_until
from esper.testkit.s3 import S3Server

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RECORDS = {"decisions", "experiments", "evidence"}
"""What was true when it was written."""

PAGES = sorted(
    path for path in DOCS.rglob("*.md") if not RECORDS & set(path.relative_to(DOCS).parts)
)
TOLD = [page for page in PAGES if "reference" not in page.parts]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w-]+\.(?:py|yaml))\n")
INTERRUPTED = re.compile(r"(.*\S) +# press Ctrl-C\n")
UV_RUN = re.compile(r"\buv run (?:--(?:package|extra) \S+ )*")


@pytest.mark.parametrize("page", TOLD, ids=lambda page: str(page.relative_to(DOCS)))
def test_snippets_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = page.read_text(encoding="utf-8")
    environment: Mapping[str, str] = {}
    if page.name == "real-servers.md":
        text, environment = _on_servers(text, request, tmp_path)
    for language, code in BLOCK.findall(text):
        named = NAMED.match(code)
        if language in ("python", "yaml") and named is not None:
            (tmp_path / named[1]).write_text(code, encoding="utf-8")
        elif language == "python":
            _run([sys.executable, "-W", "error", "-c", code], tmp_path, environment)
        elif language == "console":
            commands = _commands(code)
            if interrupted := INTERRUPTED.match(commands):
                _interrupt(interrupted[1], tmp_path)
                commands = commands[interrupted.end() :]
            _run(["bash", "-euo", "pipefail", "-c", commands], tmp_path, environment)
        else:
            assert language == "text", f"{page.name}: how is a block of {language!r} to be run?"


def _commands(code: str) -> str:
    """Return what a person would type; uv would only choose the environment that these tests run in."""
    typed = [line.removeprefix("$ ") for line in code.splitlines() if line.startswith("$ ")]
    assert typed, code
    # There is no Docker here; tests/infra holds the Compose file against the settings.
    return "\n".join(UV_RUN.sub("", line) for line in typed if not line.startswith("docker "))


def _interrupt(command: str, folder: Path) -> None:
    """Do as told by `# press Ctrl-C`, some epochs later."""
    program, *options = command.split()
    whole = [str(Path(sys.executable).parent / program), *options]
    process = start_until("epoch  11", whole, folder)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert "tamiyo resume" in said


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONWARNINGS": "error"} | dict(environment),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


def _on_servers(
    text: str, request: pytest.FixtureRequest, folder: Path
) -> tuple[str, Mapping[str, str]]:
    """Return the page with the addresses of throwaway servers, and who we are to them."""
    redis: RedisServer = request.getfixturevalue("redis_server")
    postgres: PostgresServer = request.getfixturevalue("postgres_server")
    s3: S3Server = request.getfixturevalue("s3_server")
    database = postgres.create_database()
    shutil.copy(ROOT / ".env.example", folder)
    for name in ("pyproject.toml", "packages"):
        (folder / name).symlink_to(ROOT / name)
    changes = {
        "redis://localhost:6379/0": redis.url,
        "postgresql+psycopg://localhost:5432/urza_db": database,
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text, {
        "DATABASE_URL": database,
        "REDIS_URL": redis.url,
        "S3_ENDPOINT_URL": s3.endpoint,
        "MINIO_ROOT_USER": s3.access_key,
        "MINIO_ROOT_PASSWORD": s3.secret_key,
    }


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "README.md", *ROOT.glob("*/*/README.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [link for link in links if "://" not in link]
    broken = [link for link in local if not (page.parent / unquote(link.split("#")[0])).exists()]
    assert broken == []
    for link in local:
        target, _, anchor = link.partition("#")
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (page.parent / target).read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    named = {str((DOCS / link).resolve()) for link in re.findall(r"\]\(([^)]+)\)", index)}
    missing = [str(page.relative_to(DOCS)) for page in TOLD if str(page) not in named]
    assert missing == ["README.md"]


def test_every_picture_is_shown() -> None:
    text = "".join(page.read_text() for page in TOLD)
    unused = [path.name for path in (DOCS / "pictures").iterdir() if path.name not in text]
    assert unused == []


@pytest.mark.parametrize("script", ["reference.py", "pictures.py"])
def test_what_is_made_from_the_code_is_what_the_code_says(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "infra" / script), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
