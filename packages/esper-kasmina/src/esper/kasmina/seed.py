"""One seed: its state, what it does at each step of the optimizer, and when it is ready to move on.

The bed moves it from state to state on command; the hook at its site shows it the features.
"""

import torch
from torch import Tensor, nn

from esper.contracts import (
    CompiledKernelArtifact,
    HealthSignal,
    KernelRejectedError,
    SeedState,
    SeedStatus,
    Site,
)
from esper.kasmina import graft as grafts
from esper.kasmina.graft import Graft, SiteHook, Span, child_name
from esper.kasmina.health import Health, HealthSampler
from esper.kasmina.kernels import Block
from esper.kasmina.learning import Learner
from esper.kasmina.stages import StageLengths
from esper.kasmina.tap import Tap
from esper.kasmina.watching import unnoticed

FROZEN = frozenset({SeedState.STABILIZATION, SeedState.EVALUATING})
"""States in which the kernel does not learn; gradients still flow through it."""

BEFORE_VERDICT = frozenset({SeedState.GRAFTING, SeedState.FINE_TUNING}) | FROZEN
"""States in which the host may still have to be put back to where it was before the graft."""

GRAFTED = BEFORE_VERDICT | {SeedState.FOSSILIZED}
"""States in which the block is part of the model."""

COUNTS_STEPS = frozenset(
    {SeedState.TRAINING, SeedState.GRAFTING, SeedState.STABILIZATION, SeedState.FINE_TUNING}
)
"""States whose length is counted in steps of the optimizer."""


class Seed:
    """A seed at one site, or at one chunk of it; dormant until the bed says otherwise."""

    # Slots, because a host may carry thousands of dormant ones.
    __slots__ = (
        "beside",
        "block",
        "blueprint_name",
        "device",
        "epochs_in_state",
        "failure",
        "graft",
        "hook",
        "kernel_id",
        "layer",
        "learner",
        "sampler",
        "seed_id",
        "site",
        "span",
        "stages",
        "state",
        "steps_in_state",
        "tap",
    )

    def __init__(
        self,
        site: Site,
        seed_idx: int,
        layer: nn.Module,
        *,
        stages: StageLengths,
        device: torch.device,
        beside: nn.Module | None = None,
    ) -> None:
        self.seed_id: tuple[int, int] = (site.layer_id, seed_idx)
        self.site = site
        self.layer = layer
        self.beside = beside
        """The layer that becomes wider, if that is what its site is for; the block adds to `layer`."""
        self.span = Span(site, seed_idx)
        self.stages = stages
        self.device = device
        self.hook: SiteHook | None = None
        self.state = SeedState.DORMANT
        self.kernel_id: str | None = None
        self.blueprint_name: str | None = None
        self.block: Block | None = None
        self.graft: Graft | None = None
        self.failure: str | None = None
        self.steps_in_state = 0
        self.epochs_in_state = 0
        self.sampler: HealthSampler | None = None
        self.learner: Learner | None = None
        self.tap: Tap | None = None

    @property
    def child(self) -> str:
        """The name of its graft under the site's layer."""
        return child_name(self.seed_id[1], self.site)

    @property
    def alpha(self) -> float:
        """How much of the block's output is in the host's features, 0 to 1."""
        return 0.0 if self.graft is None else float(self.graft.alpha)

    @property
    def is_ready(self) -> bool:
        """Whether the current stage is complete; a seed that failed never is."""
        if self.failure is not None:
            return False
        stages = self.stages
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
            site=self.site.label,
            state=self.state,
            alpha=self.alpha,
            kernel_id=self.kernel_id,
            blueprint_name=self.blueprint_name,
            is_ready_for_transition=self.is_ready,
            epochs_in_state=self.epochs_in_state,
            failure=self.failure,
        )

    def look(self, h: Tensor, inputs: Tensor | None, x: Tensor | None) -> None:
        """Sample the site's features and the gradient that will come; changes nothing."""
        if self.sampler is None:
            self.sampler = self.make_sampler()
        sampler, span = self.sampler, self.span
        beside = x.detach() if x is not None and span.widens is not None else None
        sampler.observe(span.of(h.detach()), None if inputs is None else inputs.detach(), beside)
        if h.requires_grad:

            def complete(g: Tensor) -> None:
                with unnoticed(self.site.name):
                    sampler.observe_gradient(span.of(g.detach()))

            h.register_hook(complete)  # pyright: ignore[reportUnknownMemberType]

    def make_sampler(self) -> HealthSampler:
        """Return an empty sampler for its site."""
        return HealthSampler(
            self.site.signature.kind, self.layer, num_read=self.site.signature.inputs or 0
        )

    def after_step(self) -> None:
        """Advance by one step of the host's optimizer."""
        if self.learner is not None:
            # Only steps that had features and a gradient to learn from count.
            self.learner.step()
            if self.tap is not None:
                self.tap.clear()
            self.steps_in_state = self.learner.num_steps
            self.failure = self.learner.failure
            return
        self.steps_in_state += 1
        if self.state is SeedState.GRAFTING:
            self._blend()

    def end_epoch(self) -> None:
        """Advance by one epoch."""
        self.epochs_in_state += 1
        if self.state is SeedState.GRAFTING:
            self._blend()

    def health(self, epoch: int) -> HealthSignal:
        """Close the statistics sampled since the last time."""
        health = Health() if self.sampler is None else self.sampler.close()
        return HealthSignal(
            layer_id=self.site.layer_id,
            seed_id=self.seed_id[1],
            chunk_id=self.seed_id[1] % self.site.num_seeds,
            epoch=epoch,
            activation_variance=health.activation_variance,
            dead_neuron_ratio=health.dead_neuron_ratio,
            avg_correlation=health.avg_correlation,
            gradient_norm=health.gradient_norm,
            expressivity_gap=health.expressivity_gap,
            expressivity_gain=health.expressivity_gain,
            num_rows=health.num_rows,
            batch_samples=health.batch_samples,
            is_ready_for_transition=self.is_ready,
        )

    def enter(self, state: SeedState) -> None:
        """Start `state` from its first step, with the kernel learning or frozen as it asks for.

        The host settles as soon as all of the kernel is in, so that steps after the ramp count for
        STABILIZATION: where epochs are long, a verdict need not wait for one more of them.
        """
        is_settling = self.state is SeedState.GRAFTING and state is SeedState.STABILIZATION
        after_ramp = 0 if self.stages.ramp_epochs else self.steps_in_state - self.stages.ramp_steps
        self.state = state
        self.steps_in_state = max(0, after_ramp) if is_settling else 0
        self.epochs_in_state = 0
        self.stop_learning()
        if state is SeedState.TRAINING:
            self._start_learning()
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

    def load(self, block: Block, source: "Seed | None") -> None:
        """Hold `block`, with the weights that it came with or, as a copy, those of the block of `source`.

        Raises:
            KernelRejectedError: if `source` has no block of the same kernel.

        """
        if source is not None:
            if source.block is None or source.kernel_id != self.kernel_id:
                raise KernelRejectedError(
                    f"seed {self.seed_id} cannot begin as a copy of seed {source.seed_id}, which has "
                    f"{'no block' if source.block is None else 'a block of another kernel'}"
                )
            block.load_state_dict(source.block.state_dict())
        self.block = block

    def hang(self, block: Block) -> None:
        """Make `block` part of the host's layer, at alpha 0."""
        block.zero_grad(set_to_none=True)
        self.put_up(Graft(block, self.span, self.device))

    def put_up(self, graft: Graft) -> None:
        """Make `graft` and the block in it part of the host's layer, as they are."""
        assert self.hook is not None
        self.block, self.graft = graft.block, graft
        grafts.insert(self.layer, self.hook, self.child, graft)

    def take_down(self) -> None:
        """Take the block out of the host, if it is in; the seed still holds it."""
        if self.graft is not None:
            assert self.hook is not None
            grafts.remove(self.layer, self.hook, self.child, self.graft)
        self.graft = None

    def drop(self) -> None:
        """Take the block out of the host, if it is in, and forget it."""
        self.take_down()
        self.block = None

    def forget(self) -> None:
        """Be as new: no kernel, no failure."""
        self.kernel_id = None
        self.blueprint_name = None
        self.failure = None

    def resume_ramp(self, alpha: float) -> None:
        """Continue a ramp that stood at `alpha` when it was saved."""
        self.steps_in_state = next(
            (n for n in range(self.stages.ramp_steps) if self._ramp(steps=n) >= alpha),
            self.stages.ramp_steps,
        )
        if self.graft is not None:
            self.graft.alpha.fill_(alpha)

    def _blend(self) -> None:
        """Set alpha to where the current state, step and epoch want it."""
        if self.graft is not None:
            ramping = self.state is SeedState.GRAFTING
            self.graft.alpha.fill_(self._ramp(steps=self.steps_in_state) if ramping else 1.0)

    def _ramp(self, *, steps: int) -> float:
        return self.stages.alpha(steps=steps, epochs=self.epochs_in_state)

    def _start_learning(self) -> None:
        assert self.block is not None
        assert self.hook is not None
        assert self.kernel_id is not None
        # A stream of its own that is the same in every life of this seed.
        own_seed = int(self.kernel_id[:12], 16) + self.site.layer_id
        self.learner = Learner(self.block, own_seed)
        self.tap = Tap(self.learner, self.span)
        self.hook.taps = (*self.hook.taps, self.tap)
        self.hook.settle(self.layer)

    def stop_learning(self) -> None:
        """Let go of the site's features; what the block has learned stays in it."""
        if self.hook is not None and self.tap is not None:
            self.hook.taps = tuple(tap for tap in self.hook.taps if tap is not self.tap)
            self.hook.settle(self.layer)
        self.tap = self.learner = None
