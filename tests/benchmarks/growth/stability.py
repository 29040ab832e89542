"""Does a run stay calm while it grows again and again? Twenty adaptations in one run, kept or undone.

    uv run --group rivals python tests/benchmarks/growth/stability.py --seeds 3 [--warm-up-steps N] [--never]

After a warm-up of its own, a host is grown at random places at every decision, four blocks deep, and each
block is judged as ever. Accuracy is measured after every step of a ramp and every tenth step otherwise.
Reported are the largest fall of accuracy below the best so far, relative to it; the falls that one of a
hundred measurements within ramps, and outside, is beyond (of maxima, more measurements would have larger
ones); how far the host's own weights turn, each tensor through the ramp of a block elsewhere (1 - cosine);
and whether undos restored all.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import argparse
import logging
from dataclasses import dataclass, field
from statistics import quantiles

import torch
from problems import PROBLEMS, Problem
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional
from training import measure

from esper.contracts import SeedState, SystemStatePacket
from esper.kasmina import wrap
from esper.tamiyo import AtRandom, Chance, Never, Tamiyo, warmup

ADAPTATIONS = 20
WARM_UP_STEPS = 1500
STEPS_PER_DECISION = 50
MOST_DECISIONS = 400
DECISIONS_WITHOUT = 110
"""Of a run in which nothing grows: about as many as twenty adaptations take."""
DEPTH = 4
UNDONE = (SeedState.CULLED, SeedState.ROLLED_BACK)
LEARNING_RATE = 2e-3
"""Constant, so that a host that never grows has falls, too."""


@dataclass(kw_only=True)
class Watch:
    """What happened so far."""

    best: float = 0.0
    falls_in_ramps: list[float] = field(default_factory=list[float])
    """Of accuracy below the best so far, as a share of it, while a block took over its part."""
    falls_outside: list[float] = field(default_factory=list[float])
    """The same at other times."""
    largest_turn: float = 0.0
    """1 - cosine of a tensor of the host before and after the ramp of a block at another layer."""
    kept: int = 0
    undone: int = 0
    undone_exactly: int = 0
    before: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The host's own weights as a block was grafted."""
    state_before: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """All parameters and buffers of the model, at the same moment."""

    def see(self, accuracy: float, *, in_ramp: bool = False) -> None:
        self.best = max(self.best, accuracy)
        falls = self.falls_in_ramps if in_ramp else self.falls_outside
        falls.append(1 - accuracy / self.best)

    @property
    def largest_fall(self) -> float:
        return max([*self.falls_in_ramps, *self.falls_outside])


def run(
    problem: Problem, seed: int, *, grows: bool, warm_up_steps: int, rate: float = LEARNING_RATE
) -> Watch:
    """Grow until there were enough adaptations."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, watch = problem.host(), Watch()
    generator = torch.Generator().manual_seed(seed)
    bed = wrap(model, example=problem.batch(generator)[0][:8], widen=True, depth=DEPTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    always = AtRandom(chance=1.0, seed=seed)
    policy = Chance(seed=seed, timing=always) if grows else Never()
    decisions = MOST_DECISIONS if grows else DECISIONS_WITHOUT

    def evaluate() -> float:
        return measure(model, problem, problem.validation).accuracy or 0.0

    def step() -> None:
        inputs, targets = problem.batch(generator)
        loss = problem.loss_of(model(inputs), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(WARM_UP_STEPS):
        step()
    watch.see(evaluate())
    with Tamiyo(
        bed,
        optimizer,
        policy=policy,
        evaluate=lambda: measure(model, problem, problem.validation),
        warm_up_steps=warm_up_steps,
    ) as tamiyo:
        for _ in track(range(decisions), description=f"seed {seed}", transient=True):
            for number in range(STEPS_PER_DECISION):
                step()
                is_ramping = any(s.state is SeedState.GRAFTING for s in bed.seeds())
                if is_ramping or number % 10 == 9:
                    watch.see(evaluate(), in_ramp=is_ramping)
            state, weights = _state(model), _own_weights(model)
            figures = measure(model, problem, problem.validation)
            packet = tamiyo.end_epoch(val_loss=figures.loss, val_accuracy=figures.accuracy)
            _note(watch, packet, state, weights, _state(model))
            watch.see(evaluate())
            if watch.kept + watch.undone >= ADAPTATIONS:
                break
    return watch


def _note(
    watch: Watch,
    packet: SystemStatePacket,
    state: dict[str, Tensor],
    weights: dict[str, Tensor],
    after: dict[str, Tensor],
) -> None:
    """Take note of what happened at a decision point; state and weights are from right before it."""
    for event in packet.events:
        if event.to_state is SeedState.GRAFTING:
            watch.state_before, watch.before = state, weights
        elif event.to_state is SeedState.STABILIZATION:
            near = event.site.rpartition(" into ")[2]
            turns = [
                _turn(old, weights[name])
                for name, old in watch.before.items()
                if not name.startswith(f"{near}.")
            ]
            watch.largest_turn = max([watch.largest_turn, *turns])
        elif event.to_state is SeedState.FOSSILIZED:
            watch.kept += 1
        elif event.to_state in UNDONE and watch.state_before:
            watch.undone += 1
            watch.undone_exactly += _has(after, watch.state_before)
            state = watch.state_before  # which is what the next graft finds


def _has(after: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    """Tell whether all of a state is there again, bit for bit; the next block may be there already."""
    return all(name in after and torch.equal(after[name], old) for name, old in before.items())


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of layers that are no blocks."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and "esper" not in name
    }


def _turn(old: Tensor, new: Tensor) -> float:
    return 1 - functional.cosine_similarity(old.flatten(), new.flatten(), dim=0).item()


def _most(falls: list[float]) -> str:
    """Return what 99 % of the falls stay within."""
    return f"{quantiles(falls, n=100, method='inclusive')[-1]:.1%}" if len(falls) > 1 else ""


def main() -> None:
    """Run all seeds, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=["digits", "mlp"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--warm-up-steps", type=int, default=warmup.WARM_UP_STEPS)
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="of learning")
    parser.add_argument("--never", action="store_true", help="grow nothing")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print(
        "| host | seed | kept | undone | exactly | largest fall | 99 % of ramps within "
        "| 99 % of other times within | largest turn |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.problems:
        problem = PROBLEMS[name]()
        for seed in range(arguments.seeds):
            watch = run(
                problem,
                seed,
                grows=not arguments.never,
                warm_up_steps=arguments.warm_up_steps,
                rate=arguments.rate,
            )
            print(
                f"| {problem.name} | {seed} | {watch.kept} | {watch.undone} | {watch.undone_exactly} "
                f"| {watch.largest_fall:.1%} | {_most(watch.falls_in_ramps)} | {_most(watch.falls_outside)} "
                f"| {watch.largest_turn:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
