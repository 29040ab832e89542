"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 from a local folder, in their official binary formats.

MNIST's is IDX (LeCun, Cortes & Burges); CIFAR's is the "binary version" (Krizhevsky 2009). Nothing is
downloaded and nothing unpickled: CIFAR's Python version consists of pickles, and is refused.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esper.contracts import ConfigError
from esper.contracts.words import plural
from esper.tamiyo.tasks.source import Source, find
from esper.tamiyo.tasks.split import Split
from esper.tamiyo.tasks.task import Task, parts

_IDX = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte (also with .gz)"
)
_CIFAR10 = "data_batch_1.bin to data_batch_5.bin and test_batch.bin (the binary version)"
_CIFAR100 = "train.bin and test.bin (the binary version)"
_IMAGE_BYTES = 3 * 32 * 32


def mnist(source: Source) -> Task:
    """Return MNIST: 60,000 and 10,000 digits, 1 x 28 x 28, scaled to [0, 1], 10 classes."""
    return _from_idx("mnist", source)


def fashion_mnist(source: Source) -> Task:
    """Return Fashion-MNIST (Xiao et al. 2017): the same format and sizes as MNIST, 10 classes."""
    return _from_idx("fashion-mnist", source)


def cifar10(source: Source) -> Task:
    """Return CIFAR-10: 50,000 and 10,000 images, 3 x 32 x 32, scaled to [0, 1], 10 classes."""
    folder = source.folder("cifar10", _CIFAR10)
    source.refuse_target("cifar10")
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    train = [_cifar(folder, name, "cifar10", _CIFAR10, label_bytes=1) for name in names]
    test = _cifar(folder, "test_batch.bin", "cifar10", _CIFAR10, label_bytes=1)
    images, labels = (torch.cat(each) for each in zip(*train, strict=True))
    return _task("cifar10", (images, labels), test, num_classes=10)


def cifar100(source: Source) -> Task:
    """Return CIFAR-100 with its 100 fine classes; otherwise as CIFAR-10."""
    folder = source.folder("cifar100", _CIFAR100)
    source.refuse_target("cifar100")
    train, test = (
        _cifar(folder, name, "cifar100", _CIFAR100, label_bytes=2)
        for name in ("train.bin", "test.bin")
    )
    return _task("cifar100", train, test, num_classes=100)


def _from_idx(task: str, source: Source) -> Task:
    folder = source.folder(task, _IDX)
    source.refuse_target(task)
    found: list[tuple[Tensor, Tensor]] = []
    for part in ("train", "t10k"):
        images = _idx(folder, f"{part}-images-idx3-ubyte", task, num_dimensions=3)
        labels = _idx(folder, f"{part}-labels-idx1-ubyte", task, num_dimensions=1)
        if len(images) != len(labels):
            raise ConfigError(
                f"{folder}: {len(images)} images but {len(labels)} labels in {part}; they belong to "
                "different data sets, or one file is damaged"
            )
        if images.shape[1:] != (28, 28):
            height, width = (int(size) for size in images.shape[1:])
            raise ConfigError(
                f"{folder}: images in {part} are {height} x {width} pixels; task {task!r} expects 28 x 28 "
                "(other sizes: --task images, with one folder of images for each class)"
            )
        found.append((images.unsqueeze(1), labels))
    return _task(task, *found, num_classes=10)


def _task(
    task: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, num_classes: int
) -> Task:
    """Keep the official test data, and a tenth of the train data for decisions."""
    for images, labels in (train, test):
        if int(labels.max()) >= num_classes:
            raise ConfigError(
                f"task {task!r}: labels run to {int(labels.max())}; expected 0 to {num_classes - 1}"
            )
        if images.shape[1:] != train[0].shape[1:]:
            raise ConfigError(
                f"task {task!r}: test images are {tuple(images.shape[1:])}, train images "
                f"{tuple(train[0].shape[1:])}; they belong to different data sets"
            )
    images, labels = train
    if bool((labels == labels[0]).all()):
        raise ConfigError(
            f"task {task!r}: all {plural(len(labels), 'train image')} have the label {int(labels[0])}; "
            "nothing to learn, get the data again"
        )
    learned, validation, _ = parts(len(images), (max(1, len(images) // 10), 0))
    channels, height, width = (int(size) for size in images.shape[1:])
    return Task(
        name=task,
        train=_scaled(images[learned], labels[learned]),
        validation=_scaled(images[validation], labels[validation]),
        test=_scaled(*test),
        num_classes=num_classes,
        image_shape=(channels, height, width),
        encoding={"kind": "pixels", "divisor": 255},
        notes=(f"a tenth of the {len(images):,} train images is kept for decisions",),
    )


def _scaled(images: Tensor, labels: Tensor) -> Split:
    return Split(inputs=images.float() / 255.0, targets=labels.long())


def _idx(folder: Path, name: str, task: str, *, num_dimensions: int) -> Tensor:
    """Read one IDX file: magic 0, 0, 8 (bytes), dimensions; big-endian sizes; then the bytes."""
    path = find(folder, (name, f"{name}.gz"), task=task, contents=_IDX)
    data = _read(path)
    start = 4 + 4 * num_dimensions
    if len(data) < start or data[:4] != bytes((0, 0, 8, num_dimensions)):
        raise ConfigError(
            f"{path} is no IDX file of {plural(num_dimensions, 'dimension')}: it begins with "
            f"{data[:4].hex(' ')}; get it again"
        )
    sizes = struct.unpack(f">{num_dimensions}I", data[4:start])
    return _array(path, data[start:], sizes)


def _cifar(
    folder: Path, name: str, task: str, contents: str, *, label_bytes: int
) -> tuple[Tensor, Tensor]:
    """Read one binary file: of each image its label (the last byte counts), then 3 x 32 x 32 bytes."""
    path = find(folder, (name,), task=task, contents=contents)
    data = _read(path)
    row = label_bytes + _IMAGE_BYTES
    if not data or len(data) % row:
        raise ConfigError(
            f"{path} has {plural(len(data), 'byte')}; expected a multiple of {row:,}, the size of "
            "one labelled image: it is cut, or not the binary version"
        )
    rows = _array(path, data, (len(data) // row, row))
    return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1]


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is damaged ({error}); get it again") from error


def _array(path: Path, data: bytes, sizes: tuple[int, ...]) -> Tensor:
    expected = int(np.prod(sizes, dtype=np.int64))
    if len(data) != expected or not expected:
        raise ConfigError(
            f"{path} holds {plural(len(data), 'byte')} of data; its header says "
            f"{expected:,}: it is cut or damaged"
        )
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).reshape(sizes).copy())  # pyright: ignore[reportUnknownMemberType]
