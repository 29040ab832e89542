"""What the size of a block is worth: how large a model should be depends on the samples that it will yet see.

For the same operations a model of n times the cost sees `1 / n` times as many samples. Trained from
scratch, models do best with some tens of samples for each parameter (Hoffmann et al. 2022, "Training
Compute-Optimal Large Language Models"); one that grows may become larger, since it has learned much while it
was small (docs/experiments/0006).
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

from esper.contracts import CompiledKernelArtifact, Site

SAMPLES_PER_PARAMETER = 3.0
"""What is grown makes the model so large that each parameter sees so many samples in what is left."""

TOKENS_PER_SAMPLE = 8.0
"""Tokens that stand next to each other say much the same: so many count as one sample."""

UNKNOWN_AIM = 2.0
"""Where nobody can tell how many samples are to come, growth aims at three times the size."""

LEAST_AIM = 1.0
"""A model that should not even double is left as it is, unless a narrow layer shows that it is too small."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of blocks, next to the model as it began."""

    parameters: float = 0.0
    """Trainable ones, in numbers of the model's."""
    operations: float = 0.0
    """Of one training step, in numbers of the model's; at least as many as parameters."""

    def __add__(self, other: "Size") -> "Size":
        """Return the size of both together."""
        return Size(
            parameters=self.parameters + other.parameters,
            operations=self.operations + other.operations,
        )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of what could be grown at one decision point."""

    began: int
    """Trainable parameters that the model had before anything grew."""
    grown: Size
    """That of the blocks that were kept."""
    samples_left: float | None
    _worths: dict[tuple[str, float], float] = field(
        default_factory=dict[tuple[str, float], float], init=False, repr=False
    )

    @cached_property
    def aim(self) -> float:
        """How large all that is grown should become, next to the model as it began, where costs are even.

        Below 0 the model is too large already.
        """
        if self.samples_left is None:
            return UNKNOWN_AIM
        return math.sqrt(self.samples_left / SAMPLES_PER_PARAMETER / self.began) - 1

    def size_of(self, kernel: CompiledKernelArtifact, site: Site) -> Size:
        """Return how large a block would be at a place.

        Where operations are cheap its parameters count instead: there must be samples for them too.
        """
        parameters = kernel.num_parameters / self.began
        return Size(parameters=parameters, operations=parameters * max(1.0, site.cost))

    def worth(self, kernel: CompiledKernelArtifact, site: Site) -> float:
        """Return what a block adds to the worth of all that is grown: more is worth less and less.

        With `s` more parameters for `c` more operations (both in numbers of the model as it began) that is
        worth `log(1 + s) - c / (1 + aim)`: where both are alike, most at the aim.
        """
        key = kernel.kernel_id, site.cost
        found = self._worths.get(key)
        if found is None:
            is_for_narrow = kernel.signature.inputs is not None and self.aim > 0
            aim = max(LEAST_AIM, self.aim) if is_for_narrow else self._aim_of_blocks
            with_it = self.grown + self.size_of(kernel, site)
            found = self._worths[key] = _value(with_it, aim) - _value(self.grown, aim)
        return found

    @cached_property
    def worth_so_far(self) -> float:
        """What all that was kept is worth."""
        return _value(self.grown, self._aim_of_blocks)

    @property
    def _aim_of_blocks(self) -> float:
        return self.aim if self.aim >= LEAST_AIM else 0.0


def _value(size: Size, aim: float) -> float:
    return math.log1p(size.parameters) - size.operations / (1 + aim)
