"""The bed: a host model with seeds in it, and the only door through which they are commanded.

`wrap` makes one from a host; Tamiyo attaches the optimizer, admits kernels, sends commands at decision
points and reads health at the end of each epoch. Implements the port `esper.contracts.SeedBed`.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    HealthSignal,
    HostError,
    IllegalTransitionError,
    KasminaCommand,
    KernelRejectedError,
    NotFoundError,
    SeedEvent,
    SeedState,
    SeedStatus,
    Site,
    check_transition,
    get_logger,
)
from esper.kasmina import saving
from esper.kasmina.admission import Admission
from esper.kasmina.graft import CHILD
from esper.kasmina.kernels import Block, count_parameters
from esper.kasmina.library import builtin_blueprints
from esper.kasmina.owners import Group, check_optimizer, check_scheduler, join, owner_index
from esper.kasmina.plan import Target, plan
from esper.kasmina.seed import BEFORE_VERDICT, FROZEN, GRAFTED, Seed
from esper.kasmina.stages import StageLengths
from esper.kasmina.undo import Snapshot

UNDONE = frozenset({SeedState.CULLED, SeedState.CANCELLED, SeedState.ROLLED_BACK})

NEEDS_OPTIMIZER = frozenset({SeedState.TRAINING, SeedState.GRAFTING})


class Bed:
    """A host with one dormant seed per site. Make it with `wrap`; belongs to the training thread."""

    def __init__(self, model: nn.Module, seeds: Sequence[Seed]) -> None:
        self._model = model
        self._seeds = {seed.seed_id: seed for seed in seeds}
        self._admission = Admission()
        self._executed: set[str] = set()
        self._optimizer: torch.optim.Optimizer | None = None
        self._scheduler: object | None = None
        self._handle: RemovableHandle | None = None
        self._snapshot: Snapshot | None = None
        self._added: Group | None = None
        self._steps = 0
        self._log = get_logger("kasmina")

    @property
    def model(self) -> nn.Module:
        """The host, the very object that was wrapped."""
        return self._model

    @property
    def sites(self) -> Sequence[Site]:
        """The places that carry seeds, input side first."""
        return tuple(seed.site for seed in self._seeds.values())

    @property
    def blueprints(self) -> Sequence[BlueprintIR]:
        """The built-in designs that fit at least one of the sites."""
        kinds = {site.signature.kind for site in self.sites}
        return tuple(ir for ir in builtin_blueprints() if ir.kind in kinds)

    @property
    def step(self) -> int:
        """Optimizer steps since the bed was attached."""
        return self._steps

    def seeds(self) -> Sequence[SeedStatus]:
        """Return every seed as it stands, in order of its id."""
        return tuple(seed.status() for seed in self._seeds.values())

    def seed(self, seed_id: tuple[int, int]) -> Seed:
        """Return one seed.

        Raises:
            NotFoundError: if there is none of that id.

        """
        found = self._seeds.get(seed_id)
        if found is None:
            known = ", ".join(str(key) for key in self._seeds)
            raise NotFoundError(f"there is no seed {seed_id}; there are: {known}")
        return found

    def attach(self, optimizer: Any, scheduler: Any | None = None) -> None:
        """Follow `optimizer`: its steps drive the seeds, and grafted parameters join it.

        `scheduler` is restored with it on an undo. Blocks that are already part of the model and
        that the optimizer does not own yet join at once.

        Raises:
            HostError: if it cannot follow this host, or a seed awaits its verdict under another one.

        """
        checked = check_optimizer(optimizer, self._model)
        if scheduler is not None:
            check_scheduler(scheduler)
        if self._snapshot is not None and self._snapshot.optimizer is not checked:
            waiting = next(s for s in self._seeds.values() if s.state in BEFORE_VERDICT)
            raise HostError(
                f"seed {waiting.seed_id} is in {waiting.state} and could not be undone under another "
                "optimizer; fossilize or cull it first"
            )
        self.detach()
        self._optimizer, self._scheduler = checked, scheduler
        self._handle = checked.register_step_post_hook(self._after_step)
        owned = {id(p) for group in checked.param_groups for p in group["params"]}
        for seed in self._seeds.values():
            if seed.graft is not None and not any(id(p) in owned for p in seed.graft.parameters()):
                self._join(seed)

    def detach(self) -> None:
        """Stop following the optimizer; seeds stop advancing. Idempotent."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._optimizer = self._scheduler = None

    def trust(self, public_key: bytes) -> None:
        """Accept endorsements made with this raw Ed25519 public key (32 bytes)."""
        self._admission.trust(public_key)

    def admit(self, kernel: CompiledKernelArtifact, blob: bytes) -> None:
        """Verify a kernel (status, signature, hash, content) and keep it at hand for germination.

        Raises:
            KernelRejectedError: naming the check that failed.

        """
        self._admission.admit(kernel, blob)

    def execute(self, command: KasminaCommand) -> SeedEvent | None:
        """Carry out one command; None if its `command_id` was carried out before.

        What the lifecycle allows is carried out even before the seed calls itself ready; a ramp that
        is cut short ends at alpha 1. A refused command leaves everything unchanged.

        Raises:
            IllegalTransitionError: if the lifecycle, a missing optimizer, the seed's failure, or
                another seed before its verdict forbids it.
            NotFoundError: if the seed or the kernel is unknown.
            KernelRejectedError: if the kernel no longer verifies or does not fit the site.

        """
        if command.command_id in self._executed:
            return None
        seed, target = self.seed(command.seed_id), command.target
        self._check(seed, target)
        before, kernel_id = seed.state, seed.kernel_id
        match target:
            case SeedState.GERMINATED:
                seed.germinate(self._fitting_kernel(seed, command.kernel_id or ""))
                kernel_id = seed.kernel_id
            case SeedState.LOADING:
                device = str(seed.layer.get_parameter("weight").device)
                seed.block = self._admission.load(seed.kernel_id or "", device)
            case SeedState.GRAFTING:
                self._graft(seed)
            case SeedState.FOSSILIZED:
                self._snapshot = self._added = None
            case SeedState.DORMANT:
                seed.forget()
            case _ if target in UNDONE:
                self._undo(seed)
            case _:
                pass
        seed.enter(target)
        self._executed.add(command.command_id)
        self._log.info("seed_moved", seed=seed.seed_id, before=before, now=target)
        return SeedEvent(
            seed_id=seed.seed_id,
            site=seed.site.name,
            from_state=before,
            to_state=target,
            epoch=command.epoch,
            step=self._steps,
            command_id=command.command_id,
            kernel_id=kernel_id,
            reason=command.reason,
        )

    def end_epoch(self, epoch: int) -> Sequence[HealthSignal]:
        """Close the epoch's sampled statistics and return one signal per seed."""
        return tuple(seed.end_epoch(epoch) for seed in self._seeds.values())

    @contextmanager
    def without(self, seed_id: tuple[int, int]) -> Generator[None]:
        """Within the context, the host computes as if this seed's kernel were not there."""
        graft = self.seed(seed_id).graft
        if graft is None:
            yield
            return
        was_enabled, graft.enabled = graft.enabled, False
        try:
            yield
        finally:
            graft.enabled = was_enabled

    def num_parameters(self) -> int:
        """Count the trainable parameters that are part of the model now.

        A grafted kernel counts while it is frozen too: it is only resting.
        """
        resting = (s.block for s in self._seeds.values() if s.state in FROZEN)
        return count_parameters(self._model, trainable_only=True) + sum(
            count_parameters(block) for block in resting if block is not None
        )

    def weights_sha256(self) -> str:
        """Return the sha256 over names, shapes, types and bytes of the model's whole state."""
        return saving.hash_state(saving.state_of(self._model))

    def save(self, folder: Path | str) -> None:
        """Write `model.safetensors` and `lineage.json` into `folder`, each atomically.

        Raises:
            HostError: if the host's state holds something other than tensors.
            OSError: if the folder cannot be written.

        """
        seeds = [seed for seed in self._seeds.values() if seed.state in GRAFTED]
        saving.write(Path(folder), self._model, [site.name for site in self.sites], seeds)

    def unwrap(self) -> nn.Module:
        """Take the seeds out and return the host; blocks that were fossilized stay part of it.

        Raises:
            IllegalTransitionError: if a seed awaits its verdict.

        """
        for seed in self._seeds.values():
            if seed.state in BEFORE_VERDICT:
                raise IllegalTransitionError(
                    f"seed {seed.seed_id} is in {seed.state}; fossilize or cull it before unwrap()"
                )
        self.detach()
        for seed in self._seeds.values():
            seed.hook.watch = None
            if seed.graft is None:
                seed.hook.uninstall(seed.layer)
        self._seeds = {}
        return self._model

    def adopt(self, seed: Seed, record: "saving.GraftRecord", block: Block) -> None:
        """Let `seed` carry a block that was saved as part of the model."""
        seed.hang(block)
        seed.kernel_id = record.kernel_id
        seed.blueprint_name = record.ir.name
        seed.enter(record.state)
        if record.state is SeedState.GRAFTING:
            seed.resume_ramp(record.alpha)

    def _check(self, seed: Seed, target: SeedState) -> None:
        """Pass silently if `seed` may go to `target` now."""
        name = f"seed {seed.seed_id} at {seed.site.name!r}"
        try:
            check_transition(seed.state, target)
        except IllegalTransitionError as error:
            raise IllegalTransitionError(f"{name}: {error}") from None
        if target in NEEDS_OPTIMIZER and self._optimizer is None:
            raise IllegalTransitionError(
                f"{name} needs an optimizer for {target}; attach() it first"
            )
        if target is SeedState.GRAFTING:
            self._check_graft(name, seed)
        if target in UNDONE and seed.state in BEFORE_VERDICT and self._snapshot is None:
            raise IllegalTransitionError(
                f"{name} was loaded from a folder, which does not keep what the host was before the "
                f"graft, so it cannot go to {target}; let it become FOSSILIZED"
            )

    def _check_graft(self, name: str, seed: Seed) -> None:
        if seed.failure is not None:
            raise IllegalTransitionError(f"{name} failed ({seed.failure}); cull it")
        for other in self._seeds.values():
            if other.state in BEFORE_VERDICT:
                raise IllegalTransitionError(
                    f"{name} cannot be grafted while seed {other.seed_id} at {other.site.name!r} is "
                    f"in {other.state}: an undo of one would undo the other; wait for its verdict"
                )

    def _fitting_kernel(self, seed: Seed, kernel_id: str) -> CompiledKernelArtifact:
        kernel = self._admission.record(kernel_id)
        if kernel.signature != seed.site.signature:
            raise KernelRejectedError(
                f"kernel {kernel_id[:12]} is built for {kernel.signature.key}, the site "
                f"{seed.site.name!r} is {seed.site.signature.key}; choose a kernel of its signature"
            )
        return kernel

    def _graft(self, seed: Seed) -> None:
        assert self._optimizer is not None
        assert seed.block is not None
        self._snapshot = Snapshot.take(self._model, self._optimizer, self._scheduler)
        seed.hang(seed.block)
        self._added = self._join(seed)

    def _join(self, seed: Seed) -> Group | None:
        """Add the seed's block to the attached optimizer."""
        assert self._optimizer is not None
        assert seed.graft is not None
        like = owner_index(self._optimizer, seed.layer)
        prefix = f"{seed.site.name}.{CHILD}."
        named = ((prefix + name, p) for name, p in seed.graft.named_parameters())
        return join(self._optimizer, self._scheduler, like, named)

    def _undo(self, seed: Seed) -> None:
        was_grafted = seed.state in BEFORE_VERDICT
        seed.drop()
        if was_grafted and self._snapshot is not None:
            self._snapshot.restore(self._added)
            self._snapshot = self._added = None

    def _after_step(self, *_: object) -> None:
        self._steps += 1
        for seed in self._seeds.values():
            seed.after_step()


def wrap(
    model: nn.Module,
    *,
    targets: Sequence[Target] | None = None,
    stages: StageLengths | None = None,
    sample_every_steps: int = 8,
) -> Bed:
    """Put a dormant seed at every site of `model` that `plan(model, targets)` finds.

    The host stays the same object and computes the same, bit for bit. Health is sampled every
    `sample_every_steps` training forwards.

    Raises:
        HostError: listing every problem; then nothing was changed.

    """
    if sample_every_steps < 1:
        raise HostError(f"sample_every_steps={sample_every_steps}; expected at least 1")
    found = plan(model, targets)
    found.check()
    seeds = [
        Seed(site, model.get_submodule(site.name), stages or StageLengths(), sample_every_steps)
        for site in found.sites
    ]
    for seed in seeds:
        seed.hook.install(seed.layer)
    return Bed(model, seeds)
