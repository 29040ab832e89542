"""Sixty-four writers in four processes register kernels at once: none is lost, doubled or out of order.

Longer: `ESPER_REGISTRATIONS=1000 uv run pytest packages/esper-urza/tests/test_many_writers.py`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from esper.contracts import BlueprintIR
from esper.urza.library import SqlLibrary
from esper.urza.verify import verify

_NUM_PROCESSES = 4
_NUM_THREADS = 16
_NUM_EACH = int(os.environ.get("ESPER_REGISTRATIONS", "3"))

_WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from esper.contracts import CompiledKernelArtifact, KernelSignature, SiteKind, sha256_hex
from esper.contracts.registry import artifact_store_factory, library_factory
library_url, artifacts_url, blueprint_id, process, threads, each = sys.argv[1:]
library = library_factory(library_url)(library_url, artifact_store_factory(artifacts_url)(artifacts_url))
library.open()

def write(thread):
    for number in range(int(each)):
        # Every tenth is one that all the others register too.
        name = f"shared {number}" if number % 10 == 0 else f"{process} {thread} {number}"
        blob = name.encode()
        library.register_kernel(
            CompiledKernelArtifact(
                kernel_id=sha256_hex(blob), blueprint_id=blueprint_id, blueprint_name="residual",
                signature=KernelSignature(kind=SiteKind.FEATURES, features=8),
                size_bytes=len(blob), num_parameters=number, tags=("many",),
            ),
            blob,
        )

print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(int(threads)) as pool:
    list(pool.map(write, range(int(threads))))
library.close()
"""


@pytest.mark.long
@pytest.mark.parametrize("artifacts_url", ["file"], indirect=True)
def test_many_writers_lose_double_and_disorder_nothing(
    library: SqlLibrary,
    library_url: str,
    artifacts_url: str,
    make_ir: Callable[..., BlueprintIR],
) -> None:
    blueprint = library.submit_blueprint(make_ir())
    where = [library_url, artifacts_url, blueprint.blueprint_id]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, *where, str(n), str(_NUM_THREADS), str(_NUM_EACH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(_NUM_PROCESSES)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    begun = time.monotonic()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.communicate(timeout=3600) == ("", "")
    num_writers = _NUM_PROCESSES * _NUM_THREADS
    num_shared = len(range(0, _NUM_EACH, 10))
    expected = num_shared + num_writers * (_NUM_EACH - num_shared)
    print(f"{num_writers * _NUM_EACH:,} registrations in {time.monotonic() - begun:.0f} s")
    registered = [
        kernel_id
        for event in library.events()
        if event.kind == "kernels_registered"
        for kernel_id in event.data["kernels"]
    ]
    assert len(registered) == len(set(registered)) == expected
    assert list(verify(library, artifacts=False)) == []
