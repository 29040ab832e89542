"""Marks: one moment of a whole run, to which everything can go back, and what a checkpoint writes.

A `Mark` holds the world as a `Snapshot`, and beside it what the bed knows: every seed with its own
learning, which blocks are in the host, and the snapshot of a graft that still awaits its verdict.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import nn

from esper.contracts import HostError, SeedState
from esper.kasmina import modulestate
from esper.kasmina.graft import Graft, SiteHook
from esper.kasmina.kernels import Block
from esper.kasmina.modulestate import State, copied
from esper.kasmina.saving import in_order
from esper.kasmina.seed import GRAFTED, Seed
from esper.kasmina.undo import Snapshot, World

type SeedId = tuple[int, int]

HAS_BLOCK = GRAFTED | {SeedState.LOADING, SeedState.TRAINING}
"""States in which a seed holds a block."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One moment of a run; made by `Bed.mark`, gone back to by `Bed.roll_back`, any number of times."""

    step: int
    """Steps of the optimizer that the bed had counted."""
    snapshot: Snapshot
    pending: Snapshot | None
    """What the host was before the graft that awaits its verdict."""
    seeds: Mapping[SeedId, State]
    order: Sequence[SeedId]
    """The seeds whose blocks are in the host, in the order in which their layers hold them."""
    sampling: State
    blocks: Mapping[SeedId, Block]
    grafts: Mapping[SeedId, Graft]

    @classmethod
    def take(
        cls,
        world: World,
        seeds: Collection[Seed],
        *,
        step: int,
        pending: Snapshot | None,
        sampling: State,
    ) -> Self:
        """Copy everything; changes nothing."""
        return cls(
            step=step,
            snapshot=Snapshot.take(world),
            pending=pending,
            seeds={seed.seed_id: _capture(seed) for seed in seeds},
            order=[seed.seed_id for seed in in_order(seeds)],
            sampling=sampling,
            blocks={seed.seed_id: seed.block for seed in seeds if seed.block is not None},
            grafts={seed.seed_id: seed.graft for seed in seeds if seed.graft is not None},
        )

    def check(self, seeds: Collection[Seed]) -> None:
        """Pass silently if it is about these seeds.

        Raises:
            HostError: if it is about others.

        """
        ids = {seed.seed_id for seed in seeds}
        if ids != set(self.seeds):
            odd = sorted(ids ^ set(self.seeds))
            raise HostError(
                f"the run had {len(self.seeds)} seeds, this bed has {len(ids)}; seeds that only one of "
                f"them has: {odd[:8]}; wrap the same host in the same way"
            )

    def restructure(
        self, seeds: Collection[Seed], hook_of: Callable[[nn.Module], SiteHook]
    ) -> list[nn.Parameter]:
        """Take blocks out and put blocks in, until the host is built as it was.

        Returns the parameters that left it.
        """
        before = [p for seed in seeds if seed.graft is not None for p in seed.graft.parameters()]
        for seed in seeds:
            if self.grafts.get(seed.seed_id) is not seed.graft:
                seed.take_down()
        # A block comes back only with those that were there before it: their order stays theirs.
        by_id = {seed.seed_id: seed for seed in seeds}
        for seed_id in self.order:
            seed = by_id[seed_id]
            if seed.graft is None:
                seed.hook = hook_of(seed.layer)
                seed.put_up(self.grafts[seed_id])
        for seed in seeds:
            self._begin(seed, hook_of)
        kept = {id(p) for graft in self.grafts.values() for p in graft.parameters()}
        return [p for p in before if id(p) not in kept]

    def refill(self, seeds: Collection[Seed]) -> None:
        """Let every seed stand where it stood; the host was restored before."""
        for seed in seeds:
            _apply(seed, self.seeds[seed.seed_id])

    def _begin(self, seed: Seed, hook_of: Callable[[nn.Module], SiteHook]) -> None:
        saved = self.seeds[seed.seed_id]
        state = SeedState(saved["state"])
        seed.kernel_id, seed.blueprint_name = saved["kernel_id"], saved["blueprint_name"]
        seed.block = self.blocks.get(seed.seed_id)
        if state in HAS_BLOCK:
            seed.hook = hook_of(seed.layer)
        seed.enter(state)


def _capture(seed: Seed) -> State:
    is_beside = seed.block is not None and seed.graft is None
    return {
        "state": seed.state.value,
        "kernel_id": seed.kernel_id,
        "blueprint_name": seed.blueprint_name,
        "failure": seed.failure,
        "steps_in_state": seed.steps_in_state,
        "epochs_in_state": seed.epochs_in_state,
        "block": modulestate.capture(seed.block) if is_beside and seed.block is not None else None,
        "learner": None if seed.learner is None else copied(seed.learner.state_dict()),
        "sampler": None if seed.sampler is None else copied(seed.sampler.state_dict()),
    }


def _apply(seed: Seed, saved: State) -> None:
    seed.failure = saved["failure"]
    seed.steps_in_state = saved["steps_in_state"]
    seed.epochs_in_state = saved["epochs_in_state"]
    if saved["block"] is not None and seed.block is not None:
        modulestate.apply(seed.block, saved["block"])
    if saved["learner"] is not None and seed.learner is not None:
        seed.learner.load_state_dict(copied(saved["learner"]))
    seed.sampler = None if saved["sampler"] is None else seed.make_sampler()
    if seed.sampler is not None:
        seed.sampler.load_state_dict(copied(saved["sampler"]))
