"""What a kernel must do to be called valid: one function and one limit for each property.

The crucible applies every function in `CHECKS` to a `Specimen`. All inputs come from a generator of
their own with a fixed seed, so a verdict is the same each time; no global setting or shared random
stream is touched, because a training run may be going on in the same process.

Shapes: `B` batch (rows), `D` features or channels, `T` tokens; the others are positions.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from esper.contracts import CheckResult, KernelSignature, SiteKind
from esper.kasmina.kernels import DTYPES, Block, output_shape, probe_shape
from esper.urabrask.meters import ForwardCost, forward_cost

PROBE_SEED = 20240229
NUM_ROWS = 32
"""Of features; of samples with positions there are fewer."""
NUM_SAMPLES = 8
"""Up to 128 features; wider blocks get fewer, at least two, or judging one would take minutes."""
EXTENTS = {1: 16, 2: 8, 3: 4}
"""Tokens, or extent of every axis, by the number of axes: about as many positions for each kind."""

IDENTITY_LIMIT = 1e-6
"""Law 3 of the design: at birth a block changes the host's features by no more than this."""
PERTURBATION = 0.1
"""Standard deviation of what is added to the weights to wake a block whose last layer is zero."""
LARGE_INPUT = 1e3
LEARNING_STEPS = 40
LEARNING_RATE = 1e-2
"""Up to 32 features; wider blocks take it in inverse proportion, or they overshoot."""
LEARNING_LIMIT = 0.95
"""Loss after over loss before. Useful blocks get well below; one stuck at its birth stays at 1."""
ROW_LIMITS = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""Largest relative difference that rounding explains, by type."""


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A block under test, with everything that the checks share."""

    block: nn.Module
    """As it was forged."""
    woken: nn.Module
    """A copy with slightly perturbed weights, so that it does not compute zero."""
    signature: KernelSignature
    x: Tensor
    """Ordinary inputs: standard normal, `(B, D)`, `(B, T, D)` or `(B, D, …)`."""
    cost: ForwardCost
    """Of one forward pass of `block` on `x`."""


def make_specimen(block: nn.Module, signature: KernelSignature) -> Specimen:
    """Prepare `block` for the checks; the block itself is never changed."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    if extent := EXTENTS.get(signature.kind.num_dims - 2):
        num_samples = min(NUM_SAMPLES, max(2, 128 * NUM_SAMPLES // signature.features))
        shape = probe_shape(signature, batch=num_samples, extent=extent)
    else:
        shape = probe_shape(signature, batch=NUM_ROWS)
    x = torch.randn(shape, generator=generator).to(signature.device, DTYPES[signature.dtype])
    woken = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in woken.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=PERTURBATION)
    cost = forward_cost(block, x)
    return Specimen(block=block, woken=woken, signature=signature, x=x, cost=cost)


def within(name: str, value: float, limit: float, detail: str) -> CheckResult:
    """Return the result of a check that passes when `value <= limit`; NaN never does."""
    return CheckResult(name=name, passed=value <= limit, value=value, limit=limit, detail=detail)


def check_shape(specimen: Specimen) -> CheckResult:
    """Compare shape and type: a graft adds the output to the features at its site.

    Other inputs than the ordinary ones are a single row at a single position and, for features, rows
    of tokens.
    """
    inputs = [specimen.x, _smallest(specimen), *_as_tokens(specimen)]
    pairs = [(x, _run(specimen.block, x)) for x in inputs]
    unlike = [
        (x, y)
        for x, y in pairs
        if y.shape != output_shape(specimen.signature, x.shape) or x.dtype != y.dtype
    ]
    x, y = (unlike or pairs)[0]
    detail = f"{tuple(x.shape)} {x.dtype} became {tuple(y.shape)} {y.dtype}"
    return within("keeps_shape", len(unlike), 0, detail)


def check_identity(specimen: Specimen) -> CheckResult:
    """Bound the output right after loading: the host must compute what it computed before."""
    worst = _run(specimen.block, specimen.x).abs().max().item()
    return within("identity_at_birth", worst, IDENTITY_LIMIT, f"largest |f(h)| is {worst:.3g}")


def check_finite(specimen: Specimen) -> CheckResult:
    """Look for Inf and NaN, at birth and woken, on ordinary and on large inputs."""
    outputs = [
        _run(block, specimen.x * scale)
        for block in (specimen.block, specimen.woken)
        for scale in (1.0, LARGE_INPUT)
    ]
    bad = sum(int((~out.isfinite()).sum().item()) for out in outputs)
    total = sum(out.numel() for out in outputs)
    detail = f"{bad} of {total} outputs are not finite (inputs of scale 1 and {LARGE_INPUT:g})"
    return within("finite", bad, 0, detail)


def check_gradients(specimen: Specimen) -> CheckResult:
    """Require a gradient at every weight, and at the input for the layers before the site."""
    x = specimen.x.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(PROBE_SEED + 1)
    shape = output_shape(specimen.signature, x.shape)
    direction = torch.randn(shape, generator=generator).to(x)
    wanted = {"the input": x, **dict(specimen.woken.named_parameters())}
    loss = (specimen.woken(x) * direction).sum()
    # The stubs do not know that an unused weight's gradient is None.
    found = cast(
        "Sequence[Tensor | None]",
        torch.autograd.grad(loss, list(wanted.values()), allow_unused=True),
    )
    dead = [
        name
        for name, gradient in zip(wanted, found, strict=True)
        if gradient is None or not gradient.isfinite().all() or not gradient.any()
    ]
    detail = f"no usable gradient at: {', '.join(dead)}" if dead else "every weight and the input"
    return within("gradients_flow", len(dead), 0, detail)


def check_learning(specimen: Specimen) -> CheckResult:
    """Take a few Adam steps on a synthetic regression, a random mix of the features; the lowest loss counts.

    The deeper a block, the smaller its steps; it may rise again.
    """
    # Half-precision kernels train with float32 weights, as under mixed precision.
    dtype = torch.float64 if specimen.signature.dtype == "float64" else torch.float32
    learner, x = copy.deepcopy(specimen.block).to(dtype), specimen.x.to(dtype)
    target = _regression_target(x, specimen.signature)
    block = specimen.block
    depth = max(2, block.ir.num_hidden if isinstance(block, Block) else 0)
    rate = LEARNING_RATE * min(1.0, 32 / specimen.signature.features) * math.sqrt(2 / depth)
    optimizer = torch.optim.Adam(learner.parameters(), lr=rate)
    losses: list[float] = []
    for _ in range(LEARNING_STEPS + 1):
        loss = (learner(x) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    lowest = min(losses) if all(map(math.isfinite, losses)) else math.nan
    detail = f"loss {losses[0]:.4g} to {lowest:.4g} in {LEARNING_STEPS} Adam steps"
    ratio = lowest / losses[0]
    return within("learns", ratio, LEARNING_LIMIT, detail)


def check_rows(specimen: Specimen) -> CheckResult:
    """Change some rows and watch the others: no operator may let one row of a batch see another.

    A block for features runs at sequences too, where each token is a row.
    """
    moved = [_influence(specimen.woken, specimen.x, axis=0)]
    for tokens in _as_tokens(specimen):
        moved += [_influence(specimen.woken, x, axis=1) for x in (tokens, tokens.flip(1))]
    worst = max(moved)
    detail = f"changing half of the rows moves the others by {worst:.3g}, relative to the largest"
    return within("rows_independent", worst, ROW_LIMITS[specimen.signature.dtype], detail)


def check_causality(specimen: Specimen) -> CheckResult:
    """Change the later tokens and watch the earlier ones, at sites where those must not see them."""
    limit = ROW_LIMITS[specimen.signature.dtype]
    kind = specimen.signature.kind
    if kind is not SiteKind.CAUSAL_SEQUENCE:
        return within("causal", 0, limit, f"not asked of a block for {kind.value}")
    worst = _influence(specimen.woken, specimen.x, axis=1)
    detail = f"changing later tokens moves earlier ones by {worst:.3g}, relative to the largest"
    return within("causal", worst, limit, detail)


def check_randomness(specimen: Specimen) -> CheckResult:
    """Count random draws, which would disturb the host's own streams.

    Draws are counted where they happen. To compare the global random state instead would blame the
    kernel for what a training run in another thread draws meanwhile.
    """
    draws = specimen.cost.num_random_draws
    return within("no_random_draws", draws, 0, f"{draws} random operations in one forward pass")


CHECKS: dict[str, Callable[[Specimen], CheckResult]] = {
    "keeps_shape": check_shape,
    "identity_at_birth": check_identity,
    "finite": check_finite,
    "gradients_flow": check_gradients,
    "learns": check_learning,
    "rows_independent": check_rows,
    "causal": check_causality,
    "no_random_draws": check_randomness,
}
"""Every property by the name of its result."""


def _run(block: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return block(x)


def _smallest(specimen: Specimen) -> Tensor:
    """Return one row at one position of the inputs."""
    kind, x = specimen.signature.kind, specimen.x[:1]
    axes = range(2, x.dim()) if kind.is_channels else range(1, x.dim() - 1)
    for axis in axes:
        x = x.narrow(axis, 0, 1)
    return x


def _as_tokens(specimen: Specimen) -> list[Tensor]:
    """Return inputs for features also as sequences `(B, T, D)`; nothing for other kinds."""
    if specimen.signature.kind is not SiteKind.FEATURES:
        return []
    return [specimen.x.unflatten(0, (-1, 8))]


def _influence(block: nn.Module, x: Tensor, *, axis: int) -> float:
    """Return how far the first half of the output along `axis` moves when the second half of `x` does.

    Relative to the largest output of that half.
    """
    half = x.shape[axis] // 2
    other = x.roll(1, dims=axis) * 3
    other.narrow(axis, 0, half).copy_(x.narrow(axis, 0, half))
    before, after = (_run(block, each).narrow(axis, 0, half).double() for each in (x, other))
    return (before - after).abs().max().item() / max(before.abs().max().item(), 1e-30)


def _regression_target(x: Tensor, signature: KernelSignature) -> Tensor:
    """Return something that a useful block gets closer to, in the shape of its output for `x`.

    That is tanh of a fixed random mix of the features, for tokens together with the mean of those
    that they may see. With positions, the features themselves are to be halved as well, which a block
    that only scales them can do.
    """
    generator = torch.Generator().manual_seed(PROBE_SEED + 2)
    width, kind = signature.width_read, signature.kind
    mix = torch.randn(width, signature.features, generator=generator).to(x) / width**0.5  # (I, D)
    subscripts = "bd...,de->be..." if kind.is_channels else "b...d,de->b...e"
    target = torch.tanh(torch.einsum(subscripts, x + _context(x, kind), mix))
    return target if kind is SiteKind.FEATURES or signature.inputs is not None else target - x / 2


def _context(x: Tensor, kind: SiteKind) -> Tensor:
    """Return the mean of the tokens that each token may see, scaled to the variance of one token."""
    num_tokens = x.shape[1]
    if kind is SiteKind.SEQUENCE:
        return x.mean(dim=1, keepdim=True) * num_tokens**0.5
    if kind is SiteKind.CAUSAL_SEQUENCE:
        seen = torch.arange(1, num_tokens + 1, device=x.device, dtype=x.dtype)
        return x.cumsum(dim=1) / seen.sqrt().unsqueeze(-1)  # (B, T, D) over (T, 1)
    return torch.zeros_like(x)
