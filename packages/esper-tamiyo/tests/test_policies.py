"""What all growing policies share, and what tells them apart: place, time, limits, scripts."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import override

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_factory import (
    FALLING,
    SIGNATURE,
    STALLED,
    WIDER,
    healthy,
    kernel,
    observation,
    seed,
    site,
)

from esper.contracts import (
    Action,
    AdaptationSignal,
    Candidate,
    CompiledKernelArtifact,
    ConfigError,
    EventLog,
    HealthSignal,
    KernelSignature,
    NotFoundError,
    SeedState,
    SeedStatus,
    SiteKind,
    SystemStatePacket,
)
from esper.tamiyo import (
    AtRandom,
    Attention,
    Budget,
    Chance,
    Gap,
    Growing,
    Heuristic,
    LossSlope,
    Never,
    Observation,
    Periodic,
    Plateau,
    Policy,
    Scripted,
)
from esper.tamiyo.explaining import NUMBERS
from esper.tamiyo.policies import attention_of
from esper.tamiyo.policies.growing import MOST_CANDIDATES

ALWAYS = AtRandom(chance=1.0)
GROWING: list[Growing] = [Heuristic(timing=ALWAYS), Gap(timing=ALWAYS), Chance(timing=ALWAYS)]


@pytest.mark.parametrize("policy", GROWING, ids=lambda policy: policy.name)
@given(
    losses=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=12),
    states=st.lists(st.sampled_from(SeedState), min_size=2, max_size=2),
    gaps=st.lists(st.none() | st.floats(allow_nan=True), min_size=2, max_size=2),
)
def test_equal_observations_give_equal_proposals_for_dormant_seeds(
    policy: Policy, losses: list[float], states: list[SeedState], gaps: list[float | None]
) -> None:
    seeds = [seed(index, state) for index, state in enumerate(states)]
    health = [healthy(index, gap=gap) for index, gap in enumerate(gaps)]
    seen = observation(losses, seeds=seeds, health=health)
    proposal = policy.propose(seen)
    assert proposal.reason
    assert policy.propose(seen) == proposal
    if proposal.chosen is not None:
        assert seeds[proposal.chosen.seed_id[0]].state is SeedState.DORMANT
        assert math.isfinite(proposal.chosen.score)


@dataclass(frozen=True, kw_only=True)
class Told(Growing):
    """Scores as it is told."""

    points: dict[tuple[tuple[int, int], str], int]

    @override
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        return float(self.points[seed.seed_id, kernel.kernel_id]), {}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_best_candidates_go_on_record_in_order(data: st.DataObject) -> None:
    kernels = [kernel(number) for number in range(7)]
    seeds = [seed(index) for index in range(12)]
    points = {
        (each.seed_id, block.kernel_id): data.draw(st.integers(0, 30))
        for each in seeds
        for block in kernels
    }
    sites = [site(index) for index in range(12)]
    policy = Told(timing=ALWAYS, points=points)
    found = policy.propose(observation(STALLED, seeds=seeds, sites=sites, kernels=kernels))
    ranked = sorted(points, key=lambda pair: (-points[pair], pair))[:MOST_CANDIDATES]
    assert [(each.seed_id, each.kernel_id) for each in found.candidates] == ranked
    assert "scores highest of 84" in found.reason


@pytest.mark.parametrize("policy", GROWING, ids=lambda policy: policy.name)
def test_a_row_grows_in_order_and_each_chunk_has_its_own(policy: Policy) -> None:
    sites = [site(0, depth=2, chunks=2)]
    seeds = [seed(0, SeedState.FOSSILIZED), *(seed(0, index=index) for index in (1, 2, 3))]
    proposal = policy.propose(observation(STALLED, seeds=seeds, sites=sites))
    assert {candidate.seed_id for candidate in proposal.candidates} == {(0, 1), (0, 2)}


def test_chance_picks_every_place_and_block_about_equally_often() -> None:
    counts: Counter[tuple[tuple[int, int], str]] = Counter()
    for number in range(400):
        chosen = Chance(timing=ALWAYS, seed=number).propose(observation(STALLED)).chosen
        assert chosen is not None
        counts[chosen.seed_id, chosen.kernel_id] += 1
    assert len(counts) == 4
    assert all(60 <= count <= 140 for count in counts.values())  # 100 expected, sigma 8.7


def test_the_gap_decides_between_equal_positions_and_yields_to_the_input_side() -> None:
    level = Gap(timing=ALWAYS, position_weight=0.0)
    seen = observation(STALLED, health=[healthy(0, gap=1.0), healthy(1, gap=3.0)])
    chosen = level.propose(seen).chosen
    assert chosen is not None
    assert chosen.site == "layer1"
    assert chosen.numbers["gap_share"] == 1.0
    assert chosen.numbers.keys() <= NUMBERS.keys(), "people are told what each number means"
    unknown = level.propose(observation(STALLED, health=[healthy(0, gap=None)])).chosen
    assert unknown is not None
    assert unknown.numbers["gap"] == 0.0
    even = observation(STALLED, health=[healthy(0, gap=2.9), healthy(1, gap=3.0)])
    by_position = Gap(timing=ALWAYS).propose(even).chosen
    assert by_position is not None
    assert by_position.site == "layer0"


def with_units(*health: HealthSignal) -> Observation:
    """Return what a policy sees of two layers for blocks, and two that may become wider."""
    return observation(
        STALLED,
        sites=[site(0), site(1, widens="layer0"), site(2), site(3, widens="layer2")],
        seeds=[seed(index) for index in range(4)],
        kernels=[
            kernel(1, num_parameters=2000),
            kernel(2, num_parameters=50, signature=WIDER),
        ],
        health=list(health),
    )


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ((0.02, 0.1), "layer3"),  # 1 % of a gap of 2 is less than 5 % of one of 2
        ((0.02, -0.1), "layer1"),
        ((-0.02, -0.1), "layer0"),  # no bottleneck: a block, on the input side
        ((None, None), "layer0"),
        ((math.nan, math.inf), "layer0"),
    ],
)
def test_a_bottleneck_becomes_wider_before_anything_else_grows(
    gains: tuple[float | None, float | None], chosen: str
) -> None:
    first, second = gains
    seen = with_units(
        healthy(0, gap=5.0),
        healthy(1, gap=2.0, gain=first),
        healthy(2, gap=9.0),
        healthy(3, gap=2.0, gain=second),
    )
    proposal = Gap(timing=ALWAYS).propose(seen)
    assert proposal.chosen is not None
    assert proposal.chosen.site == chosen
    assert seen.largest_gap == 9.0
    assert len(proposal.candidates) == 4
    assert all(math.isfinite(each.score) for each in proposal.candidates)


def test_where_no_layer_is_narrow_and_there_are_no_places_for_blocks_nothing_grows() -> None:
    seen = observation(
        STALLED,
        sites=[site(0, widens="a"), site(1, widens="b")],
        kernels=[kernel(1, num_parameters=2000, signature=WIDER)],
        health=[healthy(0, gap=1.0, gain=-0.3), healthy(1, gap=2.0, gain=-0.1)],
    )
    proposal = Gap(timing=ALWAYS).propose(seen)
    assert proposal.chosen is None
    assert "nothing is worth its cost: layer layer" in proposal.reason
    assert {each.numbers["gain_share"] for each in proposal.candidates} == {-0.3, -0.05}
    assert all(each.numbers.keys() <= NUMBERS.keys() for each in proposal.candidates)
    assert Gap(timing=ALWAYS, least_score=None).propose(seen).chosen is not None


@pytest.mark.parametrize("widens", [None, "before"])
def test_of_several_sizes_the_one_that_triples_the_model_is_chosen(widens: str | None) -> None:
    signature = WIDER if widens else SIGNATURE
    sizes = (10, 100, 2000, 9000, 100_000)
    seen = observation(
        STALLED,
        sites=[site(0, widens=widens)],
        seeds=[seed(0)],
        kernels=[
            kernel(n, num_parameters=size, signature=signature) for n, size in enumerate(sizes)
        ],
        health=[healthy(0, gap=1.0, gain=0.1)],
    )
    assert seen.num_parameters == 1000
    proposal = Gap(timing=ALWAYS).propose(seen)
    assert [each.num_parameters for each in proposal.candidates] == [2000, 100, 10, 9000, 100_000]


def test_of_two_bottlenecks_the_narrower_one_is_first_whatever_the_size() -> None:
    wide = KernelSignature(kind=SiteKind.FEATURES, features=8, inputs=8)
    seen = observation(
        STALLED,
        sites=[site(0, widens="a"), site(1, widens="b").model_copy(update={"signature": wide})],
        kernels=[
            kernel(1, num_parameters=100, signature=WIDER),
            kernel(2, num_parameters=2000, signature=wide),
        ],
        health=[healthy(0, gap=1.0, gain=0.009), healthy(1, gap=1.0, gain=0.0001)],
    )
    proposal = Gap(timing=ALWAYS).propose(seen)
    assert proposal.chosen is not None
    assert proposal.chosen.site == "layer0"


@pytest.mark.parametrize("policy", GROWING, ids=lambda policy: policy.name)
def test_many_scores_at_once_are_those_of_each(policy: Growing) -> None:
    seen = with_units(healthy(0, gap=5.0), healthy(1, gap=2.0, gain=0.1), healthy(2, gap=9.0))
    for each in seen.seeds:
        scores = policy.scores(seen, each, seen.kernels)
        assert list(scores) == [policy.score(seen, each, k)[0] for k in seen.kernels]


@pytest.mark.parametrize("stack", [True, False])
def test_a_block_beside_one_of_its_kernel_is_a_copy_where_stacking_is_on(stack: bool) -> None:
    rows = [site(0, depth=3), site(1, depth=3)]
    kept = kernel(1).kernel_id
    seen = observation(
        STALLED,
        sites=rows,
        seeds=[
            seed(0, SeedState.FOSSILIZED, index=0, kernel_id=kept),
            seed(0, SeedState.FOSSILIZED, index=1, kernel_id=kept),
            seed(0, index=2),
            *(seed(1, index=index) for index in range(3)),
        ],
    )
    found = Gap(timing=ALWAYS, stack=stack).propose(seen)
    copies = {(c.seed_id, c.kernel_id): c.copy_of for c in found.candidates}
    assert copies.pop(((0, 2), kept)) == ((0, 1) if stack else None)
    assert len(copies) == 3
    assert set(copies.values()) == {None}
    if stack:
        only = observation(STALLED, sites=rows[:1], seeds=list(seen.seeds[:3]), kernels=[kernel(1)])
        reason = Gap(timing=ALWAYS, stack=True).propose(only).reason
        assert "layer layer0: block1 as a copy of its neighbour scores highest" in reason


def test_periodic_growth_is_early_and_regular() -> None:
    timing = Periodic(first_epoch=1, every_epochs=3, until_share=0.5)
    due = [
        epoch
        for epoch in range(20)
        if timing.due(observation([1.0] * (epoch + 1), epochs_left=19 - epoch)).now
    ]
    assert due == [1, 4, 7]
    assert timing.due(observation([1.0] * 20, epochs_left=None)).now
    assert not timing.due(observation([1.0] * 23, epochs_left=None)).now


def test_a_slope_is_due_when_the_loss_has_flattened() -> None:
    timing = LossSlope(window_epochs=3, share=0.25)
    assert not timing.due(observation([4.0, 3.0])).now
    assert not timing.due(observation([4.0, 3.0, 2.0, 1.0])).now
    flat = timing.due(observation([4.0, 3.0, 2.0, 1.9, 1.85, 1.8]))
    assert flat.now
    assert flat.numbers["steepest"] == pytest.approx(1.0)
    assert timing.due(observation([1.0, 2.0, 3.0, 4.0])).now  # it rises
    assert not timing.due(observation([4.0, math.nan, 2.0, 1.0])).now


def test_dice_fall_the_same_in_every_run_and_about_as_often_as_asked() -> None:
    timing = AtRandom(chance=0.3, seed=5)
    falls = [timing.due(observation([1.0] * (epoch + 1))).now for epoch in range(300)]
    assert falls == [timing.due(observation([1.0] * (epoch + 1))).now for epoch in range(300)]
    assert 60 <= sum(falls) <= 120  # 90 expected, sigma 7.9


def test_what_costs_more_than_the_budget_has_left_is_no_candidate() -> None:
    policy = Heuristic(timing=ALWAYS, budget=Budget(parameters=500))
    proposal = policy.propose(observation(STALLED))
    assert {candidate.blueprint_name for candidate in proposal.candidates} == {"block1"}
    grown = [seed(0, SeedState.FOSSILIZED, kernel_id=kernel(1).kernel_id), seed(1)]
    left = Heuristic(timing=ALWAYS, budget=Budget(parameters=199))
    proposal = left.propose(observation(STALLED, seeds=grown))
    assert proposal.chosen is None
    assert "block1 adds 100 parameters; 99 of 199 are left" in proposal.reason


def test_a_budget_smaller_than_any_block_says_so() -> None:
    proposal = Gap(timing=ALWAYS, budget=Budget(parameters=10)).propose(observation(STALLED))
    assert proposal.chosen is None
    assert (
        "the budget is too small: block1 adds 100 parameters; 10 of 10 are left" in proposal.reason
    )


def test_time_and_seeds_in_flight_are_limited() -> None:
    limited = Heuristic(timing=ALWAYS, budget=Budget(seconds=60.0))
    assert limited.propose(observation(STALLED, seconds=59.0)).chosen is not None
    late = limited.propose(observation(STALLED, seconds=60.0))
    assert late.chosen is None
    assert "60 s" in late.reason
    two = Heuristic(timing=ALWAYS, budget=Budget(in_flight=2))
    one = [seed(0, SeedState.TRAINING), seed(1)]
    assert two.propose(observation(STALLED, seeds=one)).chosen is not None
    both = [seed(0, SeedState.TRAINING), seed(1, SeedState.LOADING)]
    assert two.propose(observation(STALLED, seeds=both)).chosen is None


@pytest.mark.parametrize("limits", [{"parameters": 0}, {"flops": -1}, {"in_flight": 0}])
def test_a_limit_that_makes_no_sense_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected more than 0"):
        Budget(**limits)


def test_never_waits() -> None:
    assert Never().propose(observation(STALLED)).chosen is None


def _candidate(layer_id: int) -> Candidate:
    return Candidate(
        seed_id=(layer_id, 0),
        site=f"layer{layer_id}",
        kernel_id=kernel(1).kernel_id,
        blueprint_name="block1",
        num_parameters=100,
        score=1.0,
    )


def _log(path: Path, chosen: dict[int, Candidate], epochs: int = 4) -> Path:
    with EventLog(path) as log:
        for epoch in range(epochs):
            decision = AdaptationSignal(
                epoch=epoch,
                policy="any",
                action=Action.GERMINATE if epoch in chosen else Action.WAIT,
                seed_id=chosen[epoch].seed_id if epoch in chosen else None,
                reason="so",
                candidates=(_candidate(0), _candidate(1)) if epoch in chosen else (),
            )
            packet = SystemStatePacket(
                run_id="run",
                epoch=epoch,
                step=epoch,
                val_loss=1.0,
                learning_rate=0.1,
                num_parameters=1,
                seeds=(),
                decisions=(decision,),
            )
            log.append("epoch", packet)
    return path


def test_a_script_grows_what_the_log_says_and_nothing_else(tmp_path: Path) -> None:
    script = Scripted.from_log(_log(tmp_path / "events.jsonl", {2: _candidate(1)}).parent)
    for epoch in range(6):
        chosen = script.propose(observation(FALLING[:1] * (epoch + 1))).chosen
        assert (chosen.seed_id if chosen is not None else None) == ((1, 0) if epoch == 2 else None)
    grown = [seed(0), seed(1, SeedState.GERMINATED)]
    assert script.propose(observation([1.0] * 3, seeds=grown)).chosen is None


def test_a_script_of_another_host_is_told_before_training_and_never_stops_it(
    tmp_path: Path,
) -> None:
    script = Scripted.from_log(_log(tmp_path / "log", {1: _candidate(1)}))
    script.check([site(0), site(1)])
    with pytest.raises(ConfigError, match=r"block1 at 'layer1' \(1, 0\) at epoch 2.*same host"):
        script.check([site(0)])
    proposal = script.propose(observation([1.0, 1.0], kernels=[kernel(2)]))
    assert proposal.chosen is None
    assert "what this run has not: block1 at layer1 (1, 0)" in proposal.reason


def test_a_log_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no log"):
        Scripted.from_log(tmp_path / "nothing")
    _log(tmp_path / "empty", {}, epochs=0)
    with pytest.raises(ConfigError, match="no epoch in it"):
        Scripted.from_log(tmp_path / "empty")


def test_a_policy_wants_to_know_health_only_where_it_matters() -> None:
    early, late = Periodic(every_epochs=2), Plateau()
    policy, patient = Gap(timing=early), Gap(timing=late)
    assert attention_of(policy, observation([4.0], epochs_left=59)) is Attention.NOW
    assert attention_of(policy, observation([4.0, 3.0], epochs_left=58)) is Attention.LATER
    assert attention_of(policy, observation([4.0] * 31, epochs_left=29)) is Attention.NONE
    assert attention_of(patient, observation([4.0] * 31, epochs_left=29)) is Attention.NOW
    assert attention_of(patient, observation([4.0] * 56, epochs_left=4)) is Attention.NONE
    assert attention_of(Never(), observation(STALLED)) is Attention.NONE
