"""Python that uses an exported model without Esper, for `card`: from raw data to what an answer means.

The snippet runs as it is in the folder of the export; a reader puts data of theirs where it says so.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from esper.tamiyo.tasks.facts import ENCODING_FILE, TaskFacts
from esper.tamiyo.tasks.goals import Goal

_MANY_COLUMNS = 20
"""A row of more is not written out in the card."""

_MODEL = ["import torch", "", 'model = torch.export.load("model.pt2").module()']
_ENCODED = [
    "import json",
    "from pathlib import Path",
    "",
    *_MODEL,
    f'encoding = json.loads(Path("{ENCODING_FILE}").read_text(encoding="utf-8"))',
]

_TEXT = """\
text = "def "  # yours
length, unknown = encoding["length"], encoding["unknown"]
places = {character: place for place, character in enumerate(encoding["alphabet"])}
codes = [places.get(character, unknown) for character in text][-length:]
inputs = torch.tensor([codes + [unknown] * (length - len(codes))])
answers = model(inputs)
likeliest = answers[0, len(codes) - 1].argmax()
print("next:", repr(encoding["alphabet"][likeliest]))""".splitlines()

_ENCODE = """\
def encode(row):
    numbers = []
    for column in encoding["columns"]:
        cell = str(row[column["name"]]).strip()
        if cell.lower() in encoding["missing"]:
            cell = column["if_missing"]
        if column["kind"] == "words":
            numbers += [float(cell == word) for word in column["words"]]
        else:
            number = float(cell) / column["unit"]
            numbers.append((number - column["mean"]) / column["deviation"])
    return numbers""".splitlines()


def snippet(facts: TaskFacts, encoding: Mapping[str, Any] | None) -> list[str]:
    """Return the lines of a program; `encoding` is that of a built-in task, or None."""
    match encoding["kind"] if encoding is not None else None:
        case "text":
            return [*_ENCODED, "", *_TEXT]
        case "table":
            assert encoding is not None
            return [*_ENCODED, "", "", *_ENCODE, "", "", *_row(encoding), *_answer(encoding)]
        case "pixels":
            assert encoding is not None
            return _pixels(facts, encoding)
        case _:
            return [*_MODEL, f"inputs = {_invented(facts)}  # yours", "answers = model(inputs)"]


def _row(encoding: Mapping[str, Any]) -> list[str]:
    columns: Sequence[Mapping[str, Any]] = encoding["columns"]
    if len(columns) > _MANY_COLUMNS:
        cells = '{column["name"]: column["if_missing"] for column in encoding["columns"]}'
        lines = [f"row = {cells}  # yours, a cell for each column"]
    else:
        lines = [
            "row = {  # yours; an empty text is a missing cell",
            *(f"    {_quoted(each['name'])}: {_cell(each)}," for each in columns),
            "}",
        ]
    return [*lines, "inputs = torch.tensor([encode(row)])", "answers = model(inputs)"]


def _cell(column: Mapping[str, Any]) -> str:
    if column["kind"] == "number":
        return repr(column["if_missing"])
    given = [word for word in column["words"] if word != column["if_missing"]]
    return _quoted(given[0])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # what JSON escapes, Python reads


def _answer(encoding: Mapping[str, Any]) -> list[str]:
    if encoding["target"]["kind"] == "classes":
        return ['print(encoding["target"]["classes"][answers[0].argmax()])']
    return [
        'target = encoding["target"]',
        "number = answers[0].item()",
        'print((number * target["deviation"] + target["mean"]) * target["unit"])',
    ]


def _pixels(facts: TaskFacts, encoding: Mapping[str, Any]) -> list[str]:
    divisor = encoding["divisor"]
    size = ", ".join(map(str, facts.shape))
    named = "classes" in encoding
    return [
        *(_ENCODED if named else _MODEL),
        f"pixels = torch.randint({divisor + 1}, (1, {size}))  # yours, from 0 to {divisor}",
        f"inputs = pixels / {divisor}",
        "answers = model(inputs)",
        'print(encoding["classes"][answers[0].argmax()])'
        if named
        else "print(int(answers[0].argmax()))",
    ]


def _invented(facts: TaskFacts) -> str:
    size = ", ".join(map(str, (1, *facts.shape)))
    if facts.goal is Goal.LANGUAGE:
        return f"torch.randint({facts.num_classes}, ({size}))"
    return f"torch.rand({size}, dtype=torch.{facts.dtype})"
