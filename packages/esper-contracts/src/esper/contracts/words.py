"""What sentences that people read are put together from: numbers with their nouns, articles, near names."""

import difflib
from collections.abc import Iterable


def plural(count: int, word: str, words: str | None = None) -> str:
    """Return `1 epoch`, `2 epochs`, `1,797 samples`; `words` is the plural where an `s` does not make it."""
    return f"{count:,} {word if count == 1 else words or f'{word}s'}"


def with_article(name: str) -> str:
    """Return `a str`, `an int`: a name behind its article, as far as the first letter tells."""
    return f"{'an' if name.lower().startswith(tuple('aeio')) else 'a'} {name}"


def type_of(value: object) -> str:
    """Return the name of a value's type behind its article: `an int`."""
    return with_article(type(value).__name__)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return which of `names` somebody may have meant by `name`; None if none is near."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return found[0] if found else None


def install_hint(member: str, extra: str) -> str:
    """Return how to install an extra of a member of the workspace, so that a later `uv run` keeps it.

    The root of the workspace has no extras, hence `--all-packages`; without `--inexact` other extras go.
    """
    return (
        f"install what is missing with `uv sync --inexact --all-packages --extra {extra}` in the workspace, "
        f"elsewhere with the extra {member}[{extra}]"
    )


def place(site: str) -> str:
    """Return what people read of a site's label: `layer fc2`, or `path past 3 layers from fc1, into fc4`."""
    return site if site.startswith("path ") else f"layer {site}"
