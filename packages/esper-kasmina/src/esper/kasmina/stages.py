"""How long the stages of a seed's life last, and how alpha rises: the policy behind its readiness.

Given to `wrap`; read by the seeds. Lengths are advice to the controller, not law: the lifecycle
table alone decides what a command may do.
"""

import math
from dataclasses import dataclass
from typing import Literal

type RampShape = Literal["linear", "cosine", "sigmoid"]

_SHAPES = ("linear", "cosine", "sigmoid")

SIGMOID_STEEPNESS = 10.0
"""The logistic curve is read from -5 to 5, where it is within 0.7 % of its ends."""


@dataclass(frozen=True, kw_only=True)
class StageLengths:
    """Lengths of the stages; zero means ready at once. Defaults: about one epoch of a small task.

    Raises:
        ValueError: for a negative length or an unknown shape.

    """

    training_steps: int = 0
    """The seed's own learning steps in TRAINING. None by default: what a block learns beside the host is less
    than what it learns within, and the steps are lost (docs/experiments/0006)."""

    ramp_steps: int = 20
    """Optimizer steps over which alpha rises from 0 to 1 in GRAFTING; 0: all of it at once."""

    ramp_epochs: int = 0
    """If not 0, alpha rises once per epoch over so many epochs, and `ramp_steps` is not used."""

    ramp_shape: RampShape = "linear"
    """How alpha rises: evenly, or slowly at both ends."""

    settle_steps: int = 20
    """Optimizer steps with all of the kernel, for running statistics to settle: those of STABILIZATION and
    those of GRAFTING after its ramp."""

    fine_tuning_steps: int = 20
    """Optimizer steps in FINE_TUNING."""

    embargo_epochs: int = 5
    """Epochs that a site rests after its seed was culled or cancelled."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "ramp_shape":
                if value not in _SHAPES:
                    raise ValueError(f"ramp_shape={value!r}; expected one of {', '.join(_SHAPES)}")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name}={value!r}; expected an integer of at least 0")

    def alpha(self, *, steps: int, epochs: int) -> float:
        """Return alpha after so many steps and epochs in GRAFTING: 0 at first, 1 when complete."""
        done, length = (epochs, self.ramp_epochs) if self.ramp_epochs else (steps, self.ramp_steps)
        if done >= length:
            return 1.0
        return _shaped(done / length, self.ramp_shape)


def _shaped(progress: float, shape: RampShape) -> float:
    """Bend `progress` in [0, 1) to the shape; every shape starts at exactly 0."""
    if shape == "cosine":
        return (1 - math.cos(math.pi * progress)) / 2
    if shape == "sigmoid":
        low = _logistic(-SIGMOID_STEEPNESS / 2)
        high = _logistic(SIGMOID_STEEPNESS / 2)
        return (_logistic(SIGMOID_STEEPNESS * (progress - 0.5)) - low) / (high - low)
    return progress


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
