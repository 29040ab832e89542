"""What the size of a block is worth: how large a model should be depends on the samples that it will yet see.

For the same operations a model of n times the parameters sees `1 / n` times as many samples. Trained from
scratch, models do best with some tens of samples for each parameter (Hoffmann et al. 2022, "Training
Compute-Optimal Large Language Models"); one that grows may become larger, since it has learned much while it
was small (docs/experiments/0006).
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

from esper.contracts import CompiledKernelArtifact

SAMPLES_PER_PARAMETER = 3.0
"""What is grown makes the model so large that each parameter sees so many samples in what is left."""

TOKENS_PER_SAMPLE = 8.0
"""Tokens that stand next to each other say much the same: so many count as one sample."""

UNKNOWN_AIM = 2.0
"""Where nobody can tell how many samples are to come, growth aims at three times the size."""

LEAST_AIM = 1.0
"""A model that should not even double is left as it is, unless a narrow layer shows that it is too small."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of what could be grown at one decision point."""

    began: int
    """Trainable parameters that the model had before anything grew."""
    grown: int
    """Those of the blocks that were kept."""
    samples_left: float | None
    _worths: dict[str, float] = field(default_factory=dict[str, float], init=False, repr=False)

    @cached_property
    def aim(self) -> float:
        """How large all that is grown should become, in parameters of the model as it began.

        Below 0 the model is too large already.
        """
        if self.samples_left is None:
            return UNKNOWN_AIM
        return math.sqrt(self.samples_left / SAMPLES_PER_PARAMETER / self.began) - 1

    def worth(self, kernel: CompiledKernelArtifact) -> float:
        """Return what a block adds to the worth of all that is grown: more is worth less and less.

        Being `s` times as large as the model began, that is worth `log(1 + s) - s / (1 + aim)`: most where
        `s` is the aim.
        """
        found = self._worths.get(kernel.kernel_id)
        if found is None:
            is_for_narrow = kernel.signature.inputs is not None and self.aim > 0
            aim = max(LEAST_AIM, self.aim) if is_for_narrow else self._aim_of_blocks
            more = kernel.num_parameters
            found = self._value(self.grown + more, aim) - self._value(self.grown, aim)
            self._worths[kernel.kernel_id] = found
        return found

    @cached_property
    def worth_so_far(self) -> float:
        """What all that was kept is worth."""
        return self._value(self.grown, self._aim_of_blocks)

    @property
    def _aim_of_blocks(self) -> float:
        return self.aim if self.aim >= LEAST_AIM else 0.0

    def _value(self, grown: int, aim: float) -> float:
        size = grown / self.began
        return math.log1p(size) - size / (1 + aim)
