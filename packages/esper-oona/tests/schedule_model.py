"""What the port `Bus` promises one topic's groups: a model so simple that it can be seen to be right.

`test_any_schedule` compares each backend with a model of its own. Which of several waiting messages comes
next is the backend's choice, so the model is told and says whether it might; all else follows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from esper.contracts import GroupHealth

RECLAIM_SECONDS = 60_000.0
MAX_DELIVERIES = 3


class State(Enum):
    """Where a message is, for one group."""

    UNREAD = auto()
    """Nobody was handed it yet."""
    WAITING = auto()
    """Handed out before, and to be handed out again; from `due_at` on."""
    HELD = auto()
    """In somebody's hands, since `held_since`."""
    ACKNOWLEDGED = auto()
    DEAD = auto()


OPEN = frozenset({State.UNREAD, State.WAITING, State.HELD})
IN_FLIGHT = frozenset({State.WAITING, State.HELD})


@dataclass(kw_only=True)
class Tracked:
    """One message, for one group."""

    number: int
    state: State = State.UNREAD
    num_tries: int = 0
    due_at: float = 0.0
    held_since: float = 0.0
    holder: object | None = None
    """The delivery that has it in hand."""


@dataclass
class Group:
    """What one group is owed and has done; messages in the order in which they were published."""

    messages: dict[int, Tracked] = field(default_factory=dict[int, Tracked])

    def in_state(self, states: frozenset[State]) -> list[Tracked]:
        return [message for message in self.messages.values() if message.state in states]


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A dead letter, and what it says."""

    group: str
    number: int
    reason: str
    num_tries: int
    """0 where it is not known: who buries a message late does not know of the tries since."""


class Model:
    """All groups of a topic and the dead letters, at the seconds `now` of a clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.groups: dict[str, Group] = {}
        self.letters: dict[str, Letter] = {}
        self.burials: list[Letter] = []
        """Letters to be found with the next look."""

    def publish(self, number: int) -> None:
        for group in self.groups.values():
            group.messages[number] = Tracked(number=number)

    def find(self, group: str, number: int) -> Tracked | None:
        """Return the message if it is not settled for the group."""
        found = self.groups.get(group, Group()).messages.get(number)
        return found if found is not None and found.state in OPEN else None

    def is_overdue(self, message: Tracked) -> bool:
        return (
            message.state is State.HELD and self.now - message.held_since >= RECLAIM_SECONDS
        ) or (message.state is State.WAITING and self.now >= message.due_at)

    def available(self, group: str) -> list[Tracked]:
        """Return what may be handed out next: of what is new the oldest, of all else anything."""
        messages = self.groups[group].in_state(OPEN)
        again = [m for m in messages if self.is_overdue(m) and m.num_tries < MAX_DELIVERIES]
        return again + [m for m in messages if m.state is State.UNREAD][:1]

    def doomed(self) -> Iterator[tuple[str, Tracked]]:
        """Yield what goes to the dead letters instead of being handed out once more."""
        for name, group in self.groups.items():
            for message in group.in_state(IN_FLIGHT):
                if self.is_overdue(message) and message.num_tries >= MAX_DELIVERIES:
                    yield name, message

    def hand_out(self, group: str, number: int, delivery_count: int, holder: object) -> None:
        """Note a delivery, if it may be."""
        allowed = {message.number: message for message in self.available(group)}
        assert number in allowed, f"{number} came, expected one of {list(allowed)}"
        message = allowed[number]
        assert delivery_count == message.num_tries + 1
        message.state, message.holder = State.HELD, holder
        message.num_tries, message.held_since = delivery_count, self.now

    def give_back(self, message: Tracked, *, delay_seconds: float = 0.0, counted: bool) -> None:
        message.state, message.holder = State.WAITING, None
        message.due_at = self.now + delay_seconds
        message.num_tries -= not counted

    def bury(self, group: str, message: Tracked, reason: str, *, is_late: bool) -> None:
        message.state = State.DEAD
        num_tries = 0 if is_late else message.num_tries
        letter = Letter(group=group, number=message.number, reason=reason, num_tries=num_tries)
        self.burials.append(letter)

    def requeue(self, letter_id: str) -> None:
        letter = self.letters.pop(letter_id)
        messages = self.groups[letter.group].messages
        messages[letter.number] = Tracked(
            number=letter.number, state=State.WAITING, due_at=self.now
        )

    def check_letters(self, found: dict[str, Letter]) -> None:
        """Compare the dead letters; what is doomed may be among them, and must be at the end."""
        assert self.letters.keys() <= found.keys()
        doomed = {(group, message.number): message for group, message in self.doomed()}
        for letter_id in found.keys() - self.letters.keys():
            letter = found[letter_id]
            expected = [
                each for each in self.burials if each in (letter, replace(letter, num_tries=0))
            ]
            if expected:
                self.burials.remove(expected[0])
            else:
                message = doomed.pop((letter.group, letter.number))
                message.state = State.DEAD
                assert letter.num_tries == message.num_tries
                assert letter.reason == "handed out 3 times and never acknowledged"
            self.letters[letter_id] = letter
        assert self.burials == []

    def check_health(self, found: Iterable[GroupHealth]) -> None:
        letters = Counter(letter.group for letter in self.letters.values())
        actual = {
            each.group: (
                each.lag,
                each.num_in_flight,
                each.num_redelivered,
                each.num_dead_letters,
                each.num_lost,
            )
            for each in found
        }
        expected: dict[str, tuple[int, ...]] = {}
        for name, group in self.groups.items():
            in_flight = group.in_state(IN_FLIGHT)
            expected[name] = (
                len(group.in_state(frozenset({State.UNREAD}))),
                len(in_flight),
                sum(message.num_tries > 1 for message in in_flight),
                letters[name],
                0,
            )
        assert actual == expected, "lag, in flight, redelivered, dead letters, lost"
