"""How much grows: by the samples to come, and by what parameters cost at a place."""

import dataclasses

import pytest
from policy_factory import ALWAYS, PAIR, block, healthy, kernel, seed, seen, units

from esper.contracts import SeedState
from esper.tamiyo import Gap
from esper.tamiyo.policies.sizes import Size


@pytest.mark.parametrize(
    ("steps", "batch", "size"),
    [
        (0, 64, 2000),
        (100, 0, 2000),
        (20, 50, None),  # 10,000 samples for 1,000 parameters: twice the size would be too large
        (54, 50, 2000),
        (216, 50, 5000),
        (1014, 50, 12_000),
    ],
)
def test_the_more_samples_are_to_come_the_larger_it_grows(
    steps: int, batch: int, size: int | None
) -> None:
    sizes = (500, 2000, 5000, 12_000, 50_000)
    kernels = [kernel(n, num_parameters=size) for n, size in enumerate(sizes)]
    signal = healthy(0, gap=1.0).model_copy(update={"batch_samples": batch})
    found = seen([block(0, "a")], kernels, signal, steps=steps)
    assert found.samples_left == (steps * 10 * batch or None)
    if found.samples_left is not None:
        thrice = dataclasses.replace(found, batches_per_step=3)
        assert thrice.samples_left == 3 * found.samples_left
    chosen = Gap(timing=ALWAYS).propose(found).chosen
    assert (None if chosen is None else chosen.num_parameters) == size


@pytest.mark.parametrize(("cost", "size"), [(0.5, 5000), (1.0, 5000), (2.0, 2000), (4.0, 500)])
def test_the_more_a_parameter_costs_at_a_place_the_less_grows_there(cost: float, size: int) -> None:
    sizes = (500, 2000, 5000, 12_000, 50_000)
    kernels = [kernel(n, num_parameters=size) for n, size in enumerate(sizes)]
    signal = healthy(0, gap=1.0).model_copy(update={"batch_samples": 50})
    place = block(0, "a").model_copy(update={"cost": cost})
    chosen = Gap(timing=ALWAYS).propose(seen([place], kernels, signal, steps=216)).chosen
    assert chosen is not None
    assert chosen.num_parameters == size
    assert chosen.numbers["cost"] == pytest.approx(size / 1000 * max(1.0, cost))


@pytest.mark.parametrize("cost", [0.1, 1.0, 3.0])
def test_a_model_that_is_large_enough_is_left_alone_wherever_operations_are_cheap(
    cost: float,
) -> None:
    signal = healthy(0, gap=1.0).model_copy(update={"batch_samples": 50})
    place = block(0, "a").model_copy(update={"cost": cost})
    proposal = Gap(timing=ALWAYS).propose(
        seen([place], [kernel(1, num_parameters=100)], signal, steps=10)
    )
    assert proposal.chosen is None
    assert "nothing is worth its cost" in proposal.reason


def test_what_has_grown_counts_with_what_it_costs_where_it_grew() -> None:
    kernels = [kernel(1, num_parameters=500), kernel(2, num_parameters=1000)]
    sites = [block(0, "a").model_copy(update={"cost": 3.0}), block(1, "b")]
    kept = [
        seed(0, SeedState.FOSSILIZED, kernel_id=kernels[0].kernel_id),
        seed(1, SeedState.FOSSILIZED, kernel_id=kernels[1].kernel_id),
    ]
    found = dataclasses.replace(seen(sites, kernels), seeds=kept, num_parameters=2500)
    assert found.sizes.began == 1000
    assert found.sizes.grown == Size(parameters=1.5, operations=2.5)


@pytest.mark.parametrize(("steps", "grows"), [(54, False), (216, True)])
def test_nothing_more_grows_where_what_has_grown_costs_more_than_it_is_worth_by_now(
    steps: int, *, grows: bool
) -> None:
    kernels = [kernel(1, num_parameters=500), kernel(2, num_parameters=100)]
    sites = [block(0, "a").model_copy(update={"cost": 4.0}), block(1, "b")]
    seeds = [seed(0, SeedState.FOSSILIZED, kernel_id=kernels[0].kernel_id), seed(1)]
    signal = healthy(1, gap=1.0).model_copy(update={"batch_samples": 50})
    found = dataclasses.replace(
        seen(sites, kernels, signal, steps=steps), seeds=seeds, num_parameters=1500
    )
    assert (found.sizes.worth_so_far > 0) == grows
    assert found.sizes.worth(kernels[1], sites[1]) > 0
    proposal = Gap(timing=ALWAYS).propose(found)
    assert (proposal.chosen is not None) == grows
    assert proposal.candidates[0].numbers["worth_so_far"] == found.sizes.worth_so_far
    assert Gap(timing=ALWAYS, more_share=0).propose(found).chosen is not None


def test_narrow_layers_are_mended_whatever_has_grown_costs() -> None:
    dear, mend = kernel(1, num_parameters=500), kernel(2, num_parameters=100, signature=PAIR)
    for row, gains in (([1], (0.2, -0.1)), ([2], (0.2, 0.1))):  # a bottleneck, a narrow row
        sites = [
            block(0, "a").model_copy(update={"cost": 4.0}),
            units(1, "a", "b"),
            units(2, "a", "c", spans=2),
            block(3, "b"),
            units(4, "b", "c"),
        ]
        signals = [healthy(n, gap=2.0, gain=gain) for n, gain in zip((1, 4), gains, strict=True)]
        found = dataclasses.replace(
            seen(sites, [dear, mend], *signals),
            seeds=[
                seed(0, SeedState.FOSSILIZED, kernel_id=dear.kernel_id),
                *(seed(n) for n in range(1, 5)),
            ],
            num_parameters=1500,
        )
        assert found.sizes.worth_so_far < 0
        chosen = Gap(timing=ALWAYS).propose(found).chosen
        assert chosen is not None
        assert [chosen.seed_id[0]] == row
