"""How many requests the library's service answers beside a hand-written endpoint, in one run.

    uv run python tests/benchmarks/library_http.py

All are FastAPI under uvicorn in a process of their own, on one PostgreSQL with the same kernels: `urza-api`
with its tokens, problems, entity tags and validated records; an endpoint that does a bare SELECT through
psycopg and returns the row; and the same endpoint through SQLAlchemy, which the library works with on every
database. Rounds measure one after the other with the same clients; the table has medians.
"""

import argparse
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import urllib3
from library_speed import TAGS, MemoryStore, designs_by_id, registration
from rich.progress import track

from esper.contracts import ArtifactStore
from esper.testkit.postgres import start_postgres
from esper.urza import open_library, tokens
from esper.urza.tokens import Role

_BY_HAND = """
import sys, threading
import psycopg, uvicorn
from fastapi import FastAPI
from psycopg.rows import dict_row

here, url, port = threading.local(), sys.argv[1], int(sys.argv[2])
app = FastAPI()

def connection():
    if not hasattr(here, "connection"):
        here.connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)
    return here.connection

COLUMNS = ("SELECT k.kernel_id, k.blueprint_id, k.blueprint_name, k.kind, k.features, k.dtype, k.device,"
           " k.size_bytes, k.num_parameters, k.status, k.all_tags, k.created_at, r.content"
           " FROM kernels k LEFT JOIN validation_reports r"
           " ON r.kernel_id = k.kernel_id AND r.report_id = k.report_id ")

@app.get("/api/v1/kernels")
def find(required_tags: str, limit: int):
    return connection().execute(
        COLUMNS + "WHERE k.status = 'COMPILED' AND k.all_tags @> %s ORDER BY k.kernel_id LIMIT %s",
        ([required_tags], limit + 1)).fetchall()[:limit]

@app.get("/api/v1/kernels/{kernel_id}")
def get(kernel_id: str):
    return connection().execute(COLUMNS + "WHERE k.kernel_id = %s", (kernel_id,)).fetchone()

uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
"""
_BY_SQLALCHEMY = """
import sys
import sqlalchemy as sa, uvicorn
from fastapi import FastAPI
from esper.urza.queries import select_kernels
from esper.urza.schema import kernels

url, port = sys.argv[1], int(sys.argv[2])
app = FastAPI()
engine = sa.create_engine(url).execution_options(isolation_level="AUTOCOMMIT")
ONE = select_kernels().where(kernels.c.kernel_id == sa.bindparam("id"))

@app.get("/api/v1/kernels")
def find(required_tags: str, limit: int):
    found = select_kernels().where(kernels.c.status == "COMPILED", kernels.c.all_tags.op("@>")(
        sa.cast([required_tags], sa.ARRAY(sa.Text)))).order_by(kernels.c.kernel_id).limit(limit + 1)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(found).mappings()][:limit]

@app.get("/api/v1/kernels/{kernel_id}")
def get(kernel_id: str):
    with engine.connect() as connection:
        return dict(connection.execute(ONE, {"id": kernel_id}).mappings().one())

uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
"""
_URZA = """
import sys
import uvicorn
from esper.urza import open_file_store, open_library
from esper.urza_api import make_app

url, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
app = make_app(open_library(url, open_file_store(folder)))
uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
"""

_NUM_CLIENTS = 4


@contextmanager
def _serving(program: str, *arguments: str) -> Generator[str]:
    """Run a service in a process of its own; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", program, arguments[0], str(port), *arguments[1:]]
    with subprocess.Popen(command) as process:
        address = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                urllib3.request("GET", f"{address}/openapi.json", retries=False, timeout=2)
                break
            except urllib3.exceptions.HTTPError:
                time.sleep(0.1)
        yield address
        process.terminate()


def _requests_per_second(address: str, secret: str, paths: Sequence[str]) -> float:
    headers = {"Authorization": f"Bearer {secret}"}

    def ask(mine: Sequence[str]) -> None:
        with urllib3.PoolManager(maxsize=1) as pool:
            for path in mine:
                answer = pool.request("GET", f"{address}/api/v1{path}", headers=headers)
                assert answer.status == 200, answer.data

    begun = time.perf_counter()
    with ThreadPoolExecutor(_NUM_CLIENTS) as threads:
        parts = [paths[number::_NUM_CLIENTS] for number in range(_NUM_CLIENTS)]
        list(threads.map(ask, parts))
    return len(paths) / (time.perf_counter() - begun)


def _fill(url: str, num_kernels: int) -> tuple[list[str], str]:
    """Register kernels; return their ids and a token's secret."""
    library = open_library(url, cast("ArtifactStore", MemoryStore()))
    library.open()
    designs = designs_by_id()
    for ir in designs.values():
        library.submit_blueprint(ir)
    choose, ids = random.Random(0), list(designs)
    kernel_ids: list[str] = []
    for _ in range(0, num_kernels, 1000):
        given = [registration(choose.choice(ids), choose) for _ in range(1000)]
        library.register_kernels(given)
        kernel_ids += [kernel.kernel_id for kernel, _ in given]
    with library.transaction() as connection:
        _, secret = tokens.create(connection, name="benchmark", roles={Role.READER})
    library.close()
    return kernel_ids, secret


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=20_000, help="in the library")
    parser.add_argument("--requests", type=int, default=1_000, help="in a round")
    parser.add_argument("--rounds", type=int, default=7, help="how often all are measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, start_postgres() as server:
        url = server.create_database()
        kernel_ids, secret = _fill(url, arguments.kernels)
        choose = random.Random(1)
        work = {
            "one kernel": [
                f"/kernels/{choose.choice(kernel_ids)}" for _ in range(arguments.requests)
            ],
            "20 kernels with a tag": [
                f"/kernels?status=COMPILED&limit=20&required_tags={choose.choice(TAGS)}"
                for _ in range(arguments.requests // 4)
            ],
        }
        store = (Path(folder) / "artifacts").as_uri()
        rates: dict[tuple[str, str], list[float]] = {}
        with (
            _serving(_URZA, url, store) as ours,
            _serving(_BY_HAND, url.replace("+psycopg", "")) as theirs,
            _serving(_BY_SQLALCHEMY, url) as through_sqlalchemy,
        ):
            services = {"urza-api": ours, "by hand": theirs, "SQLAlchemy": through_sqlalchemy}
            for _ in track(range(arguments.rounds), "rounds"):
                for what, paths in work.items():
                    for who, address in services.items():
                        rate = _requests_per_second(address, secret, paths)
                        rates.setdefault((what, who), []).append(rate)
    print(
        f"{platform.platform()}, {os.cpu_count()} cores; {arguments.kernels:,} kernels, "
        f"{_NUM_CLIENTS} clients; requests per second, medians of {arguments.rounds} rounds"
    )
    print(f"{'':24}{'urza-api':>12}{'by hand':>12}{'SQLAlchemy':>12}")
    for what in work:
        medians = [statistics.median(rates[what, who]) for who in services]
        ratios = [
            statistics.median(
                a / b for a, b in zip(rates[what, who], rates[what, "by hand"], strict=True)
            )
            for who in ("urza-api", "SQLAlchemy")
        ]
        print(
            f"{what:24}"
            + "".join(f"{each:12,.0f}" for each in medians)
            + f"   {ratios[0]:.2f} of by "
            f"hand (target 0.75); through SQLAlchemy {ratios[1]:.2f}"
        )


if __name__ == "__main__":
    main()
