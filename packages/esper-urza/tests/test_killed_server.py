"""PostgreSQL is killed (`kill -9`) while threads write and search: they are told, and go on by themselves.

Longer: `ESPER_OUTAGES=20 uv run pytest packages/esper-urza/tests/test_killed_server.py`.
"""

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from esper.contracts import (
    BackendUnavailableError,
    BlueprintIR,
    CompiledKernelArtifact,
    KernelQuery,
)
from esper.testkit.postgres import start_postgres
from esper.urza import open_file_store, open_library
from esper.urza.schema import kernels
from esper.urza.verify import verify

_NUM_OUTAGES = int(os.environ.get("ESPER_OUTAGES", "2"))
_NUM_THREADS = 4


@pytest.mark.long
def test_a_server_killed_under_load_loses_nothing_that_was_acknowledged(
    tmp_path: Path,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
) -> None:
    chance, is_over = random.Random(5), threading.Event()
    told: list[BackendUnavailableError] = []
    with start_postgres({"synchronous_commit": "on"}) as server:
        url = server.create_database()
        library = open_library(url, open_file_store((tmp_path / "artifacts").as_uri()))
        library.open()
        design = library.submit_blueprint(make_ir()).ir

        def work(thread: int) -> list[str]:
            acknowledged: list[str] = []
            number = thread
            while not is_over.is_set():
                kernel, blob = make_kernel(design, number)
                try:
                    library.register_kernel(kernel, blob)
                    acknowledged.append(kernel.kernel_id)
                    number += _NUM_THREADS
                    library.query(KernelQuery(status=None, limit=5))
                except BackendUnavailableError as error:
                    told.append(error)
                    time.sleep(0.01)
            return acknowledged

        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            working = [threads.submit(work, thread) for thread in range(_NUM_THREADS)]
            try:
                for outage in range(_NUM_OUTAGES):
                    time.sleep(chance.uniform(0.1, 0.6))
                    server.kill()
                    time.sleep(chance.uniform(0.0, 0.3))
                    server.start()
                    library.submit_blueprint(make_ir(f"after_outage_{outage}"))
            finally:
                is_over.set()
            acknowledged = {each for worker in working for each in worker.result()}
        assert len(told) >= _NUM_OUTAGES
        with library.snapshot() as connection:
            assert acknowledged <= set(connection.scalars(sa.select(kernels.c.kernel_id)))
        assert list(verify(library)) == []
        library.close()
