"""Lets these tests import what is beside them; `python tests/faults` runs the same at full length."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
