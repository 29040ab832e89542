"""Lets the tests import `kasmina_factory` from beside them; pytest's importlib mode does not."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

# The tensors are tiny: more threads only wait for each other.
torch.set_num_threads(1)
