"""How long the stages of a seed's life last: the policy behind its `is_ready_for_transition`.

Given to `wrap`; read by the seeds. Lengths are advice to the controller, not law: the lifecycle
table alone decides what a command may do.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class StageLengths:
    """Lengths of the stages; zero means ready at once. Defaults: about one epoch of a small task.

    Raises:
        ValueError: for a negative length.

    """

    training_steps: int = 20
    """The seed's own learning steps in TRAINING."""

    ramp_steps: int = 20
    """Optimizer steps over which alpha rises from 0 to 1 in GRAFTING; 0: all of it at once."""

    settle_steps: int = 20
    """Optimizer steps in STABILIZATION, for running statistics to settle."""

    fine_tuning_steps: int = 20
    """Optimizer steps in FINE_TUNING."""

    embargo_epochs: int = 5
    """Epochs that a site rests after its seed was culled or cancelled."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value: object = getattr(self, field.name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{field.name}={value!r}; expected an integer of at least 0")
