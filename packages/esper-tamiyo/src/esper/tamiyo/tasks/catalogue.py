"""The built-in tasks by name, and how a task is found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esper.contracts import ConfigError
from esper.contracts.words import type_of
from esper.tamiyo.loading import call, resolve
from esper.tamiyo.tasks import images, pixels, tables, text
from esper.tamiyo.tasks.builtin import digits, mnist1d
from esper.tamiyo.tasks.source import Source
from esper.tamiyo.tasks.task import Task, check_task


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A built-in task."""

    load: Callable[[Source], Task]
    about: str
    """What it is and what data it takes, in a line."""
    hosts: tuple[str, ...]
    """The built-in hosts that fit."""


def _own(name: str, load: Callable[[], Task]) -> Callable[[Source], Task]:
    """Return a loader of a task that brings its own data."""

    def loader(source: Source) -> Task:
        source.refuse(name)
        return load()

    return loader


_IMAGES = ("mlp", "cnn", "resnet")

TASKS: Mapping[str, Entry] = {
    "digits": Entry(
        load=_own("digits", digits),
        about="1,797 handwritten digits, 8 x 8 (scikit-learn's); no data needed",
        hosts=_IMAGES,
    ),
    "mnist1d": Entry(
        load=_own("mnist1d", mnist1d),
        about="5,000 signals of 40 numbers, 10 classes (generated); no data needed",
        hosts=("mlp", "cnn"),
    ),
    "text": Entry(
        load=text.text,
        about="predict the next character: Python's standard library, or --data FILE",
        hosts=("transformer",),
    ),
    "table": Entry(
        load=tables.table,
        about="rows of a CSV or Parquet file: --data FILE --target COLUMN; classes or a regression",
        hosts=("mlp",),
    ),
    "images": Entry(
        load=images.images,
        about="one folder of images for each class: --data FOLDER",
        hosts=_IMAGES,
    ),
    "mnist": Entry(load=pixels.mnist, about="MNIST's IDX files: --data FOLDER", hosts=_IMAGES),
    "fashion-mnist": Entry(
        load=pixels.fashion_mnist, about="Fashion-MNIST's IDX files: --data FOLDER", hosts=_IMAGES
    ),
    "cifar10": Entry(
        load=pixels.cifar10, about="CIFAR-10, binary version: --data FOLDER", hosts=_IMAGES
    ),
    "cifar100": Entry(
        load=pixels.cifar100, about="CIFAR-100, binary version: --data FOLDER", hosts=_IMAGES
    ),
}


def load_task(name: str, source: Source | None = None) -> Task:
    """Return a built-in task, or what `module:function` returns.

    Raises:
        NotFoundError, ConfigError: if there is no such task or data, or it is no usable `Task`.

    """
    source = source or Source()
    task: object
    if name in TASKS:
        task = call("task", name, TASKS[name].load, source)
    else:
        names: Mapping[str, Callable[[], object]] = dict.fromkeys(TASKS, dict)
        function = resolve("task", name, names)
        source.refuse(name)
        task = call("task", name, function)
    if not isinstance(task, Task):
        raise ConfigError(f"task {name!r} returned {type_of(task)}; expected esper.tamiyo.Task")
    return check_task(name, task)
