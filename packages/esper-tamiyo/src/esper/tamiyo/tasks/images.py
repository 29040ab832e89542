"""Images in folders, one folder for each class: `cats/1.png`, `dogs/2.jpg` and so on.

Few are decoded into memory, many are read from their files batch by batch: the same pixels in the same order.

Shapes: C channels, H height, W width.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import override

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from esper.contracts import ConfigError
from esper.contracts.words import plural
from esper.tamiyo.tasks.source import Source
from esper.tamiyo.tasks.split import DatasetSplit
from esper.tamiyo.tasks.task import Task, parts, shuffled

IN_MEMORY_BYTES = 10**9
"""Larger ones, as float32, are read when they are needed: an ordinary computer has room for this many."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_CONTENTS = "one folder of images for each class, for example cats/1.png and dogs/1.png"
_MIN_IMAGES = 10


def images(source: Source) -> Task:
    """Return the images below a folder, scaled to [0, 1]; all must have one size.

    Grey images have one channel, others three. A tenth is kept for decisions and a fifth for the end.

    Raises:
        ConfigError: for too few classes or images, for one that cannot be read, or of another size.

    """
    folder = source.folder("images", _CONTENTS)
    source.refuse_target("images")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and _files(path))
    if len(classes) < 2:
        raise ConfigError(
            f"{folder} has {plural(len(classes), 'folder')} with images in them; expected "
            f"at least two: {_CONTENTS}"
        )
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{folder} has a class {name!r}, whose name is no UTF-8; give its folder another one"
            ) from None
    found = [(path, label) for label, name in enumerate(classes) for path in _files(folder / name)]
    if len(found) < _MIN_IMAGES:
        raise ConfigError(
            f"{folder} has {plural(len(found), 'image')}; expected at least {_MIN_IMAGES}"
        )
    shapes = [_shape(path) for path, _ in found]
    for (path, _), (_, height, width) in zip(found, shapes, strict=True):
        if (height, width) != shapes[0][1:]:
            raise ConfigError(
                f"{path} is {width} x {height} pixels, {found[0][0]} is "
                f"{shapes[0][2]} x {shapes[0][1]}; scale all images to one size first"
            )
    return _task(found, classes, (max(shape[0] for shape in shapes), *shapes[0][1:]))


class Images(Dataset[tuple[Tensor, int]]):
    """Image files with their labels; each is decoded when it is asked for."""

    def __init__(self, found: Sequence[tuple[Path, int]], num_channels: int) -> None:
        self.found = found
        self._num_channels = num_channels

    def __len__(self) -> int:
        return len(self.found)

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the pixels (C, H, W), scaled to [0, 1], and the label."""
        path, label = self.found[index]
        return _read(path).expand(self._num_channels, -1, -1).float() / 255.0, label


def _task(
    found: Sequence[tuple[Path, int]], classes: Sequence[str], shape: tuple[int, int, int]
) -> Task:
    held_out = max(1, len(found) // 10), max(1, len(found) // 5)
    note = f"{plural(len(found), 'image')} of {len(classes)} classes: {', '.join(classes)}"
    encoding = {"kind": "pixels", "divisor": 255, "classes": [*classes]}
    channels, height, width = shape
    num_bytes = 4 * len(found) * channels * height * width
    if num_bytes <= IN_MEMORY_BYTES:
        pixels = [_read(path).expand(channels, -1, -1) for path, _ in found]
        return shuffled(
            "images",
            torch.stack(pixels).float() / 255.0,
            torch.tensor([label for _, label in found]),
            num_classes=len(classes),
            held_out=held_out,
            image_shape=shape,
            encoding=encoding,
            notes=(note,),
        )
    train, validation, test = (
        DatasetSplit(dataset=Images([found[int(index)] for index in part], channels))
        for part in parts(len(found), held_out)
    )
    return Task(
        name="images",
        train=train,
        validation=validation,
        test=test,
        num_classes=len(classes),
        image_shape=shape,
        encoding=encoding,
        notes=(
            note,
            f"in memory they would take {num_bytes / 1e9:,.1f} GB, so each is read when it is needed; "
            "--workers N reads ahead",
        ),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _shape(path: Path) -> tuple[int, int, int]:
    """Return what `_read` will return, from the head of the file alone."""
    with _opened(path) as image:
        return 1 if _is_grey(image) else 3, image.height, image.width


def _read(path: Path) -> Tensor:
    """Return an image's bytes: (C, H, W)."""
    with _opened(path) as image:
        pixels = np.array(image.convert("L" if _is_grey(image) else "RGB"))
    channels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels))  # pyright: ignore[reportUnknownMemberType]


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "I", "I;16", "F")


@contextmanager
def _opened(path: Path) -> Generator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ConfigError(
            f"{path} cannot be read as an image ({error}); replace or remove it"
        ) from error
