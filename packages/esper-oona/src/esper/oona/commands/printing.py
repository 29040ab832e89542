"""How commands print: tables that fit 80 columns, ages and sizes in words, JSON for machines."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

_UNITS = (("d", 86_400), ("h", 3600), ("m", 60))
_KILO = 1000


def console() -> Console:
    """Return where to print: coloured in a terminal, plain elsewhere; lines are left as they are."""
    return Console(highlight=False, soft_wrap=True, emoji=False)


def print_json(value: object) -> None:
    """Print one value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False))


def span(seconds: float | None) -> str:
    """Return a time span in its largest unit: `340 ms`, `12 s`, `3.5 h`; `-` for none."""
    if seconds is None:
        return "-"
    for unit, size in _UNITS:
        if seconds >= size:
            number = seconds / size
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s"
    return (
        f"{seconds * 1000:.0f} ms" if seconds >= 0.001 or not seconds else f"{seconds * 1e6:.0f} µs"
    )


def size(num_bytes: int | None) -> str:
    """Return a size in its largest unit: `340 B`, `1.2 MB`; `-` for an unknown one."""
    if num_bytes is None:
        return "-"
    number, units = float(num_bytes), ["B", "kB", "MB", "GB"]
    while number >= _KILO and len(units) > 1:
        number /= _KILO
        units.pop(0)
    return f"{number:.0f} {units[0]}" if units[0] == "B" else f"{number:.1f} {units[0]}"


def plural(count: int, word: str) -> str:
    """Return `1 message`, `2,000 messages`."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """Return aligned lines with markup, the header dimmed.

    A column whose cells all begin with a digit or a dash is aligned to the right.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(cell[:1] in "0123456789-≥" for cell in column[1:]) for column in columns]
    lines = [
        indent
        + "  ".join(
            cell.rjust(width) if is_numeric else cell.ljust(width)
            for cell, width, is_numeric in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in (header, *rows)
    ]
    return [f"[dim]{escape(lines[0])}[/]", *(escape(line) for line in lines[1:])]
