"""The lifecycle of a seed, as the one table that every part of Esper uses.

Kasmina executes transitions that `check_transition` allows; Tamiyo looks up what may come next.

    DORMANT ─▶ GERMINATED ─▶ LOADING ─▶ TRAINING ─▶ GRAFTING ─▶ STABILIZATION ─▶ EVALUATING
       ▲           │            │  └──── no weights ───▲ │           │             │  │
       │           ▼            ▼          │             ▼           ▼             │  ▼
       └────── CANCELLED ◀─────────────────┤          ┌────────────────────┐      │ FINE_TUNING
       └────── CULLED ◀────────────────────┴──────────┤ CULLED, ROLLED_BACK│◀─────┤  │
                                                      └────────────────────┘      ▼  ▼
                                                                             FOSSILIZED

A cull returns the site to DORMANT after an embargo; FOSSILIZED and ROLLED_BACK are terminal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from esper.contracts.enums import SeedState
from esper.contracts.errors import IllegalTransitionError


@dataclass(frozen=True, kw_only=True)
class LifecycleRule:
    """One row of the lifecycle table."""

    happens: str
    """What the seed does in this state."""

    host_sees: Literal["nothing", "ramp", "all"]
    """How much of the kernel's output is in the host's features."""

    next: frozenset[SeedState]
    """The states that a command may lead to from here."""


def _rule(
    happens: str, host_sees: Literal["nothing", "ramp", "all"], *following: SeedState
) -> LifecycleRule:
    return LifecycleRule(happens=happens, host_sees=host_sees, next=frozenset(following))


_S = SeedState

LIFECYCLE: Mapping[SeedState, LifecycleRule] = MappingProxyType(
    {
        _S.DORMANT: _rule("watches; sampled health statistics", "nothing", _S.GERMINATED),
        _S.GERMINATED: _rule(
            "a kernel was chosen and waits for its turn", "nothing", _S.LOADING, _S.CANCELLED
        ),
        _S.LOADING: _rule(
            "the kernel is verified and instantiated",
            "nothing",
            _S.TRAINING,
            _S.GRAFTING,
            _S.CULLED,
        ),
        _S.TRAINING: _rule(
            "the kernel learns on detached inputs from the task's gradient at the site",
            "nothing",
            _S.GRAFTING,
            _S.CULLED,
            _S.CANCELLED,
        ),
        _S.GRAFTING: _rule(
            "alpha ramps from 0 to 1", "ramp", _S.STABILIZATION, _S.CULLED, _S.ROLLED_BACK
        ),
        _S.STABILIZATION: _rule(
            "the kernel is frozen while the host settles",
            "all",
            _S.EVALUATING,
            _S.CULLED,
            _S.ROLLED_BACK,
        ),
        _S.EVALUATING: _rule(
            "validation with and without the kernel on the same weights",
            "all",
            _S.FINE_TUNING,
            _S.FOSSILIZED,
            _S.CULLED,
            _S.ROLLED_BACK,
        ),
        _S.FINE_TUNING: _rule(
            "the kernel trains with the host on the task",
            "all",
            _S.FOSSILIZED,
            _S.CULLED,
            _S.ROLLED_BACK,
        ),
        _S.FOSSILIZED: _rule("the kernel is part of the model", "all"),
        _S.CULLED: _rule("removed; the site is under embargo", "nothing", _S.DORMANT),
        _S.CANCELLED: _rule("removed before it was grafted", "nothing", _S.DORMANT),
        _S.ROLLED_BACK: _rule("restored to the state before the graft; site locked", "nothing"),
    }
)

HOST_VISIBLE: frozenset[SeedState] = frozenset(
    state for state, rule in LIFECYCLE.items() if rule.host_sees != "nothing"
)
"""States in which the host's output depends on the kernel."""

IN_FLIGHT: frozenset[SeedState] = frozenset(
    {
        _S.GERMINATED,
        _S.LOADING,
        _S.TRAINING,
        _S.GRAFTING,
        _S.STABILIZATION,
        _S.EVALUATING,
        _S.FINE_TUNING,
    }
)
"""States between a decision to grow and its verdict."""


def is_terminal(state: SeedState) -> bool:
    """Tell whether no command leads out of `state`."""
    return not LIFECYCLE[state].next


def check_transition(current: SeedState, target: SeedState) -> None:
    """Pass silently if the table allows `current` → `target`.

    Raises:
        IllegalTransitionError: naming the state, the target and what would be legal.

    """
    legal = LIFECYCLE[current].next
    if target not in legal:
        options = ", ".join(sorted(legal)) or "nothing, the state is terminal"
        raise IllegalTransitionError(
            f"a seed in {current} cannot go to {target}; legal from {current}: {options}"
        )
