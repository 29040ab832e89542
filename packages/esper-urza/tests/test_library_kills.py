"""A process is killed (`kill -9`) at any line while it registers kernels, or while it migrates.

The child kills itself when it comes to a line, chosen by chance, of the library, its drivers or Alembic.
Longer: `ESPER_LIBRARY_KILLS=125 uv run pytest packages/esper-urza/tests/test_library_kills.py`.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from esper.contracts import BlueprintIR, CompiledKernelArtifact, utc_now
from esper.urza.engine import make_engine, parse_url
from esper.urza.garbage import collect
from esper.urza.library import SqlLibrary
from esper.urza.migrate import newest_revision, upgrade
from esper.urza.verify import verify

_KILLED_AT_A_LINE = """
import os, signal, sys, threading
count, last = 0, int(sys.argv[1])

def follow(frame, event, argument):
    global count
    file = frame.f_code.co_filename
    if not any(part in file for part in PARTS):
        return None
    count += event == "line"
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return follow

def watch():
    threading.settrace(follow)
    sys.settrace(follow)
"""

_REGISTER = (
    'PARTS = ("/esper/urza/", "/sqlalchemy/engine/", "/psycopg/", "/minio/api.py")\n'
    + _KILLED_AT_A_LINE
    + """
from esper.contracts import CompiledKernelArtifact
from esper.contracts.registry import artifact_store_factory, library_factory
library_url, artifacts_url, *given = sys.argv[2:]
library = library_factory(library_url)(library_url, artifact_store_factory(artifacts_url)(artifacts_url))
library.open()
kernels = [(CompiledKernelArtifact.model_validate_json(each), bytes.fromhex(blob))
           for each, blob in zip(given[::2], given[1::2])]
watch()
library.register_kernels(kernels)
sys.settrace(None)
print(count)
"""
)

_MIGRATE = (
    'PARTS = ("/esper/urza/", "/alembic/", "/sqlalchemy/engine/")\n'
    + _KILLED_AT_A_LINE
    + """
from esper.urza import upgrade
from esper.urza.engine import make_engine, parse_url
engine = make_engine(parse_url(sys.argv[2]))
watch()
upgrade(engine)
sys.settrace(None)
print(count)
"""
)
_NUM_KILLS = int(os.environ.get("ESPER_LIBRARY_KILLS", "2"))

pytestmark = pytest.mark.long


def _run(program: str, line: int, *arguments: str) -> int:
    """Run the child until that line; return how many there were, 0 if it was killed."""
    command = [sys.executable, "-c", program, str(line), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (0, -9), done.stderr
    return int(done.stdout) if done.returncode == 0 else 0


def test_a_registration_killed_at_any_step_leaves_all_of_it_or_nothing(
    library: SqlLibrary,
    library_url: str,
    artifacts_url: str,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
) -> None:
    library.submit_blueprint(make_ir())
    chance = random.Random(5)

    def register(first: int, line: int) -> set[str]:
        given = [make_kernel(make_ir(), number) for number in (first, first + 1)]
        texts = [text for kernel, blob in given for text in (kernel.model_dump_json(), blob.hex())]
        num_lines[0] = max(num_lines[0], _run(_REGISTER, line, library_url, artifacts_url, *texts))
        return {kernel.kernel_id for kernel, _ in given}

    num_lines = [0]
    register(0, -1)
    for n in range(1, _NUM_KILLS + 1):
        pair = register(2 * n, chance.randrange(1, num_lines[0]))
        on_file = {each for kind, each in library.find_ids("") if kind == "kernel"} | {
            event_id for event in library.events() for event_id in event.data.get("kernels", ())
        }
        assert pair & on_file in (set(), pair)
        assert list(verify(library)) == []
    referenced = {each for event in library.events() for each in event.data.get("kernels", ())}
    collect(library.artifacts, referenced.__contains__, now=utc_now() + timedelta(days=2))
    assert {each.sha256 for each in library.artifacts.list()} == referenced
    assert list(library.artifacts.drafts()) == []


def test_a_migration_killed_at_any_step_is_done_again_from_its_start(empty_url: str) -> None:
    chance = random.Random(6)
    engine = make_engine(parse_url(empty_url))
    num_lines = _run(_MIGRATE, -1, empty_url)
    for _ in range(_NUM_KILLS):
        _empty(engine)
        _run(_MIGRATE, chance.randrange(1, num_lines), empty_url)
        with engine.connect() as connection:
            found = sa.inspect(connection).get_table_names()
        assert found == [] or "events" in found  # all of it is one transaction
        upgrade(engine)
        with engine.connect() as connection:
            applied = connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all()
        assert applied == [newest_revision()]
    engine.dispose()


def _empty(engine: sa.Engine) -> None:
    """Remove everything from a database, guards and functions too."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
        return
    engine.dispose()
    for ending in ("", "-wal", "-shm"):
        Path(f"{engine.url.database}{ending}").unlink(missing_ok=True)
