"""A process that uploads is killed (`kill -9`) at any line of the upload: nothing half-done is ever seen.

The child kills itself when it comes to a line, chosen by chance, of the store or of the S3 client. Longer:
`ESPER_STORE_KILLS=250 uv run pytest packages/esper-urza/tests/test_store_kills.py`.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest

from esper.contracts import ArtifactStore, sha256_hex, utc_now
from esper.urza.garbage import collect

_CHILD = """
import os, signal, sys, threading
from esper.contracts.registry import artifact_store_factory
url, line, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
store = artifact_store_factory(url)(url)
store.open()
count = 0

def follow(frame, event, argument):
    global count
    file = frame.f_code.co_filename
    if "/esper/urza/" not in file and "/minio/api.py" not in file:
        return None
    count += event == "line"
    if count == line:
        os.kill(os.getpid(), signal.SIGKILL)
    return follow

threading.settrace(follow)
sys.settrace(follow)
store.put_stream(seed.ljust(2**20, b".") for _ in range(20))
sys.settrace(None)
print(count)
"""
_NUM_KILLS = int(os.environ.get("ESPER_STORE_KILLS", "4"))


def _upload(url: str, line: int, seed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CHILD, url, str(line), seed]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.long
def test_an_upload_killed_at_any_step_leaves_all_or_nothing(
    make_store: Callable[[], ArtifactStore], artifacts_url: str
) -> None:
    chance = random.Random(11)
    whole = _upload(artifacts_url, -1, "whole")
    assert whole.returncode == 0, whole.stderr
    store = make_store()
    store.open()
    for n in range(_NUM_KILLS):
        killed = _upload(artifacts_url, chance.randrange(1, int(whole.stdout)), f"upload {n}")
        assert killed.returncode in (-9, 0), killed.stderr  # threads differ by a few lines
        for found in store.list():
            assert sha256_hex(store.get(found.sha256)) == found.sha256
    later = utc_now() + timedelta(days=2)
    collect(store, lambda _: False, now=later)
    assert (list(store.list()), list(store.drafts())) == ([], [])
    assert store.get(store.put(b"works as before")) == b"works as before"
    store.close()
