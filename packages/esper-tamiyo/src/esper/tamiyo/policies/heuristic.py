"""The founding heuristic: when learning stalls, relieve the idlest site on the input side.

A score from the founding telemetry (how redundant and how dead the site's features are), the site's
position and the block's capacity.
"""

import math
from dataclasses import dataclass
from typing import override

from esper.contracts import CompiledKernelArtifact, SeedStatus
from esper.tamiyo.policies.growing import Growing, position
from esper.tamiyo.policies.policy import Observation


@dataclass(frozen=True, kw_only=True)
class Heuristic(Growing):
    """Grow where the founding telemetry points to."""

    name = "heuristic"

    position_weight: float = 1.0
    """Growth on the input side beats growth on the output side, whatever the telemetry says."""
    redundancy_weight: float = 0.3
    dead_weight: float = 0.2
    capacity_weight: float = 0.1

    @override
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return the weighted sum of position, redundancy, dead share and capacity."""
        health = observation.health_of(seed)
        numbers = {
            "position": position(observation, seed),
            "redundancy": health.avg_correlation if health is not None else 0.0,
            "dead": health.dead_neuron_ratio if health is not None else 0.0,
            "capacity": math.log10(1 + kernel.num_parameters),
        }
        score = (
            self.position_weight * numbers["position"]
            + self.redundancy_weight * numbers["redundancy"]
            + self.dead_weight * numbers["dead"]
            + self.capacity_weight * numbers["capacity"]
        )
        return score, numbers
