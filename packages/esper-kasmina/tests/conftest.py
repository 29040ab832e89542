"""Lets the tests import `kasmina_factory` from beside them; pytest's importlib mode does not."""

import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# The tensors are tiny: more threads only wait for each other.
torch.set_num_threads(1)

# The first use of the meta device imports half of torch, which no example's deadline survives.
settings.register_profile("kasmina", deadline=None)
settings.load_profile("kasmina")
