"""The bed: a host model with seeds in it, and the only door through which they are commanded.

`wrap` makes one from a host; Tamiyo attaches the optimizer, admits kernels, sends commands at decision
points and reads health at the end of each epoch. Implements the port `esper.contracts.SeedBed`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    HealthSignal,
    HostError,
    IllegalTransitionError,
    KasminaCommand,
    NotFoundError,
    SeedEvent,
    SeedState,
    SeedStatus,
    Site,
    get_logger,
)
from esper.kasmina import checkpoint, modulestate, saving
from esper.kasmina.admission import Admission
from esper.kasmina.attachment import Attachment
from esper.kasmina.compiled import forget_graphs
from esper.kasmina.copies import Copies
from esper.kasmina.export import ExportManifest, export
from esper.kasmina.graft import absent, release
from esper.kasmina.kernels import Block, count_parameters
from esper.kasmina.legality import UNDONE, Legality
from esper.kasmina.library import builtin_blueprints
from esper.kasmina.marks import Mark
from esper.kasmina.owners import join, owner_index
from esper.kasmina.probe import Example
from esper.kasmina.sampling import Sampling
from esper.kasmina.seed import BEFORE_VERDICT, COUNTS_STEPS, FROZEN, Seed
from esper.kasmina.stages import StageLengths
from esper.kasmina.undo import Snapshot, World

RESTRUCTURING = frozenset({SeedState.TRAINING, SeedState.GRAFTING}) | UNDONE
"""Transitions that change what runs at a site, so that compiled graphs are made anew."""


class Bed:
    """A host with dormant seeds at its sites. Make it with `wrap`; belongs to the training thread."""

    def __init__(
        self,
        model: nn.Module,
        seeds: Sequence[Seed],
        sampling: Sampling,
        blueprints: Sequence[BlueprintIR] = (),
    ) -> None:
        self._model = model
        self._seeds = {seed.seed_id: seed for seed in seeds}
        self._sites = tuple({seed.site.layer_id: seed.site for seed in seeds}.values())
        self._sampling = sampling
        self._own_blueprints = tuple(blueprints)
        self._admission = Admission()
        self._executed: set[str] = set()
        self._attachment: Attachment | None = None
        self._copies = Copies(model, ())
        self._snapshot: Snapshot | None = None
        self._counting: tuple[Seed, ...] = ()
        self._steps = 0
        self._log = get_logger("kasmina")

    @property
    def model(self) -> nn.Module:
        """The host, the very object that was wrapped."""
        return self._model

    @property
    def sites(self) -> Sequence[Site]:
        """The places that carry seeds, input side first."""
        return self._sites

    @property
    def blueprints(self) -> Sequence[BlueprintIR]:
        """The built-in designs and the user's own that fit at least one of the sites."""
        kinds_of_place = {(site.signature.key, site.spans): site for site in self.sites}.values()
        designs = (*builtin_blueprints(), *self._own_blueprints)
        return tuple(ir for ir in designs if any(site.suits(ir) for site in kinds_of_place))

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
            some = ", ".join(str(key) for key in list(self._seeds)[:8])
            more = ", …" if len(self._seeds) > 8 else ""
            raise NotFoundError(f"there is no seed {seed_id}; there are: {some}{more}")
        return found

    def attach(
        self,
        optimizer: Any,
        scheduler: Any | None = None,
        *,
        scaler: Any | None = None,
        copies: Sequence[Any] = (),
    ) -> None:
        """Follow `optimizer`: its steps drive the seeds, and grafted parameters join it.

        Blocks that are already part of the model and that the optimizer does not own yet join at once.

        Args:
            optimizer: the `torch.optim.Optimizer` that trains the host.
            scheduler: its learning-rate scheduler; an undo restores it too.
            scaler: the `torch.amp.GradScaler`, if there is one; an undo restores it too.
            copies: modules of the host's architecture, such as moving averages
                (`torch.optim.swa_utils.AveragedModel`); they grow and shrink with the host.

        Raises:
            HostError: if it cannot follow this host, or a seed awaits its verdict under another one.

        """
        attachment = Attachment.check(
            self._model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, copies=copies
        )
        if self._snapshot is not None:
            self._check_undo(self._snapshot, attachment)
        followers = Copies(self._model, attachment.copies)
        self._join_all(attachment)
        self.detach()
        self._attachment, self._copies = attachment, followers
        followers.align()
        attachment.follow(self._after_step)
        self._sampling.start()

    def detach(self) -> None:
        """Stop following the optimizer; seeds stop advancing. Idempotent."""
        if self._attachment is not None:
            self._attachment.leave()
        self._sampling.stop()
        self._attachment, self._copies = None, Copies(self._model, ())

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
        self._legality().check(seed, target)
        before, kernel_id = seed.state, seed.kernel_id
        match target:
            case SeedState.GERMINATED:
                seed.germinate(self._admission.fitting(command.kernel_id or "", seed.site))
                kernel_id = seed.kernel_id
            case SeedState.LOADING:
                block = self._admission.load(seed.kernel_id or "", str(seed.device))
                seed.load(block, None if command.copy_of is None else self.seed(command.copy_of))
            case SeedState.TRAINING:
                self._hook(seed)
            case SeedState.GRAFTING:
                self._graft(seed)
            case SeedState.FOSSILIZED:
                self._snapshot = None
            case SeedState.DORMANT:
                seed.forget()
            case _ if target in UNDONE:
                self._undo(seed)
            case _:
                pass
        seed.enter(target)
        self._recount()
        self._copies.sync_alpha()
        self._sampling.skip_next()
        if target in RESTRUCTURING:
            forget_graphs()
        self._executed.add(command.command_id)
        self._log.info("seed_moved", seed=seed.seed_id, before=before, now=target)
        return SeedEvent(
            seed_id=seed.seed_id,
            site=seed.site.label,
            from_state=before,
            to_state=target,
            epoch=command.epoch,
            step=self._steps,
            command_id=command.command_id,
            kernel_id=kernel_id,
            reason=command.reason,
        )

    def end_epoch(self, epoch: int, *, with_health: bool = True) -> Sequence[HealthSignal]:
        """Count one epoch; return what `health` does, or nothing if that is to come later."""
        self._sampling.start()
        for seed in self._seeds.values():
            seed.end_epoch()
        self._admission.refill()
        self._copies.sync_alpha()
        return self.health(epoch) if with_health else ()

    def health(self, epoch: int) -> Sequence[HealthSignal]:
        """Close the statistics sampled since the last time and return one signal per seed."""
        return tuple(seed.health(epoch) for seed in self._seeds.values())

    def watch(self, *, on: bool) -> None:
        """Sample health from now on, as from the start, or no longer."""
        self._sampling.switch(on=on)

    def without(
        self, seed_id: tuple[int, int] | None, *, settle: Callable[[], object] | None = None
    ) -> AbstractContextManager[None]:
        """Within the context, the host computes as if this seed's kernel were not there; None: as it is.

        `settle` runs data through it first, from which batch norms take their statistics meanwhile.
        """
        graft = None if seed_id is None else self.seed(seed_id).graft
        return absent(graft, self.model, settle)

    def mark(self) -> Mark:
        """Return this moment of the whole run, to go back to with `roll_back`.

        It costs one copy of weights, gradients, buffers and optimizer state, of the host and of its
        copies. Take marks between steps.
        """
        return Mark.take(
            self._world(),
            self._seeds.values(),
            step=self._steps,
            pending=self._snapshot,
            sampling=self._sampling.state_dict(),
        )

    def roll_back(self, mark: Mark) -> None:
        """Put the whole run back to `mark`, bit for bit, from any state, as often as asked.

        Blocks that came since are gone, fossils too; those that were culled since are back. Optimizer,
        scheduler, scaler, copies, seeds and the global random streams stand where they stood. What is
        not the bed's stays: the place in the data, and which commands were carried out.

        Raises:
            HostError: if it is another bed's mark, or another optimizer is attached; then nothing was
                changed.

        """
        mark.check(self._seeds.values())
        if not mark.snapshot.is_from(self._world()):
            raise HostError(
                "the mark was taken of another host or under another optimizer; attach() the one that "
                "was attached then"
            )
        mark.snapshot.check_trainer(self._world())
        self._return_to(mark)

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
            ConfigError: if the folder holds a checkpoint.
            HostError: if the host's state holds something other than tensors.
            OSError: if the folder cannot be written.

        """
        saving.write(Path(folder), self._model, self.sites, self._seeds.values())

    def checkpoint(self, folder: Path | str, *, beside: Mapping[str, bytes] | None = None) -> None:
        """Write everything that a new process needs to go on to the very same final weights.

        The model and its lineage, optimizer, scheduler, scaler and copies, the random streams, every
        seed with its own learning, the way back of a graft before its verdict, the admitted kernels,
        and which commands were carried out. Not written: the place in the data, and which keys are
        trusted; `beside` takes such things, as files named like `mine.json` (`loading.read_beside`).
        What `folder` held before stays usable until the new state is complete; it takes the space of
        both for a moment. Make checkpoints between steps.

        Raises:
            ConfigError: if the folder holds a saved model, or `beside` a name that it cannot have.
            HostError: if something in the state cannot be written, naming it.
            OSError: if the folder cannot be written.

        """
        with modulestate.lending():  # a copy of everything would double the memory for a moment
            mark = self.mark()
        checkpoint.write(
            Path(folder),
            mark,
            model_files=saving.render(self._model, self.sites, self._seeds.values()),
            stages=next((seed.stages for seed in self._seeds.values()), StageLengths()),
            executed=self._executed,
            kernels=list(self._admission.admitted.values()),
            beside=beside or {},
        )

    def resume(self, folder: Path | str) -> int:
        """Go on where `checkpoint` wrote `folder`, in a new process; return the step.

        Before it, `load` the model from the same folder, `trust` the crucible's key, make optimizer,
        scheduler, scaler and copies as in the first process, and `attach` them; how the parameters are
        grouped does not matter. Settings such as learning rates become those of the run.

        Raises:
            NotFoundError: if a file is missing.
            ConfigError: if it was written by a newer version.
            ArtifactIntegrityError: if a file was changed or damaged.
            KernelRejectedError: if a kernel no longer verifies, or its crucible is not trusted.
            HostError: if host, optimizer or copies are not like those of the run; in every case the
                bed stands as before.

        """
        found = checkpoint.read(Path(folder))
        if self._attachment is None and found.snapshot.state["optimizer"] is not None:
            raise HostError("the run had an optimizer; attach() one like it before resume()")
        before = self.mark()
        for kernel, blob in found.kernels:
            self._admission.admit(kernel, blob)
        try:
            self._return_to(found.mark(self._seeds.values(), self._admission), is_whole=True)
        except Exception:
            self._return_to(before)
            raise
        self._executed |= found.executed
        return self._steps

    def export(
        self, folder: Path | str, example: Example, *, training: bool = False, onnx: bool = False
    ) -> ExportManifest:
        """Write the model as it stands into `folder`, to run without Esper; see `export`."""
        return export(self, folder, example, training=training, onnx=onnx)

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
            seed.stop_learning()
            release(seed.layer)
        self._seeds = {}
        self._sites = ()
        return self._model

    def adopt(self, seed: Seed, record: "saving.GraftRecord", block: Block) -> None:
        """Let `seed` carry a block that was saved as part of the model."""
        self._hook(seed)
        seed.hang(block)
        seed.kernel_id = record.kernel_id
        seed.blueprint_name = record.ir.name
        seed.enter(record.state)
        if record.state is SeedState.GRAFTING:
            seed.resume_ramp(record.alpha)
        self._recount()

    def _legality(self) -> Legality:
        return Legality(
            self._seeds.values(),
            has_optimizer=self._attachment is not None,
            can_undo=self._snapshot is not None,
        )

    def _hook(self, seed: Seed) -> None:
        """Give the seed its site's hook, which it shares with the layer's other chunks."""
        seed.hook = self._sampling.hook_of(seed.layer)

    def _graft(self, seed: Seed) -> None:
        assert seed.block is not None
        self._hook(seed)
        snapshot = Snapshot.take(self._world())
        seed.hang(seed.block)
        try:
            assert self._attachment is not None
            self._join(seed, self._attachment)
        except Exception:
            # Not every optimizer takes every block; a refused command leaves everything unchanged.
            seed.take_down()
            raise
        self._snapshot = snapshot
        self._copies.align()

    def _check_undo(self, snapshot: Snapshot, attachment: Attachment) -> None:
        """Pass silently if the seed before its verdict could be undone under `attachment`."""
        waiting = next(seed for seed in self._seeds.values() if seed.state in BEFORE_VERDICT)
        name = f"seed {waiting.seed_id} is in {waiting.state} and could not be undone"
        if not snapshot.is_of(attachment.optimizer):
            raise HostError(f"{name} under another optimizer; fossilize or cull it first")
        try:
            snapshot.check(attachment.world(self._model))
        except HostError as error:
            raise HostError(f"{name} so; fossilize or cull it first: {error}") from error

    def _world(self) -> World:
        attachment = self._attachment
        return World(model=self._model) if attachment is None else attachment.world(self._model)

    def _join_all(self, attachment: Attachment) -> None:
        """Add the blocks that the optimizer does not own yet; all of them or none."""
        groups = attachment.optimizer.param_groups
        owned = {id(p) for group in groups for p in group["params"]}
        num_groups = len(groups)
        try:
            for seed in self._seeds.values():
                graft = seed.graft
                if graft is not None and not any(id(p) in owned for p in graft.parameters()):
                    self._join(seed, attachment)
        except Exception:
            del groups[num_groups:]
            raise

    def _join(self, seed: Seed, attachment: Attachment) -> None:
        """Add the seed's block to an optimizer."""
        assert seed.graft is not None
        like = owner_index(attachment.optimizer, seed.layer)
        prefix = f"{seed.site.name}.{seed.child}."
        named = [(prefix + name, p) for name, p in seed.graft.named_parameters()]
        join(attachment.optimizer, attachment.scheduler, like, named)

    def _undo(self, seed: Seed) -> None:
        was_grafted, graft = seed.state in BEFORE_VERDICT, seed.graft
        seed.drop()
        if was_grafted and self._snapshot is not None:
            self._copies.align()
            gone = [] if graft is None else list(graft.parameters())
            self._snapshot.restore(self._world(), gone=gone)
            self._snapshot = None

    def _return_to(self, mark: Mark, *, is_whole: bool = False) -> None:
        gone = mark.restructure(self._seeds.values(), self._sampling.hook_of)
        self._copies.align()
        mark.snapshot.restore(self._world(), gone=gone, is_whole=is_whole)
        mark.refill(self._seeds.values())
        self._snapshot, self._steps = mark.pending, mark.step
        self._sampling.load_state_dict(dict(mark.sampling))
        self._recount()
        forget_graphs()

    def _recount(self) -> None:
        """Find the seeds that each step concerns: a thousand dormant ones cost nothing."""
        self._counting = tuple(s for s in self._seeds.values() if s.state in COUNTS_STEPS)

    def _after_step(self, *_: object) -> None:
        self._steps += 1
        self._sampling.after_step()
        for seed in self._counting:
            seed.after_step()
        self._copies.sync_alpha()
