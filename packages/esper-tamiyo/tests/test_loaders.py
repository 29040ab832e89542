"""Tasks from the user's own files: what is read, what is made of it, and what is said of bad files."""

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from esper.contracts import ConfigError, NotFoundError
from esper.tamiyo import Task, build_host, load_task
from esper.tamiyo.tasks import TASKS, Goal, Source
from esper.tamiyo.training import measure


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, *, zipped: bool = False, size: tuple[int, int] = (28, 28)) -> None:
    random = np.random.default_rng(0)
    for part, number in (("train", 40), ("t10k", 12)):
        images = random.integers(0, 256, (number, *size))
        files = {"images-idx3": images, "labels-idx1": np.arange(number) % 10}
        for name, array in files.items():
            path = folder / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


def write_cifar(folder: Path, names: list[str], label_bytes: int) -> None:
    random = np.random.default_rng(0)
    for name in names:
        rows = random.integers(0, 256, (20, label_bytes + 3072)).astype(np.uint8)
        rows[:, :label_bytes] = (np.arange(20) % 10)[:, None]
        (folder / name).write_bytes(rows.tobytes())


CIFAR10 = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]


def write_images(folder: Path, mode: str = "L") -> None:
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(10):
            pixels = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / label / f"{number}.png")


def write_table(folder: Path, text: str | None = None) -> Path:
    rows = [f"{n % 7},{'red' if n % 3 else 'blue'},{n % 2}" for n in range(60)]
    path = folder / "t.csv"
    path.write_text(text if text is not None else "\n".join(["size,colour,y", *rows]) + "\n")
    return path


def load_from(folder: Path, name: str) -> Task:
    """Write tiny data for the task `name` and load it."""
    match name:
        case "mnist" | "fashion-mnist":
            write_idx(folder, zipped=name == "mnist")
            return load_task(name, Source(path=folder))
        case "cifar10":
            write_cifar(folder, CIFAR10, 1)
            return load_task(name, Source(path=folder))
        case "cifar100":
            write_cifar(folder, ["train.bin", "test.bin"], 2)
            return load_task(name, Source(path=folder))
        case "images":
            write_images(folder, "RGB")
            return load_task(name, Source(path=folder))
        case "table":
            return load_task(name, Source(path=write_table(folder), target="y"))
        case _:
            (folder / "book.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
            return load_task(name, Source(path=folder / "book.txt"))


NEED_DATA = sorted(set(TASKS) - {"digits", "mnist1d"})


@pytest.mark.parametrize("name", NEED_DATA)
def test_every_host_that_a_task_names_fits_it(tmp_path: Path, name: str) -> None:
    task = load_from(tmp_path, name)
    for host in TASKS[name].hosts:
        figures = measure(build_host(host, task, seed=0), task.test, goal=task.goal)
        assert np.isfinite(figures.loss), host


@pytest.mark.parametrize("name", [name for name in NEED_DATA if name != "text"])
def test_a_task_that_needs_data_says_what_to_give(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs data of yours: .*--data|--data"):
        load_task(name)
    with pytest.raises((ConfigError, NotFoundError), match="nothing_here"):
        load_task(name, Source(path=tmp_path / "nothing_here", target="y"))


def test_mnist_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_idx(tmp_path)
    task = load_task("mnist", Source(path=tmp_path))
    assert (len(task.train), len(task.validation), len(task.test)) == (36, 4, 12)
    assert task.image_shape == (1, 28, 28)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28))
    test = np.random.default_rng(0)
    test.integers(0, 256, (40, 28, 28))
    expected = test.integers(0, 256, (12, 28, 28))
    assert torch.allclose(task.test.known().inputs[:, 0], torch.tensor(expected / 255.0).float())
    assert list(map(int, task.test.known().targets)) == [n % 10 for n in range(12)]
    assert float(task.train.known().inputs.max()) <= 1.0
    assert pixels.max() > 1


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "t10k-labels-idx1-ubyte"),
    (lambda f: _cut(f / "train-images-idx3-ubyte"), "cut or damaged"),
    (lambda f: (f / "train-images-idx3-ubyte").write_bytes(b"PK\3\4"), "no IDX file"),
    (
        lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(3))),
        "12 images but 3 labels",
    ),
    (
        lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(12, 17))),
        "labels run to 17; expected 0 to 9",
    ),
    (
        lambda f: (f / "train-labels-idx1-ubyte").write_bytes(idx(np.full(40, 3))),
        "all 40 train images have the label 3; nothing to learn",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_idx_file_is_explained(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write_idx(tmp_path)
    damage(tmp_path)
    with pytest.raises((ConfigError, NotFoundError), match=message):
        load_task("mnist", Source(path=tmp_path))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_images_of_another_size_are_no_mnist(tmp_path: Path, name: str) -> None:
    write_idx(tmp_path, size=(20, 24))
    with pytest.raises(
        ConfigError, match=rf"20 x 24 pixels; task '{name}' expects 28 x 28 \(.*--task images"
    ):
        load_task(name, Source(path=tmp_path))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def test_a_cut_cifar_file_is_explained(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR10, 1)
    _cut(tmp_path / "data_batch_3.bin")
    with pytest.raises(
        ConfigError, match=r"data_batch_3\.bin has 61,455 bytes; expected a multiple"
    ):
        load_task("cifar10", Source(path=tmp_path))


def test_the_fine_label_of_cifar100_is_the_second_byte(tmp_path: Path) -> None:
    rows = np.zeros((10, 2 + 3072), dtype=np.uint8)
    rows[:, 0], rows[:, 1] = 3, (76, 77) * 5
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(rows.tobytes())
    task = load_task("cifar100", Source(path=tmp_path))
    assert set(map(int, task.test.known().targets)) == {76, 77}


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 1)]
)
def test_images_have_the_channels_of_their_mode(tmp_path: Path, mode: str, channels: int) -> None:
    write_images(tmp_path, mode)
    task = load_task("images", Source(path=tmp_path))
    assert task.image_shape == (channels, 8, 8)
    assert task.num_classes == 2
    assert len(task.train) + len(task.validation) + len(task.test) == 20


def write_deep_images(folder: Path) -> None:
    for label, values in (("dark", (300, 20_000)), ("light", (40_000, 65_535))):
        (folder / label).mkdir()
        for number in range(10):
            pixels = np.full((8, 8), values[number % 2], dtype=np.uint16)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def test_images_of_16_bits_keep_all_that_they_show(tmp_path: Path) -> None:
    write_deep_images(tmp_path)
    task = load_task("images", Source(path=tmp_path))
    found = torch.cat([part.known().inputs for part in (task.train, task.validation, task.test)])
    assert task.image_shape == (1, 8, 8)
    shown = {round(float(pixel) * 65_535) for pixel in found.flatten()}
    assert shown == {300, 20_000, 40_000, 65_535}
    assert task.encoding is not None
    assert task.encoding["divisor"] == 65_535


def test_images_of_two_depths_are_explained(tmp_path: Path) -> None:
    write_deep_images(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "light" / "9.png")
    with pytest.raises(
        ConfigError, match=r"9\.png go up to 255, those of .* to 65535; convert all"
    ):
        load_task("images", Source(path=tmp_path))


def test_folders_of_train_and_test_images_are_explained(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        write_images(tmp_path / part)
    with pytest.raises(
        ConfigError, match=r"there are some in test, train: give one of these with --data"
    ):
        load_task("images", Source(path=tmp_path))


def test_a_class_whose_name_is_no_utf8_is_explained(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "dog").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(ConfigError, match="whose name is no UTF-8; give its folder another one"):
        load_task("images", Source(path=tmp_path))


def test_images_of_two_sizes_or_none_are_explained(tmp_path: Path) -> None:
    write_images(tmp_path)
    Image.new("L", (9, 8)).save(tmp_path / "dog" / "odd.png")
    with pytest.raises(ConfigError, match=r"odd\.png is 9 x 8 pixels"):
        load_task("images", Source(path=tmp_path))
    (tmp_path / "dog" / "odd.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"odd\.png cannot be read as an image"):
        load_task("images", Source(path=tmp_path))
    with pytest.raises(ConfigError, match="expected at least two"):
        load_task("images", Source(path=tmp_path / "dog"))


def test_a_table_says_what_was_done_with_it(tmp_path: Path) -> None:
    rows = [
        f"{n if n % 10 else ''},{('red', 'blue', '')[n % 3]},same,{n}x,{n % 2}" for n in range(100)
    ]
    path = write_table(tmp_path, "\n".join(["size,colour,one,name,y", *rows]))
    task = load_task("table", Source(path=path, target="y"))
    notes = "\n".join(task.notes)
    assert "target 'y': 2 classes, 0, 1" in notes
    assert "10 missing values became the median" in notes
    assert "'colour': 3 words, a column each; 33 missing ones are a word of their own" in notes
    assert "'one' was left out: it is 'same' in all train rows" in notes
    assert "'name' was left out" in notes
    assert task.num_features == 4
    assert bool(torch.isfinite(task.train.known().inputs).all())


def test_a_target_of_many_numbers_is_a_regression(tmp_path: Path) -> None:
    rows = [f"{n},{n * 0.5}" for n in range(100)]
    path = write_table(tmp_path, "\n".join(["x;y", *(row.replace(",", ";") for row in rows)]))
    task = load_task("table", Source(path=path, target="y"))
    assert task.goal is Goal.REGRESSION
    targets = torch.cat(
        [task.train.known().targets, task.validation.known().targets, task.test.known().targets]
    )
    assert abs(float(task.train.known().targets.mean())) < 1e-5
    assert float(targets.std()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("a,y\n1,2\n", "y", "has 1 row; expected at least"),
        ("a,y\n" + "1,2\n" * 30, "z", "has no column 'z'; it has a, y"),
        ("a,y\n" + "1,2\n" * 30, None, "needs --target COLUMN; .* has a, y"),
        ("a,y\n" + "1,2\n" * 30, "y", "nothing to learn"),
        ("a,y\n" + "1,0\n1,1\n" * 15 + "1,\n", "y", "missing in 1 row .*line 32"),
        ("a,y\n" + "1,0\n1,1\n" * 15 + "1,nan\n", "y", "missing in 1 row"),
        ("a,y\n" + "1,0\n1,1\n" * 15 + "1\n", "y", "line 32: 1 value for 2 columns"),
        ("a,a\n" + "1,0\n1,1\n" * 15, "a", "a different name for each"),
        ("y\n" + "0\n1\n" * 15, "y", "no usable column besides 'y'"),
        ("", "y", "has no rows"),
    ],
)
def test_a_bad_table_is_explained(
    tmp_path: Path, text: str, target: str | None, message: str
) -> None:
    path = write_table(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        load_task("table", Source(path=path, target=target))


def test_a_table_that_is_no_text_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00\x81" * 50)
    with pytest.raises(ConfigError, match="no CSV in UTF-8"):
        load_task("table", Source(path=path, target="y"))


CELLS = st.one_of(
    st.sampled_from(["", "NA", "nan", "?", "x", "1e308", "-1e308", "0", "inf"]),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(str),
    st.text("abc äé", max_size=4),
)


@given(columns=st.lists(st.lists(CELLS, min_size=30, max_size=30), min_size=1, max_size=4))
@example(columns=[["1e308"] * 15 + [""] * 15])
@example(columns=[["-1e308", "1e308"] * 15])
@example(columns=[["1"] * 29 + ["1e308"], ["1e308"] + ["1"] * 29])
def test_whatever_is_in_a_table_its_inputs_are_finite_numbers(
    tmp_path_factory: pytest.TempPathFactory, columns: list[list[str]]
) -> None:
    names = [f"c{number}" for number in range(len(columns))]
    rows = [",".join([*row, str(n % 2)]) for n, row in enumerate(zip(*columns, strict=True))]
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("\n".join([",".join([*names, "y"]), *rows]))
    try:
        task = load_task("table", Source(path=path, target="y"))
    except ConfigError as error:
        assert "t.csv" in str(error)  # noqa: PT017
        return
    for part in (task.train, task.validation, task.test):
        assert bool(torch.isfinite(part.known().inputs).all())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "char"),
        (b"abc", "char"),
        (b"\xff\xfe\x81" * 9000, "UTF-8"),
        (b"a" * 9000, r"book\.txt is 'a' again and again"),
    ],
)
def test_a_bad_text_is_explained(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_task("text", Source(path=path))


def test_a_texts_targets_are_its_next_characters(tmp_path: Path) -> None:
    task = load_from(tmp_path, "text")
    assert task.goal is Goal.LANGUAGE
    assert torch.equal(task.train.known().inputs[:, 1:], task.train.known().targets[:, :-1])


def test_data_for_a_task_that_brings_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data"):
        load_task("digits", Source(path=tmp_path))
