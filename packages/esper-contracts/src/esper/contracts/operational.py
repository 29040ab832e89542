"""What happens during a run: health, commands, transitions, decisions, outcomes.

Kasmina emits `HealthSignal` and `SeedEvent`; Tamiyo emits `AdaptationSignal`, `KasminaCommand`,
`FieldReport` and, once per decision point, a `SystemStatePacket` that carries them all.
"""

from typing import Self

from pydantic import Field, model_validator

from esper.contracts.base import Contract, SeedId, Sha256, UtcDatetime, new_id, utc_now
from esper.contracts.blueprints import BlueprintIR
from esper.contracts.enums import Action, SeedState
from esper.contracts.kernels import KernelSignature

DEEPEST_PATH = 3
"""Layers of hidden units in the deepest built-in designs of paths."""


class Site(Contract):
    """A place in the host where seeds can live."""

    layer_id: int = Field(ge=0)
    """Position among the host's sites, input side first."""
    name: str
    """Qualified name of the layer in the host, as in `named_modules()`."""
    module_type: str
    signature: KernelSignature
    """What each seed's kernel is built for: `features` is the width of one chunk."""
    num_seeds: int = Field(default=1, ge=1)
    """Into how many equal chunks the layer's features are split, one seed each."""
    depth: int = Field(default=1, ge=1)
    """How many blocks each chunk can carry in a row. Seed `slot * num_seeds + chunk` acts before those of
    lower slots: what grows later at a site comes nearer to the input than what grew there earlier."""
    widens: str | None = None
    """For a place of new units: the layer that they are beside, which alone feeds the layer `name`. Their
    blocks read what the layer `widens` is given, and add to what the layer `name` gives."""
    spans: int = Field(default=1, ge=1, exclude_if=lambda spans: spans == 1)
    """For a place of new units: how many layers in a row become wider together, from `widens` to the one
    before `name`. With more than one the block is a path of its own past all of them."""
    reads_all_positions: bool = Field(default=False, exclude_if=lambda across: not across)
    """For a place of new units beside a convolution that add to a linear layer: they read what the
    convolution is given at all its positions at once."""
    cost: float = Field(default=1.0, gt=0, allow_inf_nan=False, exclude_if=lambda cost: cost == 1.0)
    """What a parameter of a block here costs next to one of the host's: for how many rows of features
    (samples, tokens, positions of an image) it is used, divided by that of the host's parameters on average;
    for new units, at the layer that they are beside or, if they read all positions, at the one that they
    add to. 1 where no example of the inputs was given."""

    @property
    def label(self) -> str:
        """What people read: `fc2`, `fc1 wider, into fc2`, or `path past 3 layers from fc1, into fc4`."""
        if self.widens is None:
            return self.name
        if self.spans == 1:
            return f"{self.widens} wider, into {self.name}"
        return f"path past {self.spans} layers from {self.widens}, into {self.name}"

    def suits(self, ir: BlueprintIR) -> bool:
        """Tell whether blocks of a design belong here; beside n layers, those with n layers of hidden units.

        `DEEPEST_PATH` of them stand for any more.
        """
        if not ir.fits(self.signature):
            return False
        if self.widens is None:
            return True
        return max(1, min(ir.num_hidden, DEEPEST_PATH)) == min(self.spans, DEEPEST_PATH)

    @property
    def num_places(self) -> int:
        """How many seeds there are at this site."""
        return self.num_seeds * self.depth


class HealthSignal(Contract):
    """Health of one seed's site, from sampled activations of one epoch."""

    layer_id: int = Field(ge=0)
    seed_id: int = Field(ge=0)
    """Index of the seed within its layer: the second half of the seed's id."""
    chunk_id: int = Field(ge=0)
    epoch: int = Field(ge=0)
    activation_variance: float
    """Mean over features of the variance over rows, in squared units of the activation. Not finite if an
    activation was not."""
    dead_neuron_ratio: float = Field(ge=0.0, le=1.0)
    """Share of features that do not vary over the sampled rows."""
    avg_correlation: float = Field(ge=-1.0, le=1.0)
    """Mean absolute Pearson correlation over pairs of features that do vary; 0 without a pair. Of wide
    sites 256 features, evenly spread, are read."""
    gradient_norm: float | None = None
    """Root mean square over batch elements of the norm of the loss's gradient at all features of an
    element, times the number of elements, so that it does not depend on the batch's size where the loss
    is a mean over elements. In units of the loss per unit of activation; None when no gradient was
    sampled."""
    expressivity_gap: float | None = None
    """The part of `gradient_norm` squared that no change of the layer's own weights can follow: the mean
    squared norm of what least squares on the layer's inputs leaves of the gradient (Verbockhaven et al.
    2024, "Growing Tiny Networks"; Evci et al. 2022, "GradMax"). Divided by `gradient_norm` squared it is a
    share, near 1 once the layer's weights are trained, or slightly above by chance. None where the
    layer's inputs are not known, and until there are twice as many rows as inputs; rows of earlier epochs
    are included as far as that needs them."""
    expressivity_gain: float | None = None
    """At a place of new units (`Site.widens`): how much of the gap linear functions of what those units read
    can follow, less what chance would explain; 0 or below where they promise nothing. None elsewhere, and as
    long as there are too few rows."""
    num_rows: int = Field(default=0, ge=0)
    """Sampled rows that the numbers were computed from; with 0 the others say nothing."""
    batch_samples: int = Field(default=0, ge=0, exclude_if=lambda number: not number)
    """Samples of the last batch that was looked at: its elements, or their tokens where each only looks
    back. 0 where nothing is known."""
    is_ready_for_transition: bool = False
    """The seed's own signal that its current stage is complete."""


class SeedStatus(Contract):
    """One seed as it stands."""

    seed_id: SeedId
    site: str
    state: SeedState
    alpha: float = Field(ge=0.0, le=1.0)
    kernel_id: Sha256 | None = None
    blueprint_name: str | None = None
    is_ready_for_transition: bool = False
    epochs_in_state: int = Field(default=0, ge=0)
    failure: str | None = None
    """Why the seed cannot go on, for example a non-finite loss of its own; None when healthy."""


class KasminaCommand(Contract):
    """An order to one seed: go to `target`. The same `command_id` twice is executed once."""

    command_id: str = Field(default_factory=new_id, min_length=1)
    seed_id: SeedId
    target: SeedState
    kernel_id: Sha256 | None = None
    """The kernel to germinate with; given exactly when `target` is GERMINATED."""
    copy_of: SeedId | None = Field(default=None, exclude_if=lambda seed_id: seed_id is None)
    """At LOADING: the block is born with the weights that this seed's block of the same kernel has now.
    Left out of JSON where it is not."""
    epoch: int = Field(ge=0)
    reason: str = Field(min_length=1)
    issued_by: str = "tamiyo"
    issued_at: UtcDatetime = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _check_kernel(self) -> Self:
        if (self.kernel_id is not None) != (self.target is SeedState.GERMINATED):
            raise ValueError("kernel_id is given exactly when target is GERMINATED")
        if self.copy_of is not None and self.target is not SeedState.LOADING:
            raise ValueError("copy_of is given only when target is LOADING")
        return self


class SeedEvent(Contract):
    """One transition that happened."""

    seed_id: SeedId
    site: str
    from_state: SeedState
    to_state: SeedState
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    """Optimizer steps since the bed was attached."""
    command_id: str
    kernel_id: Sha256 | None = None
    reason: str
    at: UtcDatetime = Field(default_factory=utc_now)


class Candidate(Contract):
    """One place and block that a decision considered."""

    seed_id: SeedId
    site: str
    kernel_id: Sha256
    blueprint_name: str
    num_parameters: int = Field(ge=0)
    copy_of: SeedId | None = Field(default=None, exclude_if=lambda seed_id: seed_id is None)
    """The seed whose block it would be a copy of, as trained by then. Left out of JSON where there is
    none."""
    score: float
    """Higher is better; comparable within one decision only."""
    numbers: dict[str, float] = Field(default_factory=dict)
    """What the score was computed from."""


class AdaptationSignal(Contract):
    """One decision of the controller, with everything it was based on."""

    decision_id: str = Field(default_factory=new_id)
    epoch: int = Field(ge=0)
    policy: str
    action: Action
    seed_id: SeedId | None = None
    reason: str = Field(min_length=1)
    numbers: dict[str, float] = Field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    command_ids: tuple[str, ...] = ()
    at: UtcDatetime = Field(default_factory=utc_now)


class FieldReport(Contract):
    """What one adaptation did to the real metrics."""

    report_id: str = Field(default_factory=new_id)
    run_id: str
    seed_id: SeedId
    site: str
    kernel_id: Sha256
    blueprint_id: Sha256
    blueprint_name: str
    outcome: SeedState
    """FOSSILIZED, CULLED, CANCELLED or ROLLED_BACK."""
    reason: str
    epoch_started: int = Field(ge=0)
    epoch_ended: int = Field(ge=0)
    parameters_added: int = Field(ge=0)
    """0 when nothing stayed."""
    loss_before: float | None = None
    """Validation loss at the last epoch before the graft."""
    loss_with: float | None = None
    loss_without: float | None = None
    """Validation loss with and without the kernel on the same weights; batch norms' statistics taken anew."""
    accuracy_with: float | None = Field(default=None, ge=0.0, le=1.0)
    accuracy_without: float | None = Field(default=None, ge=0.0, le=1.0)
    at: UtcDatetime = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _check_outcome(self) -> Self:
        final = (
            SeedState.FOSSILIZED,
            SeedState.CULLED,
            SeedState.CANCELLED,
            SeedState.ROLLED_BACK,
        )
        if self.outcome not in final:
            raise ValueError(f"outcome {self.outcome}; expected one of {', '.join(final)}")
        return self


class SystemStatePacket(Contract):
    """The whole system at one decision point."""

    run_id: str
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    train_loss: float | None = None
    val_loss: float
    val_accuracy: float | None = Field(default=None, ge=0.0, le=1.0)
    learning_rate: float = Field(ge=0.0)
    num_parameters: int = Field(ge=0)
    """Trainable parameters that are part of the model now."""
    seeds: tuple[SeedStatus, ...] = ()
    decisions: tuple[AdaptationSignal, ...] = ()
    events: tuple[SeedEvent, ...] = ()
    at: UtcDatetime = Field(default_factory=utc_now)
