"""How fast the library is beside hand-written SQL through the same drivers, in one run.

    uv run --group rivals python tests/benchmarks/library_speed.py

Both write and ask for the same rows, in two databases with the same tables, indices and guards, and both
commit to the disk. Rounds measure one after the other; the table has medians, the 99th percentile and the
ratio of the medians. MLflow's registry, where it is installed, is asked for the same tags among as many
models. Artifacts are kept in memory here; `store_reads.py` measures the stores.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import psycopg
from library_rivals import mlflow_searches
from rich.progress import track

from esper.contracts import (
    ArtifactStore,
    Blueprint,
    BlueprintIR,
    CompiledKernelArtifact,
    KernelQuery,
    KernelSignature,
    KernelStatus,
    Library,
    OperatorNode,
    SiteKind,
    next_event,
)
from esper.testkit.postgres import PostgresServer, start_postgres
from esper.urza import open_library
from esper.urza.records import kernel_row

_AT_ONCE = 1_000
_NUM_BLUEPRINTS = 100
_NUM_TAGS = 4
TAGS = [f"tag-{number}" for number in range(200)]
_LIMIT = 20
_SEARCHES = {"search by one tag": TAGS[:1], "search by two tags": TAGS[:2]}

type Registration = tuple[CompiledKernelArtifact, bytes]
type Row = dict[str, Any]


class MemoryStore:
    """Artifacts in a dictionary: what the library asks of its store here, and no more."""

    url = "memory:"

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def open(self) -> None:
        """Be ready."""

    def close(self) -> None:
        """Be done."""

    def put(self, blob: bytes) -> str:
        """Keep `blob`; return its sha256."""
        sha256 = hashlib.sha256(blob).hexdigest()
        self._blobs[sha256] = blob
        return sha256


@dataclass(kw_only=True)
class Rivals:
    """A library, and a connection of the driver to a database with the same tables."""

    name: str
    library: Library
    raw: Any
    urls: list[str]
    """Of the library's database, and of one for MLflow."""

    @property
    def is_sqlite(self) -> bool:
        """Tell which of the two it is."""
        return isinstance(self.raw, sqlite3.Connection)

    def settle(self) -> None:
        """Do at once what PostgreSQL does by itself within minutes, in both databases."""
        if not self.is_sqlite:
            for url in (self.urls[0], self.raw.info.dsn):
                password = self.raw.info.password
                with psycopg.connect(
                    url.replace("+psycopg", ""), password=password, autocommit=True
                ) as connection:
                    connection.execute("VACUUM ANALYZE")

    def insert(self, **tables: Sequence[Row]) -> None:
        """Insert rows by hand, in one transaction that is on the disk at the end."""
        with closing(self.raw.cursor()) as cursor:
            if self.is_sqlite:
                cursor.execute("BEGIN IMMEDIATE")
            for table, rows in tables.items():
                if rows:
                    marks = ", ".join(["?" if self.is_sqlite else "%s"] * len(rows[0]))
                    statement = f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES ({marks})"
                    cursor.executemany(statement, [tuple(row.values()) for row in rows])
        self.raw.commit()

    def tags(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of the kernels' tags: on SQLite they are in a table of their own."""
        return [
            {"kernel_id": row["kernel_id"], "tag": tag}
            for row in rows
            for tag in (json.loads(row["all_tags"]) if self.is_sqlite else ())
        ]

    def register(self, rows: Sequence[Row]) -> None:
        """Insert kernels by hand, with their tags."""
        self.insert(kernels=rows, kernel_tags=self.tags(rows))

    def event(self, row: Row) -> Row:
        """Return the next event of the record, which tells that a kernel was registered."""
        newest = "SELECT seq, hash FROM events WHERE chain = 'library' ORDER BY seq DESC LIMIT 1"
        seq, previous = self.raw.execute(newest).fetchone()
        self.raw.commit()
        event = next_event(
            "kernels_registered",
            {"kernels": {row["kernel_id"]: "0"}},
            seq=seq + 1,
            previous=previous,
        )
        content = {"kind": event.kind, "previous": previous, "hash": event.hash}
        return {"chain": "library", "seq": seq + 1, **content, "line": event.line().decode()}

    def search(self, tags: Sequence[str]) -> int:
        """Find the first kernels with these tags by hand; return how many there were."""
        if self.is_sqlite:
            condition = "tag = ?"
            for _ in tags[1:]:
                condition = f"tag = ? AND kernel_id IN (SELECT kernel_id FROM kernel_tags WHERE {condition})"
            condition = f"k.kernel_id IN (SELECT kernel_id FROM kernel_tags WHERE {condition})"
            values = tuple(tags)
        else:
            condition, values = "k.all_tags @> %s", (list(tags),)
        statement = (
            "SELECT k.*, r.content FROM kernels k LEFT JOIN validation_reports r"
            " ON r.kernel_id = k.kernel_id AND r.report_id = k.report_id"
            f" WHERE k.status = 'COMPILED' AND {condition} ORDER BY k.kernel_id LIMIT {_LIMIT + 1}"
        )
        rows = self.raw.execute(statement, values).fetchall()
        self.raw.commit()
        return min(len(rows), _LIMIT)

    def row(self, kernel: CompiledKernelArtifact, ir: BlueprintIR) -> Row:
        """Return a kernel's row as the driver takes it."""
        row = kernel_row(kernel, ir)
        row["tags"] = json.dumps(row["tags"])
        if self.is_sqlite:
            row["all_tags"] = json.dumps(row["all_tags"])
            row["created_at"] = row["created_at"].isoformat(" ")
        return row


@dataclass(kw_only=True)
class Measured:
    """Seconds that each took, by round."""

    what: str
    ours: list[float]
    theirs: list[float]
    rival: str
    target: float | None

    def line(self) -> str:
        """Return one line of the table."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return (
            f"{self.what:34}{1e3 * ours:10.3f}{1e3 * _late(self.ours):10.3f}"
            f"{1e3 * theirs:12.3f}{1e3 * _late(self.theirs):10.3f}  {theirs / ours:8.2f} of {self.rival}"
            + ("" if self.target is None else f" (target {self.target:g})")
        )


def _late(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * (len(seconds) - 1))]


def _seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def registration(blueprint_id: str, choose: random.Random) -> Registration:
    """Return a kernel that differs from all others, with its bytes."""
    blob = choose.randbytes(64)
    kernel = CompiledKernelArtifact(
        kernel_id=hashlib.sha256(blob).hexdigest(),
        blueprint_id=blueprint_id,
        blueprint_name="benchmark",
        signature=KernelSignature(kind=SiteKind.FEATURES, features=2 ** choose.randrange(4, 10)),
        size_bytes=len(blob),
        num_parameters=choose.randrange(10**6),
        tags=tuple(choose.sample(TAGS, _NUM_TAGS)),
    )
    return kernel, blob


def designs_by_id() -> dict[str, BlueprintIR]:
    """Return the designs that kernels are of."""
    node = OperatorNode(
        name="out", op="linear", inputs=("input",), params={"out": "D", "init": "zeros"}
    )
    designs = (
        BlueprintIR(name=f"design_{number}", kind=SiteKind.FEATURES, nodes=(node,))
        for number in range(_NUM_BLUEPRINTS)
    )
    return {Blueprint.from_ir(ir).blueprint_id: ir for ir in designs}


def _measure(rivals: Rivals, num_kernels: int, num_rounds: int) -> list[Measured]:
    choose = random.Random(0)
    designs = designs_by_id()
    ids = list(designs)

    def some(number: int) -> tuple[list[Registration], list[Row]]:
        given = [registration(choose.choice(ids), choose) for _ in range(number)]
        return given, [rivals.row(kernel, designs[kernel.blueprint_id]) for kernel, _ in given]

    bulk = Measured(
        what=f"register {_AT_ONCE:,}", ours=[], theirs=[], rival="executemany", target=0.7
    )
    for _ in track(range(num_kernels // _AT_ONCE), f"{rivals.name}: {num_kernels:,} kernels"):
        given, rows = some(_AT_ONCE)
        bulk.ours.append(_seconds(lambda given=given: rivals.library.register_kernels(given)))
        bulk.theirs.append(_seconds(lambda rows=rows: rivals.register(rows)))
    rivals.settle()
    single = Measured(
        what="register one", ours=[], theirs=[], rival="one raw commit of the same rows", target=0.5
    )
    bare: list[float] = []
    for _ in track(range(num_rounds), f"{rivals.name}: one at a time"):
        [(kernel, blob)], rows = some(1)
        single.ours.append(_seconds(lambda k=kernel, b=blob: rivals.library.register_kernel(k, b)))
        all_rows = {
            "kernels": rows,
            "kernel_tags": rivals.tags(rows),
            "events": [rivals.event(rows[0])],
        }
        single.theirs.append(_seconds(lambda rows=all_rows: rivals.insert(**rows)))
        _, rows = some(1)
        bare.append(_seconds(lambda rows=rows: rivals.insert(kernels=rows)))
    row_alone = replace(single, theirs=bare, rival="one of the kernel's row alone", target=None)
    return [bulk, single, row_alone]


def _measure_searches(rivals: Rivals, num_rounds: int) -> list[Measured]:
    measured: list[Measured] = []
    for what, tags in _SEARCHES.items():
        query = KernelQuery(
            status=KernelStatus.COMPILED, required_tags=frozenset(tags), limit=_LIMIT
        )
        assert len(rivals.library.query(query)) == rivals.search(tags) > 0
        search = Measured(what=what, ours=[], theirs=[], rival="SQL by hand", target=0.5)
        for _ in track(range(num_rounds), f"{rivals.name}: {what}"):
            search.ours.append(_seconds(lambda q=query: rivals.library.find_kernels(q)))
            search.theirs.append(_seconds(lambda t=tags: rivals.search(t)))
        measured.append(search)
    return measured


def _measure_mlflow(rivals: Rivals, num_kernels: int, searches: list[Measured]) -> list[Measured]:
    wanted = list(_SEARCHES.values())
    theirs = mlflow_searches(rivals.urls[1], num_kernels, TAGS, _NUM_TAGS, wanted)
    return [
        Measured(what=ours.what, ours=ours.ours, theirs=seconds, rival="MLflow", target=100)
        for ours, seconds in zip(searches, theirs, strict=False)
    ]


@contextmanager
def _sqlite(folder: Path) -> Generator[Rivals]:
    with _opened(f"sqlite:///{folder / 'raw.db'}"):
        pass
    raw = sqlite3.connect(folder / "raw.db", isolation_level=None)
    for pragma in ("foreign_keys = ON", "synchronous = FULL", "journal_mode = WAL"):
        raw.execute(f"PRAGMA {pragma}")
    with closing(raw), _opened(f"sqlite:///{folder / 'library.db'}") as library:
        urls = [f"sqlite:///{folder / name}.db" for name in ("library", "mlflow")]
        yield Rivals(name="SQLite", library=library, raw=raw, urls=urls)


@contextmanager
def _postgresql() -> Generator[Rivals]:
    with start_postgres() as server:
        _make_durable(server)
        urls = [server.create_database() for _ in range(3)]
        with _opened(urls[1]):
            pass
        with (
            _opened(urls[0]) as library,
            psycopg.connect(urls[1].replace("+psycopg", "")) as raw,
        ):
            yield Rivals(name="PostgreSQL", library=library, raw=raw, urls=urls[::2])


def _make_durable(server: PostgresServer) -> None:
    """Have the server write to the disk what it commits, as a real one does; tests do without."""
    with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(f"ALTER SYSTEM SET {setting} = on".encode())
        connection.execute("ALTER SYSTEM SET shared_buffers = '128MB'")
    server.stop()
    server.start()


@contextmanager
def _opened(url: str) -> Generator[Library]:
    """Give a library with the designs on file."""
    library = open_library(url, cast("ArtifactStore", MemoryStore()))
    library.open()
    for ir in designs_by_id().values():
        library.submit_blueprint(ir)
    yield library
    library.close()


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=100_000, help="in each library")
    parser.add_argument("--rounds", type=int, default=500, help="of each search and registration")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], help="this one only")
    arguments = parser.parse_args()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        for database, start in (
            ("sqlite", lambda: _sqlite(Path(name))),
            ("postgresql", _postgresql),
        ):
            if arguments.database in (None, database):
                with start() as rivals:
                    measured = _measure(rivals, arguments.kernels, arguments.rounds)
                    searches = _measure_searches(rivals, arguments.rounds)
                    rival = _measure_mlflow(rivals, arguments.kernels, searches)
                lines += [rivals.name, *(each.line() for each in (*measured, *searches, *rival))]
    print(
        f"{platform.platform()}, {os.cpu_count()} cores; {arguments.kernels:,} kernels; "
        f"milliseconds, {arguments.rounds} rounds\n"
        f"{'':34}{'library':>10}{'p99':>10}{'rival':>12}{'p99':>10}"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
