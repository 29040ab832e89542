"""Each check passes a sound block and fails exactly what it is there to catch."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper.contracts import CheckResult, KernelSignature, SiteKind
from esper.urabrask.checks import CHECKS, make_specimen, within
from esper.urabrask.meters import forward_cost, median_latency_us, state_bytes

type Wrong = Callable[[Tensor, Tensor], Tensor]
"""`(sound output, input) → output`."""

SIGNATURE = KernelSignature(kind=SiteKind.FEATURES, features=8)


class Lambda(nn.Module):
    """A sound block (one zero linear layer) with something wrong added to it."""

    def __init__(self, wrong: Wrong) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        return self.wrong(self.linear(x), x)


def results(wrong: Wrong) -> dict[str, CheckResult]:
    specimen = make_specimen(Lambda(wrong), SIGNATURE)
    return {name: check(specimen) for name, check in CHECKS.items()}


def test_a_sound_block_passes_every_check_under_its_own_name() -> None:
    found = results(lambda out, x: out)
    assert [name for name, result in found.items() if not result.passed] == []
    assert [result.name for result in found.values()] == list(found)


WRONG: list[tuple[Wrong, str, str]] = [
    (lambda out, x: out.double(), "keeps_shape", r"became \(32, 8\) torch.float64"),
    (lambda out, x: out + 1e-4 * x, "identity_at_birth", r"largest \|f\(h\)\| is 0\.0"),
    (lambda out, x: out / (x.abs() < 500), "finite", r"\d+ of 1024 outputs are not finite"),
    (lambda out, x: out.detach() + 0 * x, "gradients_flow", "linear.weight, linear.bias"),
    (lambda out, x: out * out.detach(), "learns", r"loss 0\.\d+ to 0\.\d+ in 40 Adam"),
    (lambda out, x: out - out.mean(0), "rows_independent", "moves the others by"),
    (lambda out, x: nn.functional.dropout(out), "no_random_draws", "1 random operations"),
    (lambda out, x: out + 0 * torch.rand(8), "no_random_draws", "1 random operations"),
]
"""What is added to a sound block, the check that it fails, and what the check says."""


@pytest.mark.parametrize(("wrong", "failing", "detail"), WRONG)
def test_what_is_wrong_is_caught(wrong: Wrong, failing: str, detail: str) -> None:
    specimen = make_specimen(Lambda(wrong), SIGNATURE)
    result = CHECKS[failing](specimen)
    assert not result.passed
    assert re.search(detail, result.detail), result.detail


def attend(tokens: Tensor, dropout: float = 0.0) -> Tensor:
    return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=dropout)


@pytest.mark.parametrize(("dropout", "draws"), [(0.0, 0), (0.5, 1)])
def test_attention_draws_only_with_dropout(dropout: float, draws: int) -> None:
    """torch marks attention as drawing whether it does or not."""
    block = Lambda(lambda out, x: out + 0 * attend(x.reshape(4, 8, 8), dropout).flatten(0, 1))
    before = torch.get_rng_state()
    cost = forward_cost(block, torch.ones(32, 8))
    assert torch.equal(torch.get_rng_state(), before) == (draws == 0)
    assert (cost.num_random_draws > 0) == (draws > 0)


def in_sequences(wrong: Wrong) -> Wrong:
    """Apply `wrong` to inputs of three dimensions only."""
    return lambda out, x: wrong(out, x) if x.dim() == 3 else out


@pytest.mark.parametrize("later_sees_earlier", [True, False])
def test_a_block_for_features_treats_tokens_alone(later_sees_earlier: bool) -> None:
    shift = 1 if later_sees_earlier else -1
    wrong = in_sequences(lambda out, x: out + x.roll(shift, dims=1))
    result = CHECKS["rows_independent"](make_specimen(Lambda(wrong), SIGNATURE))
    assert not result.passed


def test_a_block_that_needs_several_positions_is_caught() -> None:
    wrong: Wrong = in_sequences(lambda out, x: out[:, :-1])
    result = CHECKS["keeps_shape"](make_specimen(Lambda(wrong), SIGNATURE))
    assert result.detail == "(4, 8, 8) torch.float32 became (4, 7, 8) torch.float32"
    assert not result.passed


TOKENS = SIGNATURE.model_copy(update={"kind": SiteKind.CAUSAL_SEQUENCE})


MIXING: list[tuple[Wrong, bool]] = [
    (lambda out, x: out + x.cumsum(1), True),
    (lambda out, x: out + x.mean(1, keepdim=True), False),
    (lambda out, x: out + x.roll(-1, dims=1), False),
    (lambda out, x: out + x[:, -1:] * 1e-3, False),
]
"""Ways to mix tokens, and whether they only look back."""


@pytest.mark.parametrize(("wrong", "passes"), MIXING)
def test_a_block_that_looks_ahead_is_caught_where_it_must_not(wrong: Wrong, passes: bool) -> None:
    block = Lambda(wrong)
    assert CHECKS["causal"](make_specimen(block, TOKENS)).passed is passes
    both_ways = TOKENS.model_copy(update={"kind": SiteKind.SEQUENCE})
    result = CHECKS["causal"](make_specimen(block, both_ways))
    assert (result.passed, result.detail) == (True, "not asked of a block for sequence")


@pytest.mark.parametrize("kind", SiteKind)
def test_inputs_of_every_kind_are_about_as_many_positions(kind: SiteKind) -> None:
    signature = SIGNATURE.model_copy(update={"kind": kind})
    block = nn.Identity()
    x = make_specimen(block, signature).x
    assert x.dim() == kind.num_dims
    assert x.shape[1 if kind.is_channels else -1] == 8
    assert x.numel() // 8 in range(32, 513)


def test_a_block_that_shrinks_its_input_is_caught() -> None:
    result = CHECKS["keeps_shape"](make_specimen(Lambda(lambda out, x: out[:, :4]), SIGNATURE))
    assert result.detail == "(32, 8) torch.float32 became (32, 4) torch.float32"
    assert not result.passed


@pytest.mark.parametrize(
    ("value", "passes"), [(0.0, True), (1.0, True), (1.1, False), (math.nan, False)]
)
def test_a_value_passes_up_to_its_limit_and_nan_never_does(value: float, passes: bool) -> None:
    assert within("name", value, 1.0, "").passed is passes


def test_the_specimen_leaves_the_block_as_it_was_forged() -> None:
    block = Lambda(lambda out, x: out)
    specimen = make_specimen(block, SIGNATURE)
    for check in CHECKS.values():
        check(specimen)
    assert all(parameter.abs().max() == 0 for parameter in block.parameters())
    assert all(parameter.grad is None for parameter in block.parameters())
    assert all(parameter.abs().max() > 0 for parameter in specimen.woken.parameters())


def test_operations_and_bytes_are_counted_exactly() -> None:
    block = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    cost = forward_cost(block, torch.ones(4, 8))
    assert cost.flops == 2 * 4 * 8 * 32 + 2 * 4 * 32 * 8
    # At most two of (4, 32), (4, 32), (4, 8) float32 values are alive together.
    assert cost.peak_bytes == 2 * 4 * 32 * 4
    assert cost.num_random_draws == 0
    assert state_bytes(block) == 4 * (8 * 32 + 32 + 32 * 8 + 8)


def test_convolutions_are_counted_too() -> None:
    cost = forward_cost(nn.Conv2d(4, 6, 3, padding=1), torch.ones(2, 4, 8, 8))
    assert cost.flops == 2 * 2 * 8 * 8 * 4 * 6 * 9


def test_the_latency_is_a_positive_time() -> None:
    assert 0 < median_latency_us(nn.Linear(8, 8), torch.ones(4, 8)) < 1e6


def test_measuring_puts_no_hook_on_the_modules_of_others() -> None:
    """torch's own FLOP counter hooks every module of the process while it counts."""
    hooks = vars(nn.modules.module)["_global_forward_hooks"]
    seen: list[int] = []

    def watch(out: Tensor, x: Tensor) -> Tensor:
        seen.append(len(hooks))
        return out

    results(watch)
    assert set(seen) == {0}
