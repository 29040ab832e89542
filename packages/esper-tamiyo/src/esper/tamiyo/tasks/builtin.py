"""The tasks whose data needs no file of the user's."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esper.tamiyo.tasks.task import Task, shuffled


def digits() -> Task:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels scaled to [0, 1], 10 classes."""
    data = _shipped_digits()
    inputs = torch.tensor(data[:, :-1] / 16.0, dtype=torch.float32)
    targets = torch.tensor(data[:, -1], dtype=torch.int64)
    return shuffled(
        "digits",
        inputs,
        targets,
        num_classes=10,
        held_out=(300, 450),
        image_shape=(1, 8, 8),
        encoding={"kind": "pixels", "divisor": 16},
    )


def _shipped_digits() -> Any:
    """Return scikit-learn's file of pixels and labels: (1797, 65)."""
    # Its own `load_digits` reads the same, but importing it takes two seconds.
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt", encoding="ascii") as file:
        return np.loadtxt(file, delimiter=",")


def mnist1d() -> Task:
    """Return MNIST-1D (Greydanus & Kobak 2024), generated: 5,000 signals of 40 numbers, 10 classes."""
    from mnist1d.data import (  # pyright: ignore[reportMissingTypeStubs]
        get_dataset_args,  # pyright: ignore[reportUnknownVariableType]
        make_dataset,  # pyright: ignore[reportUnknownVariableType]
    )

    # The generator draws from the global streams of numpy and random; the run's own must not notice.
    numpy_state = np.random.get_state()
    data: Any = make_dataset(get_dataset_args())
    np.random.set_state(numpy_state)
    inputs = torch.tensor(np.concatenate([data["x"], data["x_test"]]), dtype=torch.float32)
    targets = torch.tensor(np.concatenate([data["y"], data["y_test"]]), dtype=torch.int64)
    return shuffled(
        "mnist1d", inputs, targets, num_classes=10, held_out=(500, 1000), image_shape=(1, 1, 40)
    )
