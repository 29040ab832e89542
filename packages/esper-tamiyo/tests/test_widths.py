"""Which layers are too narrow, alone or in rows; and where blocks may grow around that."""

import pytest
from policy_factory import ALWAYS, PAIR, block, healthy, kernel, seen, units

from esper.contracts import Site
from esper.tamiyo import Gap
from esper.tamiyo.policies.widths import ACROSS_POSITIONS, UNKNOWN, Widths

ROW = [
    block(0, "a"),
    units(1, "a", "b"),
    units(2, "a", "d", spans=3),
    block(3, "b"),
    units(4, "b", "c"),
    block(5, "c"),
    units(6, "c", "d"),
]
"""Three layers in a row before the head `d`, each of which can become wider, and a path past them."""
PAIRS = (1, 4, 6)


def widths(*gains: float | None, sites: list[Site] = ROW, ids: tuple[int, ...] = PAIRS) -> Widths:
    signals = [healthy(i, gap=2.0, gain=gain) for i, gain in zip(ids, gains, strict=True)]
    return Widths(sites, {(signal.layer_id, 0): signal for signal in signals})


def test_a_path_passes_the_layers_of_its_row() -> None:
    found = widths(0.2, 0.1, None)
    path = ROW[2]
    assert [pair.layer_id for pair in found.row(path)] == list(PAIRS)
    assert found.share(path) == pytest.approx((0.1 + 0.05 + UNKNOWN) / 3)
    assert Widths([path], {}).row(path) == []
    assert Widths([path], {}).share(path) == UNKNOWN


@pytest.mark.parametrize(
    ("gains", "bottlenecks", "row"),
    [
        ((0.2, -0.1, -0.1), {1}, False),
        ((-0.1, -0.1, 0.1), {6}, False),
        ((0.2, 0.1, -0.1), set[int](), True),
        ((0.2, 0.1, 0.3), set[int](), True),
        ((-0.2, -0.1, None), set[int](), False),
        ((None, None, None), set[int](), False),
    ],
)
def test_one_narrow_layer_is_a_bottleneck_and_most_of_a_row_are_a_narrow_row(
    gains: tuple[float | None, ...], bottlenecks: set[int], row: bool
) -> None:
    found = widths(*gains)
    assert {s.layer_id for s in ROW if s.spans == 1 and found.is_bottleneck(s)} == bottlenecks
    assert found.is_narrow_row(ROW[2]) == row


def test_in_a_narrow_row_a_layer_half_as_wide_as_another_is_a_bottleneck_all_the_same() -> None:
    sites = [ROW[0], *ROW[1:3], block(3, "b", width=12), *ROW[4:]]
    found = widths(0.2, 0.1, 0.3, sites=sites)
    assert found.is_narrow_row(ROW[2])
    assert [s.layer_id for s in sites if s.spans == 1 and found.is_bottleneck(s)] == [1, 6]


def test_half_of_the_channels_at_twice_the_positions_is_no_bottleneck() -> None:
    """As in nets whose channels double where they stride or pool."""
    first, wide = block(0, "a"), block(3, "b", width=12)
    sites = [first.model_copy(update={"cost": 2.0}), *ROW[1:3], wide, *ROW[4:]]
    found = widths(0.2, 0.1, 0.3, sites=sites)
    assert found.is_narrow_row(ROW[2])
    assert [s.layer_id for s in sites if s.spans == 1 and found.is_bottleneck(s)] == [6]


def test_half_of_what_passes_is_half_whatever_the_rounding_of_costs() -> None:
    """A quarter of the channels at twice the positions is half; all channels at fewer positions are not."""
    sites = [block(0, "a", width=3), *ROW[1:3], block(3, "b", width=12), *ROW[4:]]
    for cost, wide_cost, bottlenecks in (
        (49.584, 24.79, [1, 6]),
        (49.584, 24.78, [1, 6]),
        (49.8, 24.6, [6]),
    ):
        costed = [
            site.model_copy(update={"cost": {"a": cost, "b": wide_cost}.get(site.name, 1.0)})
            if site.widens is None
            else site
            for site in sites
        ]
        found = widths(0.2, 0.1, 0.3, sites=costed)
        assert [
            s.layer_id for s in costed if s.spans == 1 and found.is_bottleneck(s)
        ] == bottlenecks
    strided = [ROW[0].model_copy(update={"cost": 0.4}), *ROW[1:]]
    found = widths(0.2, 0.1, 0.3, sites=strided)
    assert not any(found.is_bottleneck(site) for site in strided if site.spans == 1)


def test_a_layer_that_feeds_two_others_is_judged_by_each_alone() -> None:
    sites = [units(0, "a", "b"), units(1, "b", "left"), units(2, "b", "right")]
    path = units(3, "a", "left", spans=2)
    found = widths(0.1, 0.2, 0.3, sites=[*sites, path], ids=(0, 1, 2))
    assert [found.share(site) for site in sites] == pytest.approx([0.05, 0.1, 0.15])
    assert [pair.layer_id for pair in found.row(path)] == [0, 1]


def test_where_widths_are_not_known_a_narrow_row_has_no_bottleneck() -> None:
    sites = [site for site in ROW if site.widens is not None]
    found = widths(0.1, 0.2, 0.3, sites=sites)
    assert found.is_narrow_row(ROW[2])
    assert not any(found.is_bottleneck(site) for site in sites if site.spans == 1)


def test_a_layer_wider_than_what_it_reads_and_feeds_lacks_no_units_nor_does_any_that_seems_less() -> (
    None
):
    sites = [
        block(0, "stem"),
        units(1, "stem", "up"),
        block(2, "up", width=24),
        units(3, "up", "down"),
    ]
    less = widths(0.1, 0.3, sites=sites, ids=(1, 3))
    assert not any(less.is_narrow(site) for site in sites)
    assert less.largest_share == pytest.approx(0.15)
    more = widths(0.4, 0.3, sites=sites, ids=(1, 3))
    assert [site.layer_id for site in sites if more.is_bottleneck(site)] == [1]


def test_a_narrow_row_gets_a_path_before_any_block() -> None:
    kernels = [
        kernel(1, num_parameters=2000),
        kernel(2, num_parameters=2000, signature=PAIR),
    ]
    health = [healthy(i, gap=2.0, gain=0.1) for i in PAIRS]
    chosen = Gap(timing=ALWAYS).propose(seen(ROW, kernels, *health)).chosen
    assert chosen is not None
    assert chosen.seed_id == (2, 0)
    alone = [healthy(1, gap=2.0, gain=-0.1), healthy(4, gap=2.0, gain=0.1)]
    bottleneck = Gap(timing=ALWAYS).propose(seen(ROW, kernels, *alone)).chosen
    assert bottleneck is not None
    assert bottleneck.seed_id == (4, 0)


def test_blocks_grow_between_blocks_of_the_host_rather_than_within_one() -> None:
    sites = [block(0, "row.0.up"), block(1, "row.0"), block(2, "row.1.up"), block(3, "row.1")]
    found = seen(sites, [kernel(1, num_parameters=2000)])
    assert [found.is_inside(site) for site in sites] == [True, False, True, False]
    chosen = Gap(timing=ALWAYS).propose(found).chosen
    assert chosen is not None
    assert chosen.seed_id == (1, 0)


@pytest.mark.parametrize(("steps", "is_mended"), [(100, True), (50, False)])
def test_a_bottleneck_is_mended_unless_the_model_is_too_large_for_the_samples(
    steps: int, is_mended: bool
) -> None:
    sites = [block(0, "a"), units(1, "a", "b")]
    kernels = [kernel(1, num_parameters=500), kernel(2, num_parameters=500, signature=PAIR)]
    batch = {"batch_samples": 4}
    health = [healthy(0, gap=1.0).model_copy(update=batch), healthy(1, gap=1.0, gain=0.1)]
    proposal = Gap(timing=ALWAYS).propose(seen(sites, kernels, *health, steps=steps))
    # 1,000 parameters, 4,000 or 2,000 samples
    assert (None if proposal.chosen is None else proposal.chosen.seed_id) == (
        (1, 0) if is_mended else None
    )


ACROSS = units(4, "c", "head").model_copy(update={"reads_all_positions": True})


@pytest.mark.parametrize(("gain", "expected"), [(0.05, False), (0.07, True)])  # of a gap of 2
def test_new_units_that_read_all_positions_at_once_must_promise_more(
    gain: float, expected: bool
) -> None:
    across = widths(gain, sites=[ACROSS], ids=(4,))
    assert across.is_bottleneck(ACROSS) is expected
    assert across.share(ACROSS) == pytest.approx(gain / 2 - ACROSS_POSITIONS)
    others = units(4, "c", "head")
    assert widths(gain, sites=[others], ids=(4,)).share(others) == gain / 2


def test_another_narrow_layer_comes_before_units_across_positions_that_promise_little_more() -> (
    None
):
    pair = units(3, "a", "b")
    found = widths(0.03, 0.08, sites=[pair, ACROSS], ids=(3, 4))
    assert found.largest_share == found.share(pair) > found.share(ACROSS) > 0
