"""An import that is killed, meets another one, or finds the disk full leaves a whole library or none.

Longer: `ESPER_IMPORT_KILLS=100 uv run pytest packages/esper-urza/tests/test_transfer_kills.py -m long`.
"""

import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from esper.contracts import (
    ArtifactStore,
    BlueprintIR,
    CompiledKernelArtifact,
    Endorsement,
    IllegalTransitionError,
    ServerFullError,
    ValidationReport,
)
from esper.testkit.postgres import PostgresServer
from esper.testkit.s3 import S3Server
from esper.urza import open_file_store, open_library, open_s3_store
from esper.urza.exporting import export_library
from esper.urza.importing import import_library
from esper.urza.library import SqlLibrary
from esper.urza.schema import events, metadata
from esper.urza.verify import verify

_NUM_KILLS = int(os.environ.get("ESPER_IMPORT_KILLS", "3"))

_CHILD = """
import os, signal, sys, threading
from pathlib import Path
from esper.contracts.registry import artifact_store_factory
from esper.urza import open_library
from esper.urza.importing import import_library
url, artifacts, file, line = *sys.argv[1:4], int(sys.argv[4])
library = open_library(url, artifact_store_factory(artifacts)(artifacts))
library.open()
count = 0

def follow(frame, event, argument):
    global count
    if "/esper/urza/" not in frame.f_code.co_filename:
        return None
    count += event == "line"
    if count == line:
        os.kill(os.getpid(), signal.SIGKILL)
    return follow

threading.settrace(follow)
sys.settrace(follow)
import_library(library, Path(file))
sys.settrace(None)
print(count)
"""


@pytest.fixture
def whole(
    tmp_path: Path,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
    make_report: Callable[..., ValidationReport],
    make_endorsement: Callable[..., Endorsement],
    enroll: Callable[[SqlLibrary], None],
) -> Path:
    """An exported library."""
    source = open_library(
        f"sqlite:///{tmp_path}/source.db", open_file_store((tmp_path / "source").as_uri())
    )
    source.open()
    enroll(source)
    source.submit_blueprint(make_ir())
    many = [make_kernel(make_ir(), number) for number in range(5)]
    source.register_kernels(many)
    for kernel, _ in many[:3]:
        source.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    export_library(source, tmp_path / "whole.tar")
    source.close()
    return tmp_path / "whole.tar"


def _num_records(library: SqlLibrary) -> int:
    tables = [each for each in metadata.sorted_tables if each.name in {"blueprints", "kernels"}]
    with library.snapshot() as connection:
        counted = (
            connection.scalar(sa.select(sa.func.count()).select_from(each))
            for each in (*tables, events)
        )
        return sum(number or 0 for number in counted)


def _store(url: str) -> ArtifactStore:
    return open_s3_store(url) if url.startswith("s3:") else open_file_store(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Callable[[], str]]:
    """Makes URLs of databases without tables."""
    numbers, made = count(), list[str]()

    def make() -> str:
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path}/target-{next(numbers)}.db"
        server: PostgresServer = request.getfixturevalue("postgres_server")
        made.append(server.create_database())
        return made[-1]

    yield make
    for url in made:
        request.getfixturevalue("postgres_server").drop_database(url)


@pytest.mark.long
@pytest.mark.parametrize("store", ["file", "s3"])
def test_an_import_that_is_killed_at_any_line_leaves_all_or_nothing(
    whole: Path,
    make_url: Callable[[], str],
    store: str,
    tmp_path: Path,
    s3_credentials: S3Server,
) -> None:
    chance = random.Random(13)
    num_lines = 0
    for number in range(_NUM_KILLS + 1):
        url, name = make_url(), f"kill-{number}"
        artifacts = (tmp_path / name).as_uri()
        if store == "s3":
            artifacts = s3_credentials.url(f"{name}-{id(whole)}")
        line = -1 if number == 0 else chance.randrange(1, num_lines)
        command = [sys.executable, "-c", _CHILD, url, artifacts, str(whole), str(line)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode in (-9, 0), done.stderr
        num_lines = num_lines or int(done.stdout)
        library = open_library(url, _store(artifacts))
        library.open()
        if library.chains():
            assert list(verify(library)) == []
        else:
            assert _num_records(library) == 0
            import_library(library, whole)
        export_library(library, tmp_path / f"{name}.tar")
        assert (tmp_path / f"{name}.tar").read_bytes() == whole.read_bytes()
        library.close()


def test_of_imports_at_once_one_is_taken(whole: Path, library_url: str, tmp_path: Path) -> None:
    def work(_number: int) -> bool:
        library = open_library(library_url, open_file_store((tmp_path / "target").as_uri()))
        library.open()
        try:
            import_library(library, whole)
        except IllegalTransitionError:  # it is not empty any more
            return False
        finally:
            library.close()
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(work, range(4))) == [False, False, False, True]
    library = open_library(library_url, open_file_store((tmp_path / "target").as_uri()))
    library.open()
    assert list(verify(library)) == []
    library.close()


@pytest.fixture
def full_disk() -> Generator[Callable[[int], None]]:
    """Lets this process write no further into a file than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 700, 9000])
def test_an_export_onto_a_full_disk_leaves_no_file(
    whole: Path, full_disk: Callable[[int], None], tmp_path: Path, room: int
) -> None:
    source = open_library(
        f"sqlite:///{tmp_path}/source.db", open_file_store((tmp_path / "source").as_uri())
    )
    source.open()
    folder = tmp_path / "small"
    folder.mkdir()
    full_disk(room)
    with pytest.raises(ServerFullError, match="cannot be written: File too large; raise the limit"):
        export_library(source, folder / "library.tar")
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert list(folder.iterdir()) == []
    export_library(source, folder / "library.tar")
    assert (folder / "library.tar").read_bytes() == whole.read_bytes()
    source.close()


def test_an_import_onto_a_full_disk_leaves_no_record(
    whole: Path, full_disk: Callable[[int], None], tmp_path: Path
) -> None:
    target = open_library(
        f"sqlite:///{tmp_path}/target.db", open_file_store((tmp_path / "target").as_uri())
    )
    target.open()
    full_disk(16)  # less than an artifact
    with pytest.raises(ServerFullError, match="cannot be written"):
        import_library(target, whole)
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert _num_records(target) == 0
    import_library(target, whole)
    assert list(verify(target)) == []
    target.close()
