"""New units that would read thousands of inputs are tried on directions that stand for them."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import pytest
import torch
from torch import Tensor, nn

from esper.contracts import SiteKind
from esper.kasmina.expressivity import MOST_READ, NUM_TRIAL_UNITS, Sketch
from esper.kasmina.health import Health, HealthSampler

FEATURES = SiteKind.FEATURES
MANY = 3000
WIDTH = 4
SAMPLES, ROWS = 12, 256


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(seed: int) -> Tensor:
    """Return rows of many inputs that vary together, in twenty ways, and a little alone."""
    together = noise(ROWS, 20, seed=seed) @ noise(20, MANY) / 20**0.5
    return together + 0.1 * noise(ROWS, MANY, seed=seed + 1000)


def seen(sampler: HealthSampler, *, knows: bool, samples: int = SAMPLES) -> None:
    """Show samples of a layer behind a narrow one, which reads `pixels`, and what the loss wants of it.

    What it wants is a linear function of the pixels, or of nothing here.
    """
    narrow, layer = noise(MANY, WIDTH, seed=1) / MANY**0.5, nn.Linear(WIDTH, 3)
    wish = noise(MANY, 3, seed=2) / MANY**0.5
    with torch.no_grad():
        for number in range(samples):
            read = pixels(100 + number)
            inputs = torch.relu(read @ narrow)
            wanted = read @ wish if knows else noise(ROWS, 3, seed=500 + number)
            sampler.observe(layer(inputs), inputs, read)
            sampler.observe_gradient(-wanted / ROWS)


def health(*, knows: bool) -> Health:
    sampler = HealthSampler(FEATURES, nn.Linear(WIDTH, 3), num_read=MANY)
    seen(sampler, knows=knows)
    return sampler.close()


def share(found: Health) -> float:
    assert found.expressivity_gain is not None
    assert found.expressivity_gap is not None
    return found.expressivity_gain / found.expressivity_gap


def test_what_inputs_that_vary_together_know_is_seen_and_chance_is_not_taken_for_it() -> None:
    assert share(health(knows=True)) > 0.75
    assert abs(share(health(knows=False))) < 0.03


@pytest.mark.parametrize("many", [512, 1024])
def test_of_what_independent_inputs_know_a_part_is_seen(many: int) -> None:
    sampler = HealthSampler(FEATURES, nn.Linear(WIDTH, 3), num_read=many)
    narrow, wish = noise(many, WIDTH, seed=1) / many**0.5, noise(many, 3, seed=2) / many**0.5
    for number in range(40):
        read = noise(ROWS, many, seed=100 + number)
        inputs = torch.relu(read @ narrow)
        sampler.observe(torch.zeros(ROWS, 3), inputs, read)
        sampler.observe_gradient(-(read @ wish) / ROWS)
    assert share(sampler.close()) == pytest.approx(min(1, MOST_READ / many), abs=0.1)


def test_the_same_sums_stand_for_as_many_inputs_whatever_the_process_computes_in() -> None:
    read = noise(3, 1000)
    expected = Sketch(1000).of(read)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(Sketch(1000).of(read), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert Sketch(1000).of(read.bfloat16()).dtype is torch.float32


def test_what_is_kept_does_not_grow_with_the_inputs() -> None:
    sampler = HealthSampler(FEATURES, nn.Linear(WIDTH, 3), num_read=MANY)
    seen(sampler, knows=True, samples=2)
    kept = [value for sample in sampler.state_dict()["samples"] for value in sample]
    widths = [value.shape[-1] for value in kept if isinstance(value, Tensor)]
    assert max(widths) == MOST_READ


@pytest.mark.parametrize("folded", [False, True], ids=["samples", "sums"])
def test_a_state_that_holds_all_inputs_is_left_behind(folded: bool) -> None:
    sampler = HealthSampler(FEATURES, nn.Linear(WIDTH, 3), num_read=MANY)
    seen(sampler, knows=True, samples=2)
    if folded:
        sampler.close()
    state = sampler.state_dict()
    del state["is_sketched"]
    for sample in state["samples"]:
        sample[4] = noise(ROWS, MANY)
    if state["gap"] is not None:
        columns = WIDTH + 1 + MANY + NUM_TRIAL_UNITS
        gram, cross, *rest = state["gap"]["sums"]
        larger = [gram.new_zeros(1, columns, columns), cross.new_zeros(1, columns, 3)]
        state["gap"]["sums"] = [*larger, *rest]
    resumed = HealthSampler(FEATURES, nn.Linear(WIDTH, 3), num_read=MANY)
    resumed.load_state_dict(state)
    assert resumed.close().expressivity_gain is None
    seen(resumed, knows=True)
    assert share(resumed.close()) > 0.75
