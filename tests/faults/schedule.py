"""When things break: faults are spread over the progress of the work, not over time.

Scenarios wait through a `Wait`, which looks after their processes, gives up at a deadline, and shows
how far they are.
"""

import time
from collections.abc import Callable, Sequence

from ledger import Ledger
from workers import Crew

_SHARE_HANDLED = 0.95
"""Of what a publisher tries; the rest is poison, or did not arrive."""


class Wait:
    """Waits for a scenario.

    Args:
        deadline_seconds: how long it may take from now.
        show: is told how far the scenario is.

    """

    def __init__(self, deadline_seconds: float, show: Callable[[str], None]) -> None:
        self._deadline = time.monotonic() + deadline_seconds
        self._show = show

    def __call__(self, people: Crew, is_done: Callable[[Ledger], bool]) -> None:
        """Wait until `is_done`.

        Raises:
            TimeoutError: at the deadline, with what is missing.

        """
        while not is_done(ledger := people.ledger()):
            people.look_after()
            missing = sorted(ledger.lost)
            line = (
                f"{ledger.scenario}: published {len(ledger.acknowledged):,}, "
                f"handled {len(ledger.handled):,}, consumers died {people.num_deaths}"
            )
            self._show(line)
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"{line}; not handled: {len(missing)}, {missing[:10]}")
            people.pause()

    def say(self, line: str) -> None:
        """Show how far the scenario is."""
        self._show(line)

    def seconds(self, seconds: float) -> None:
        """Let a fault last."""
        time.sleep(seconds)


def spread(
    people: Crew,
    wait: Wait,
    num_messages: int,
    faults: Sequence[tuple[int, Callable[[int], object]]],
) -> None:
    """Play the faults, each kind so many times, evenly over the messages that are handled.

    Args:
        people: whose progress counts.
        wait: for it.
        num_messages: how many will be published; nearly all are to be handled.
        faults: how often, and what; it is told which time it is, from 0.

    """
    planned = sorted(
        ((index + 0.5) / times, kind, index)
        for kind, (times, _) in enumerate(faults)
        for index in range(times)
    )
    for share, kind, index in planned:
        threshold = share * _SHARE_HANDLED * num_messages

        def is_there(ledger: Ledger, threshold: float = threshold) -> bool:
            return len(ledger.handled) >= threshold

        wait(people, is_there)
        faults[kind][1](index)
