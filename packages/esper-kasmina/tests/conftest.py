"""Lets the tests import what is beside them, which pytest's importlib mode does not; shared fixtures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# The tensors are tiny: more threads only wait for each other.
torch.set_num_threads(1)

# The first use of the meta device imports half of torch, which no example's deadline survives.
settings.register_profile("kasmina", deadline=None)
settings.load_profile("kasmina")


@pytest.fixture(scope="session")
def lives_without_esper() -> dict[str, str]:
    """What becomes of each host in `kasmina_hosts` when it is trained without importing Esper."""
    program = Path(__file__).with_name("kasmina_hosts.py")
    done = subprocess.run(
        [sys.executable, str(program)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)
