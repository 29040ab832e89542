"""The control arm: any place, any block, any time. A policy that does not beat it knows nothing."""

import random
from dataclasses import dataclass, field
from typing import override

from esper.contracts import CompiledKernelArtifact, SeedStatus
from esper.tamiyo.policies.growing import Growing
from esper.tamiyo.policies.policy import Observation
from esper.tamiyo.policies.timing import AtRandom, Timing


@dataclass(frozen=True, kw_only=True)
class Chance(Growing):
    """Grow a block drawn evenly from all that could be grown, at epochs drawn likewise.

    `seed` decides every draw, so equal observations give equal proposals.
    """

    name = "random"

    timing: Timing = field(default_factory=AtRandom)
    seed: int = 0

    @override
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return a number from 0 to 1 that only dice know the reason of."""
        what = f"{self.seed} {observation.epoch} {seed.seed_id} {kernel.kernel_id}"
        drawn = random.Random(what).random()  # noqa: S311 - no secret
        return drawn, {"drawn": drawn}
