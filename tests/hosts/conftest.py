"""Lets these tests import what is beside them, and the equipment of Kasmina's own tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.kasmina import adapters

HERE = Path(__file__).parent
EQUIPMENT = HERE.parents[1] / "packages" / "esper-kasmina" / "tests"

sys.path[:0] = [str(HERE), str(EQUIPMENT)]

# The tensors are tiny: more threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lives_without_esper() -> dict[str, str]:
    """What becomes of each host in `zoo` when it is trained without importing Esper."""
    done = subprocess.run(
        [sys.executable, str(HERE / "zoo.py")],
        env={**os.environ, "PYTHONPATH": str(EQUIPMENT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def adapters_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the adapters that a test registers."""
    known = adapters._ADAPTERS  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(known))
