"""How much a run may grow: limits that hold whatever a policy wants."""

from dataclasses import dataclass

from esper.contracts import (
    IN_FLIGHT,
    CompiledKernelArtifact,
    ConfigError,
    SeedState,
)
from esper.contracts.words import place
from esper.tamiyo.policies.policy import Observation

_PART_OF_THE_MODEL = IN_FLIGHT | {SeedState.FOSSILIZED}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits on growth; None is no limit.

    Raises:
        ConfigError: for a limit that makes no sense.

    """

    parameters: int | None = None
    """Trainable parameters that all blocks together may add."""
    flops: int | None = None
    """Operations that all blocks together may add to a forward pass, as the crucible counted them on its
    probe (multiply-add = 2)."""
    seconds: float | None = None
    """Nothing is grown once the run has lasted so long."""
    in_flight: int = 1
    """Seeds between germination and verdict."""

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not limit > 0:
                raise ConfigError(f"the budget's {name} is {limit}; expected more than 0, or None")

    def exhausted(self, observation: Observation) -> str | None:
        """Return why nothing at all can be grown now; None if something can."""
        waiting = [seed for seed in observation.seeds if seed.state in IN_FLIGHT]
        if len(waiting) >= self.in_flight:
            several = f"{self.in_flight} blocks" if self.in_flight > 1 else "one block"
            first = waiting[0]
            return f"{several} at a time: {place(first.site)} is {first.state.value}"
        if self.seconds is not None and observation.seconds >= self.seconds:
            return f"the budget of {self.seconds:.0f} s is used up"
        return None

    def refusal(self, observation: Observation, kernel: CompiledKernelArtifact) -> str | None:
        """Return why this kernel costs more than what is left; None if it does not."""
        for name, limit in (("parameters", self.parameters), ("flops", self.flops)):
            if limit is None:
                continue
            costs = {each.kernel_id: _cost(each, name) for each in observation.kernels}
            used = sum(
                costs.get(seed.kernel_id or "", 0)
                for seed in observation.seeds
                if seed.state in _PART_OF_THE_MODEL
            )
            if used + costs[kernel.kernel_id] > limit:
                return (
                    f"{kernel.blueprint_name} adds {costs[kernel.kernel_id]:,} {name}; "
                    f"{max(0, limit - used):,} of {limit:,} are left"
                )
        return None


def _cost(kernel: CompiledKernelArtifact, name: str) -> int:
    if name == "parameters":
        return kernel.num_parameters
    return 0 if kernel.report is None else kernel.report.flops
