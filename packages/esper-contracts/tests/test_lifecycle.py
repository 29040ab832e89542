"""The lifecycle table: as designed, as documented, and without traps."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts import (
    HOST_VISIBLE,
    IN_FLIGHT,
    LIFECYCLE,
    IllegalTransitionError,
    SeedState,
    check_transition,
    is_terminal,
)

README = Path(__file__).parent.parent / "README.md"

DESIGN = {
    "DORMANT": "GERMINATED",
    "GERMINATED": "LOADING CANCELLED",
    "LOADING": "TRAINING GRAFTING CULLED",
    "TRAINING": "GRAFTING CULLED CANCELLED",
    "GRAFTING": "STABILIZATION CULLED ROLLED_BACK",
    "STABILIZATION": "EVALUATING CULLED ROLLED_BACK",
    "EVALUATING": "FINE_TUNING FOSSILIZED CULLED ROLLED_BACK",
    "FINE_TUNING": "FOSSILIZED CULLED ROLLED_BACK",
    "FOSSILIZED": "",
    "CULLED": "DORMANT",
    "CANCELLED": "DORMANT",
    "ROLLED_BACK": "",
}
"""The design's table; a rollback may strike wherever the host's output depends on the kernel."""

STATES = st.sampled_from(SeedState)


def test_the_table_is_the_designed_one() -> None:
    table = {state.value: set(rule.next) for state, rule in LIFECYCLE.items()}
    assert table == {state: set(following.split()) for state, following in DESIGN.items()}


def test_the_readme_shows_the_table_of_the_code() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| (.+?) \| (\w+) \| (.+?) \|$", README.read_text(), re.M)
    shown = {state: (happens, sees, following) for state, happens, sees, following in rows}
    assert shown == {
        state.value: (
            rule.happens,
            rule.host_sees,
            ", ".join(s.value for s in SeedState if s in rule.next) or "terminal",
        )
        for state, rule in LIFECYCLE.items()
    }


@given(STATES, STATES)
def test_a_transition_passes_exactly_when_the_table_lists_it(
    current: SeedState, target: SeedState
) -> None:
    if target in LIFECYCLE[current].next:
        check_transition(current, target)
    else:
        with pytest.raises(IllegalTransitionError, match=f"{current} cannot go to {target}"):
            check_transition(current, target)


def test_an_illegal_transition_says_what_would_be_legal() -> None:
    with pytest.raises(
        IllegalTransitionError,
        match="a seed in GERMINATED cannot go to FOSSILIZED; "
        "legal from GERMINATED: CANCELLED, LOADING",
    ):
        check_transition(SeedState.GERMINATED, SeedState.FOSSILIZED)
    with pytest.raises(IllegalTransitionError, match="nothing, the state is terminal"):
        check_transition(SeedState.FOSSILIZED, SeedState.DORMANT)


def reachable(start: SeedState) -> set[SeedState]:
    found, frontier = {start}, [start]
    while frontier:
        new = LIFECYCLE[frontier.pop()].next - found
        found |= new
        frontier += new
    return found


@pytest.mark.parametrize("state", list(SeedState))
def test_every_state_is_reachable_and_leads_to_an_end(state: SeedState) -> None:
    assert state in reachable(SeedState.DORMANT)
    assert any(is_terminal(end) for end in reachable(state))
    assert is_terminal(state) == (reachable(state) == {state})


@given(st.data())
def test_no_walk_leaves_a_terminal_state_or_shows_a_kernel_before_grafting(
    data: st.DataObject,
) -> None:
    state, grafted = SeedState.DORMANT, False
    for _ in range(20):
        if is_terminal(state):
            assert state in {SeedState.FOSSILIZED, SeedState.ROLLED_BACK}
            return
        state = data.draw(st.sampled_from(sorted(LIFECYCLE[state].next)))
        grafted = state is SeedState.GRAFTING or (grafted and state in HOST_VISIBLE)
        assert (state in HOST_VISIBLE) == grafted


def test_flight_ends_with_a_verdict() -> None:
    ends = set[SeedState]().union(*(LIFECYCLE[state].next for state in IN_FLIGHT)) - IN_FLIGHT
    assert ends == {"FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK"}
