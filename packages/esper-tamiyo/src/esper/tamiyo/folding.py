"""Decisions as a person reads them: waits in a row that say the same are told once.

Made from a run's record, for the report's table and for `tamiyo explain`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from esper.contracts import Action, AdaptationSignal

_NUMBER = re.compile(
    r"(?<![\w.])(?<!layer )([-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)(?!\w|\.\w)"
)
"""One that stands alone: a name with digits in it, or a layer's, is a name."""

_MOST_ALTERNATING = 2


@dataclass(frozen=True, kw_only=True)
class Told:
    """Decisions that are told in one line."""

    first: int
    """Epoch, counted from 0."""
    last: int
    action: Action
    reason: str

    @property
    def epochs(self) -> str:
        """The epochs as a person counts them, one or the first and the last."""
        first, last = self.first + 1, self.last + 1
        return f"{first}" if first == last else f"{first}–{last}"  # noqa: RUF001


def fold(decisions: Sequence[AdaptationSignal]) -> list[Told]:
    """Return what to tell of `decisions`, in order.

    Waits in a row become one where their reasons differ in numbers only, or where two reasons alternate.
    """
    runs = [list(group) for _, group in groupby(decisions, key=_kind)]
    told: list[Told] = []
    begin = 0
    while begin < len(runs):
        end = _end_of_alternation(runs, begin)
        folded = [decision for run in runs[begin:end] for decision in run]
        kinds: dict[object, list[str]] = {}
        for decision in folded:
            kinds.setdefault(_kind(decision), []).append(decision.reason)
        told.append(
            Told(
                first=folded[0].epoch,
                last=folded[-1].epoch,
                action=folded[0].action,
                reason="; in turn with: ".join(map(_as_one, kinds.values())),
            )
        )
        begin = end
    return told


def _kind(decision: AdaptationSignal) -> object:
    """Return what decisions in a row have in common that are told as one."""
    is_wait = decision.action is Action.WAIT
    return _NUMBER.sub("\0", decision.reason) if is_wait else (decision.decision_id,)


def _end_of_alternation(runs: Sequence[Sequence[AdaptationSignal]], begin: int) -> int:
    """Return where the waits end that two reasons take turns in, from `begin` on."""
    end = begin + 1
    while (
        end + 1 < len(runs)
        and all(run[0].action is Action.WAIT for run in runs[end : end + 2])
        and _kind(runs[end + 1][0]) == _kind(runs[end - 1][0])
    ):
        end += 1
    return end + 1 if end - begin >= _MOST_ALTERNATING else begin + 1


def _as_one(reasons: Sequence[str]) -> str:
    """Return reasons that differ in numbers only as one, with the range of each number."""
    parts = [_NUMBER.split(reason) for reason in reasons]
    together = [list(dict.fromkeys(each)) for each in zip(*parts, strict=True)]
    return "".join(words[0] if len(words) == 1 else _range(words) for words in together)


def _range(numbers: Sequence[str]) -> str:
    ordered = sorted(numbers, key=lambda number: float(number.replace(",", "")))
    return f"{ordered[0]} to {ordered[-1]}"
