"""One seed: its state, what it does at each step of the optimizer, and when it is ready to move on.

The bed moves it from state to state on command; the hook at its site shows it the features.
"""

from torch import Tensor, nn

from esper.contracts import (
    CompiledKernelArtifact,
    HealthSignal,
    SeedState,
    SeedStatus,
    Site,
)
from esper.kasmina import graft as grafts
from esper.kasmina.graft import Graft, SeedHook
from esper.kasmina.health import HealthSampler
from esper.kasmina.kernels import Block
from esper.kasmina.learning import Learner
from esper.kasmina.stages import StageLengths

FROZEN = frozenset({SeedState.STABILIZATION, SeedState.EVALUATING})
"""States in which the kernel does not learn; gradients still flow through it."""

BEFORE_VERDICT = frozenset({SeedState.GRAFTING, SeedState.FINE_TUNING}) | FROZEN
"""States in which the host may still have to be put back to where it was before the graft."""

GRAFTED = BEFORE_VERDICT | {SeedState.FOSSILIZED}
"""States in which the block is part of the model."""


class Seed:
    """The seed at one site; dormant until the bed says otherwise."""

    def __init__(
        self, site: Site, layer: nn.Module, stages: StageLengths, sample_every_steps: int
    ) -> None:
        self.seed_id: tuple[int, int] = (site.layer_id, 0)
        self.site = site
        self.layer = layer
        self.state = SeedState.DORMANT
        self.kernel_id: str | None = None
        self.blueprint_name: str | None = None
        self.block: Block | None = None
        self.graft: Graft | None = None
        self.failure: str | None = None
        self.steps_in_state = 0
        self.epochs_in_state = 0
        self.hook = SeedHook(self.watch)
        self._stages = stages
        self._sampler = HealthSampler(site.signature.kind, sample_every_steps)
        self._learner: Learner | None = None

    @property
    def alpha(self) -> float:
        """How much of the block's output is in the host's features, 0 to 1."""
        return 0.0 if self.graft is None else float(self.graft.alpha)

    @property
    def is_ready(self) -> bool:
        """Whether the current stage is complete; a seed that failed never is."""
        if self.failure is not None:
            return False
        stages = self._stages
        match self.state:
            case SeedState.GERMINATED | SeedState.LOADING | SeedState.EVALUATING:
                return True
            case SeedState.TRAINING:
                return self.steps_in_state >= stages.training_steps
            case SeedState.GRAFTING:
                return self.alpha >= 1.0
            case SeedState.STABILIZATION:
                return self.steps_in_state >= stages.settle_steps
            case SeedState.FINE_TUNING:
                return self.steps_in_state >= stages.fine_tuning_steps
            case SeedState.CULLED | SeedState.CANCELLED:
                return self.epochs_in_state >= stages.embargo_epochs
            case _:
                return False

    def status(self) -> SeedStatus:
        """Return the seed as it stands."""
        return SeedStatus(
            seed_id=self.seed_id,
            site=self.site.name,
            state=self.state,
            alpha=self.alpha,
            kernel_id=self.kernel_id,
            blueprint_name=self.blueprint_name,
            is_ready_for_transition=self.is_ready,
            epochs_in_state=self.epochs_in_state,
            failure=self.failure,
        )

    def watch(self, output: Tensor) -> None:
        """Look at the site's features on a training forward; changes nothing."""
        self._sampler.observe(output)
        if self._learner is not None:
            self._learner.capture(output)

    def after_step(self) -> None:
        """Advance by one step of the host's optimizer."""
        if self._learner is not None:
            # Only steps that had features and a gradient to learn from count.
            self._learner.step()
            self.steps_in_state = self._learner.num_steps
            self.failure = self._learner.failure
            return
        self.steps_in_state += 1
        if self.state is SeedState.GRAFTING:
            self._blend()

    def end_epoch(self, epoch: int) -> HealthSignal:
        """Close the epoch's statistics."""
        health = self._sampler.close()
        self.epochs_in_state += 1
        return HealthSignal(
            layer_id=self.site.layer_id,
            seed_id=self.seed_id[1],
            chunk_id=0,
            epoch=epoch,
            activation_variance=health.activation_variance,
            dead_neuron_ratio=health.dead_neuron_ratio,
            avg_correlation=health.avg_correlation,
            is_ready_for_transition=self.is_ready,
        )

    def enter(self, state: SeedState) -> None:
        """Start `state` from its first step, with the kernel learning or frozen as it asks for."""
        self.state = state
        self.steps_in_state = 0
        self.epochs_in_state = 0
        training = state is SeedState.TRAINING
        self._learner = Learner(self.block) if training and self.block is not None else None
        if state not in GRAFTED:
            return
        self._blend()
        if self.block is not None:
            self.block.requires_grad_(state not in FROZEN)
            if state in FROZEN:
                # Without a gradient no optimizer moves them, weight decay and momentum included.
                self.block.zero_grad(set_to_none=True)

    def germinate(self, kernel: CompiledKernelArtifact) -> None:
        """Choose `kernel`."""
        self.kernel_id = kernel.kernel_id
        self.blueprint_name = kernel.blueprint_name

    def hang(self, block: Block) -> None:
        """Make `block` part of the host's layer, at alpha 0."""
        self.block = block
        block.zero_grad(set_to_none=True)
        self.graft = Graft(block, self.layer.get_parameter("weight").device)
        grafts.insert(self.layer, self.hook, self.graft)

    def drop(self) -> None:
        """Take the block out of the host, if it is in, and forget it."""
        if self.graft is not None:
            grafts.remove(self.layer, self.hook)
        self.graft = None
        self.block = None

    def forget(self) -> None:
        """Be as new: no kernel, no failure."""
        self.kernel_id = None
        self.blueprint_name = None
        self.failure = None

    def resume_ramp(self, alpha: float) -> None:
        """Continue a ramp that stood at `alpha` when it was saved."""
        self.steps_in_state = round(alpha * self._stages.ramp_steps)
        if self.graft is not None:
            self.graft.alpha.fill_(alpha)

    def _blend(self) -> None:
        """Set alpha to where the current state and step want it."""
        ramp_steps = self._stages.ramp_steps
        ramping = self.state is SeedState.GRAFTING and self.steps_in_state < ramp_steps
        if self.graft is not None:
            self.graft.alpha.fill_(self.steps_in_state / ramp_steps if ramping else 1.0)
