"""Character language model: predict the next character of a text.

Without a file of the user's, the text is source code of Python's own standard library.
"""

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from esper.contracts import ConfigError
from esper.contracts.words import plural
from esper.tamiyo.tasks.goals import Goal
from esper.tamiyo.tasks.source import Source
from esper.tamiyo.tasks.split import Split
from esper.tamiyo.tasks.task import Task

LENGTH = 64
"""Characters of one sample."""
MAX_ALPHABET = 256
"""Characters that are told apart; the rarest beyond that are one."""
_MODULES = ("argparse", "ast", "dataclasses", "difflib", "inspect", "pathlib", "tarfile", "typing")
_MIN_SAMPLES = 30
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def text(source: Source) -> Task:
    """Return a text in samples of `LENGTH` characters, cut in order: train, validation, test (8:1:1).

    The alphabet is that of the train part; a character that only occurs later is unknown.

    Raises:
        ConfigError: for a text that cannot be read, is too short, or always the same character.

    """
    source.refuse_target("text")
    content, name = (
        (_standard_library(), "Python's standard library")
        if source.path is None
        else (_read(source.file("text", "a text in UTF-8")), source.path.name)
    )
    num_samples = (len(content) - 1) // LENGTH
    if num_samples < _MIN_SAMPLES:
        raise ConfigError(
            f"{name} has {plural(len(content), 'character')}; expected at least "
            f"{_MIN_SAMPLES * LENGTH + 1}, which make {_MIN_SAMPLES} samples of {LENGTH}"
        )
    ends = (num_samples * 8 // 10, num_samples * 9 // 10, num_samples)
    alphabet = _alphabet(content[: ends[0] * LENGTH])
    if len(alphabet) < 3:  # the first stands for what is unknown
        raise ConfigError(
            f"{name} is {alphabet[-1]!r} again and again, in all that is to be learned from; nothing to learn"
        )
    indices = {character: index for index, character in enumerate(alphabet)}
    codes = torch.tensor([indices.get(c, 0) for c in content[: num_samples * LENGTH + 1]])
    starts = (0, *ends[:2])
    train, validation, test = (_cut(codes, a, b) for a, b in zip(starts, ends, strict=True))
    note = f"{name}: {num_samples * LENGTH:,} characters, an alphabet of {len(alphabet)}"
    return Task(
        name="text",
        train=train,
        validation=validation,
        test=test,
        num_classes=len(alphabet),
        goal=Goal.LANGUAGE,
        notes=(note,),
        encoding={"kind": "text", "length": LENGTH, "alphabet": alphabet, "unknown": 0},
    )


def _cut(codes: Tensor, start: int, end: int) -> Split:
    part = codes[start * LENGTH : end * LENGTH + 1]
    return Split(
        inputs=part[:-1].view(-1, LENGTH).clone(), targets=part[1:].view(-1, LENGTH).clone()
    )


def _alphabet(content: str) -> list[str]:
    """Return the characters in use, the most frequent first if there are too many, and one for others."""
    counts = {character: content.count(character) for character in set(content)}
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    return [_UNKNOWN, *sorted(frequent[: MAX_ALPHABET - 1])]


def _standard_library() -> str:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8 ({error}); convert it first") from error
