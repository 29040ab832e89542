"""Images in folders, one folder for each class: `cats/1.png`, `dogs/2.jpg` and so on.

Few are decoded into memory, many are read from their files batch by batch: the same pixels in the same order.

Shapes: C channels, H height, W width.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, override

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
_SHOWN = 5
_GREY = ("1", "L")
_GREY_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I")
"""What Pillow calls 16 bits for each pixel, as PNG has them; "I" in its older versions."""


class _Head(NamedTuple):
    """What the head of a file says of the pixels."""

    channels: int
    height: int
    width: int
    largest: int
    """What a white pixel is."""


def images(source: Source) -> Task:
    """Return the images below a folder, scaled to [0, 1]; all must have one size and depth.

    Grey images have one channel, of 8 or 16 bits, others three of 8 bits. A tenth is kept for decisions and
    a fifth for the end.

    Raises:
        ConfigError: for too few classes or images, for one that cannot be read, of another size or depth.

    """
    folder = source.folder("images", _CONTENTS)
    source.refuse_target("images")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and _files(path))
    if len(classes) < 2:
        raise ConfigError(
            f"{folder} has {plural(len(classes), 'folder')} with images in them; expected "
            f"at least two: {_CONTENTS}{_further_down(folder)}"
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
    heads = [_head(path) for path, _ in found]
    first, first_path = heads[0], found[0][0]
    for (path, _), head in zip(found, heads, strict=True):
        if (head.height, head.width) != (first.height, first.width):
            raise ConfigError(
                f"{path} is {head.width} x {head.height} pixels, {first_path} is "
                f"{first.width} x {first.height}; scale all images to one size first"
            )
        if head.largest != first.largest:
            raise ConfigError(
                f"the pixels of {path} go up to {head.largest}, those of {first_path} to {first.largest}; "
                "convert all images to one depth first"
            )
    return _task(found, classes, first._replace(channels=max(head.channels for head in heads)))


def _further_down(folder: Path) -> str:
    """Say where folders of classes are that stand one folder further down."""
    below: list[str] = []
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        with suppress(OSError):  # what cannot be read is not what was meant
            if any(path.is_dir() and _files(path) for path in part.iterdir()):
                below.append(part.name)
    if not below or len(below) > _SHOWN:
        return ""
    return (
        f"; there are some in {', '.join(below)}: give one of these with --data (what is kept for decisions "
        "and for the end is chosen from it), or put all images of a class into one folder"
    )


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
        return _read(path).expand(self._num_channels, -1, -1), label


def _task(found: Sequence[tuple[Path, int]], classes: Sequence[str], head: _Head) -> Task:
    held_out = max(1, len(found) // 10), max(1, len(found) // 5)
    note = f"{plural(len(found), 'image')} of {len(classes)} classes: {', '.join(classes)}"
    encoding = {"kind": "pixels", "divisor": head.largest, "classes": [*classes]}
    channels, height, width, _ = head
    shape = channels, height, width
    num_bytes = 4 * len(found) * channels * height * width
    if num_bytes <= IN_MEMORY_BYTES:
        pixels = torch.empty(len(found), *shape)
        for number, (path, _) in enumerate(found):
            pixels[number] = _read(path)
        return shuffled(
            "images",
            pixels,
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


def _head(path: Path) -> _Head:
    with _opened(path) as image:
        is_deep = image.mode in _GREY_OF_16_BITS
        channels = 1 if is_deep or image.mode in _GREY else 3
        return _Head(channels, image.height, image.width, 65_535 if is_deep else 255)


def _read(path: Path) -> Tensor:
    """Return an image's pixels (C, H, W), scaled to [0, 1]."""
    with _opened(path) as image:
        if image.mode in _GREY_OF_16_BITS:  # Pillow's own conversion would cut them off at 255
            return torch.tensor(np.array(image).astype(np.float32))[None] / 65_535.0
        pixels = np.array(image.convert("L" if image.mode in _GREY else "RGB"))
    channels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.tensor(channels).float() / 255.0


@contextmanager
def _opened(path: Path) -> Generator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ConfigError(
            f"{path} cannot be read as an image ({error}); replace or remove it"
        ) from error
