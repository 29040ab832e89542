"""Images in folders, one folder for each class: `cats/1.png`, `dogs/2.jpg` and so on."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from esper.contracts import ConfigError
from esper.tamiyo.tasks.source import Source
from esper.tamiyo.tasks.task import Task, shuffled

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
            f"{folder} has {len(classes)} folders with images in them; expected at least two: {_CONTENTS}"
        )
    found = [(path, label) for label, name in enumerate(classes) for path in _files(folder / name)]
    if len(found) < _MIN_IMAGES:
        raise ConfigError(f"{folder} has {len(found)} images; expected at least {_MIN_IMAGES}")
    pixels = [_read(path) for path, _ in found]
    channels = max(len(each) for each in pixels)
    for (path, _), each in zip(found, pixels, strict=True):
        if each.shape[1:] != pixels[0].shape[1:]:
            raise ConfigError(
                f"{path} is {each.shape[2]} x {each.shape[1]} pixels, {found[0][0]} is "
                f"{pixels[0].shape[2]} x {pixels[0].shape[1]}; scale all images to one size first"
            )
    stacked = torch.stack([each.expand(channels, -1, -1) for each in pixels])
    num_test = max(1, len(found) // 5)
    return shuffled(
        "images",
        stacked.float() / 255.0,
        torch.tensor([label for _, label in found]),
        num_classes=len(classes),
        held_out=(max(1, len(found) // 10), num_test),
        image_shape=(channels, int(stacked.shape[2]), int(stacked.shape[3])),
        encoding={"kind": "pixels", "divisor": 255, "classes": classes},
        notes=(f"{len(found)} images of {len(classes)} classes: {', '.join(classes)}",),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            grey = image.mode in ("1", "L", "I", "I;16", "F")
            pixels = np.array(image.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ConfigError(
            f"{path} cannot be read as an image ({error}); replace or remove it"
        ) from error
    channels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels))  # pyright: ignore[reportUnknownMemberType]
