"""Any schedule of publishing, taking, settling, dying and losing gives what the port promises.

The same steps are played on the memory bus and on real servers; after each one, both are compared with a
model of the promises (`schedule_model`). `ESPER_SCHEDULES=1000` plays so many, new ones each time.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,  # pyright: ignore[reportUnknownVariableType]
)
from schedule_worlds import Hand, MemoryWorld, Place, RedisWorld, World

from esper.testkit.redis import RedisServer

GROUPS = st.sampled_from(["a", "b"])
PLACES = st.tuples(GROUPS, st.sampled_from(["one", "two"]))
PICKS = st.integers(min_value=0, max_value=7)
COUNTS = st.integers(min_value=0, max_value=4)
SPANS = st.sampled_from([17_000.0, 65_000.0])
"""Their sums are never near a delay or the reclaim time: what is due does not depend on the machine."""

type Step = Callable[[World, Hand], Coroutine[Any, Any, None]]

SETTLE: dict[str, Step] = {
    "acknowledge": lambda world, hand: world.acknowledge(hand),
    "give back": lambda world, hand: world.give_back(hand, delay_seconds=0.0, counted=True),
    "untried": lambda world, hand: world.give_back(hand, delay_seconds=0.0, counted=False),
    "delay": lambda world, hand: world.give_back(hand, delay_seconds=13_000.0, counted=True),
    "long delay": lambda world, hand: world.give_back(hand, delay_seconds=1e5, counted=True),
    "bury": lambda world, hand: world.bury(hand),
    "renew": lambda world, hand: world.renew(hand),
}
"""What a consumer does with a message; a long delay is one beyond the reclaim time."""


type Action = tuple[Any, ...]

ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.tuples(st.just("flow"), PLACES, COUNTS, COUNTS),
    st.tuples(st.just("settle"), PICKS, st.sampled_from(["acknowledge", "give back"])),
    st.tuples(st.just("settle"), PICKS, st.sampled_from(list(SETTLE))),
    st.tuples(st.just("settle"), PICKS, st.sampled_from(list(SETTLE))),
    st.tuples(st.just("consumer_ends"), PLACES, st.booleans()),
    st.tuples(st.just("requeue"), PICKS),
    st.tuples(st.just("pass_time"), SPANS),
    st.tuples(st.just("change_group"), GROUPS, st.sampled_from(["create", "remove", "lose"])),
    st.tuples(st.just("tidy"), GROUPS),
)
"""One rule with all of them: of several rules, hypothesis leaves out some in each example."""


class AnySchedule(RuleBasedStateMachine):
    """Two groups with two consumers each on one topic, and whatever may happen to them."""

    def __init__(self, server_url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.num_published = 0
        self.worlds: list[World] = [MemoryWorld(), RedisWorld(server_url)]
        self.each(lambda world: world.open())

    def each(self, step: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        for world in self.worlds:
            try:
                self.runner.run(step(world))
            except BaseException as error:
                error.add_note(type(world).__name__)
                raise

    @initialize(count=COUNTS)
    def begin(self, count: int) -> None:
        for group in ("a", "b"):
            self.each(lambda world, group=group: world.create_group(group))
        self.flow(("a", "one"), 4, count)

    def flow(self, place: Place, num_published: int, num_taken: int) -> None:
        numbers = range(self.num_published, self.num_published + num_published)
        self.num_published += num_published
        self.each(lambda world: world.publish(numbers))
        self.each(lambda world: world.take(place, num_taken))

    def settle(self, pick: int, how: str) -> None:
        """Do something with one of the newest deliveries, be it late or done before."""

        async def play(world: World) -> None:
            if world.hands:
                hand = world.hands[-1 - pick % len(world.hands)]
                if world.model.find(hand.group, hand.number) is None:
                    world.hands.remove(hand)  # once more at the end is enough
                await SETTLE[how](world, hand)

        self.each(play)

    def consumer_ends(self, place: Place, is_silent: bool) -> None:
        """Close a subscription, or let it stand with what it holds, as if its process were gone."""
        if is_silent:
            self.each(lambda world: world.abandon_reader(place))
        else:
            self.each(lambda world: world.close_reader(place))

    def requeue(self, pick: int) -> None:
        self.each(lambda world: world.requeue(pick))

    def pass_time(self, seconds: float) -> None:
        self.each(lambda world: world.pass_time(seconds))

    def change_group(self, group: str, how: str) -> None:
        if how == "create":
            self.each(lambda world: world.create_group(group))
        elif how == "remove":
            self.each(lambda world: world.remove_group(group))
        else:
            self.each(lambda world: world.lose_group(group))

    def tidy(self, group: str) -> None:
        self.each(lambda world: world.trim())
        self.each(lambda world: world.bury_doomed(group))

    @rule(action=ACTIONS)
    def play(self, action: Action) -> None:
        name, *arguments = action
        getattr(self, name)(*arguments)

    @invariant()
    def bus_and_model_agree(self) -> None:
        self.each(lambda world: world.check())

    def teardown(self) -> None:
        try:
            self.each(lambda world: world.drain(self.num_published))
        finally:
            self.each(lambda world: world.close())
            self.runner.close()


_EXAMPLES = int(os.environ.get("ESPER_SCHEDULES", "0"))
_SETTINGS = settings(
    max_examples=_EXAMPLES or 25,
    stateful_step_count=50,
    deadline=None,
    derandomize=not _EXAMPLES,
    database=None,
    phases=(Phase.generate,),  # shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize(
    "name", ["redis-8", *(pytest.param(n, marks=pytest.mark.long) for n in ("redis-6.2", "valkey"))]
)
def test_any_schedule_gives_what_the_port_promises(
    name: str, redis_of: Callable[[str], RedisServer]
) -> None:
    machine = partial(AnySchedule, redis_of(name).url)
    cast("Any", run_state_machine_as_test)(machine, settings=_SETTINGS)
