"""Tamiyo: decides at each decision point which seed moves, and what grows next.

Reads health and states from the seed bed, asks the policy where and when to grow, judges what was
grafted, commands the bed, and puts all of it on the bus and in the event log.

    bed = wrap(model)
    tamiyo = Tamiyo(bed, optimizer)
    ...
    tamiyo.end_epoch(val_loss=..., val_accuracy=...)
"""

import atexit
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from esper.contracts import (
    Action,
    AdaptationSignal,
    CompiledKernelArtifact,
    ConfigError,
    Contract,
    EsperError,
    EventLog,
    FieldReport,
    HealthSignal,
    IllegalTransitionError,
    KasminaCommand,
    KernelRejectedError,
    SeedBed,
    SeedEvent,
    SeedId,
    SeedState,
    SeedStatus,
    SystemStatePacket,
    get_logger,
)
from esper.tamiyo import remembering
from esper.tamiyo.claiming import check_arguments, claim
from esper.tamiyo.forge import OnForged, forge_kernels
from esper.tamiyo.moves import GRAFTED, NO_DECISION, UNDONE, Move, emergency, next_move
from esper.tamiyo.outcomes import field_report, kernel_of
from esper.tamiyo.policies import (
    Attention,
    EpochFigures,
    Gap,
    Observation,
    Policy,
    Proposal,
    attention_of,
)
from esper.tamiyo.remembering import Trial
from esper.tamiyo.runtime import Runtime, embedded_runtime
from esper.tamiyo.verdict import MIN_GAIN, Evaluate, gather, judge
from esper.tamiyo.warmup import WARM_UP_STEPS, Warmup

_log = get_logger(__name__)

_S = SeedState


class Tamiyo:
    """The controller of one training run; a context manager.

    Making one attaches the bed to the optimizer and has the kernels for its sites forged and judged,
    so that the first training step already finds them; without a `runtime` it opens an embedded one
    (memory bus, SQLite and artifacts in a temporary folder), closed at the latest when Python exits.

    Args:
        bed: the host with its seeds, from `esper.kasmina.wrap`.
        optimizer: the `torch.optim.Optimizer` that trains the host.
        scheduler: its learning-rate scheduler, restored together with it on an undo.
        scaler: the `torch.amp.GradScaler`, likewise; steps that it skips count for nothing.
        copies: modules of the host's architecture (moving averages, teachers) that grow along.
        policy: where and when to grow; by default early, where the loss shows a lack.
        evaluate: measures the model on validation data. With it, a block is judged against the same
            weights without it; otherwise against the model before the graft only.
        epochs: how many the loop will run: nothing is grown too late, nor too large for what is to come.
        batches_per_step: with gradient accumulation, the mini-batches whose gradients make one step.
        runtime: an open runtime to use; the caller closes it.
        log: an open event log to append to.
        resume: a folder that `checkpoint` wrote, to go on from there to the same weights. `bed` then
            comes from `esper.kasmina.load(model, resume)` instead of `wrap`.
        on_forged: told of each kernel how many are done and how many there will be: wide layers take
            minutes.
        warm_up_steps: over how many steps all learning rates rise anew after each graft, a tenth of the
            run at most; 0: never.

    Raises:
        ConfigError: if `bed` is no seed bed, has a controller already, or `optimizer` is none.
        EsperError: if a worker failed or a server is not available.

    """

    def __init__(
        self,
        bed: SeedBed,
        optimizer: Any,
        *,
        scheduler: Any | None = None,
        scaler: Any | None = None,
        copies: Sequence[Any] = (),
        policy: Policy | None = None,
        evaluate: Evaluate | None = None,
        epochs: int | None = None,
        batches_per_step: int = 1,
        runtime: Runtime | None = None,
        log: EventLog | None = None,
        resume: Path | str | None = None,
        on_forged: OnForged | None = None,
        warm_up_steps: int = WARM_UP_STEPS,
    ) -> None:
        check_arguments(bed, optimizer)
        self.bed = bed
        self.policy = policy or Gap()
        self.epoch = 0
        self.kernels: Sequence[CompiledKernelArtifact] = ()
        self.events: list[SeedEvent] = []
        self.field_reports: list[FieldReport] = []
        self._optimizer = optimizer
        self._evaluate = evaluate
        self._epochs = epochs
        self._batches_per_step = batches_per_step
        self._log = log
        self._history: list[EpochFigures] = []
        self._decisions: list[AdaptationSignal] = []
        self._trials: defaultdict[SeedId, Trial] = defaultdict(Trial)
        self._warmup = Warmup(
            optimizer, steps=warm_up_steps, epochs=epochs, step=lambda: self.bed.step
        )
        self._designs = {ir.content_hash(): ir for ir in bed.blueprints}
        self._begun = time.monotonic()
        self._is_open = True
        self._closing = ExitStack()
        self._closing.callback(self._warmup.close)
        self._runtime = runtime or self._closing.enter_context(embedded_runtime(self._closing))
        try:
            self._crucible = self._runtime.public_key
            if resume is None and getattr(self.policy, "grows", True):
                self.kernels = forge_kernels(bed, self._runtime, on_forged)
                for kernel in self.kernels:
                    self._record("kernel", kernel)
            bed.attach(optimizer, scheduler, scaler=scaler, copies=copies)
            if resume is not None:
                self._go_on(resume)
            elif attention_of(self.policy, self._observe(())) is Attention.NONE:
                self.bed.watch(on=False)
        except BaseException:
            self._closing.close()
            raise
        self._closing.callback(claim(bed))
        self._closing.callback(bed.detach)
        self._closing.callback(self._runtime.send_lingering)
        atexit.register(self.close)

    def __enter__(self) -> Self:
        """Return the controller, which is already at work."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the controller."""
        self.close()

    def close(self) -> None:
        """Stop following the optimizer and close what this controller opened; idempotent."""
        atexit.unregister(self.close)
        self._is_open = False
        self._closing.close()

    def checkpoint(self, folder: Path | str, *, beside: Mapping[str, bytes] | None = None) -> None:
        """Write all of the run but its place in the data into `folder`, or nothing.

        For `Tamiyo(..., resume=folder)` in a new process, which then goes on to the very same weights.
        Call it between two steps; `beside` are files of yours, named like `mine.json`.

        Raises:
            HostError: if something in the state cannot be written.
            OSError: if the folder cannot be written; what it held before stays good.

        """
        memory = remembering.Memory(
            epoch=self.epoch,
            seconds=time.monotonic() - self._begun,
            public_key=self._crucible.hex(),
            kernels=tuple(self.kernels),
            history=remembering.epochs(self._history),
            seeds=remembering.known_trials(self._trials),
            warmup=self._warmup.state_dict(),
            rate_share=self._warmup.rate_share,
            events=tuple(self.events),
            field_reports=tuple(self.field_reports),
        )
        mine = {remembering.FILE: memory.model_dump_json().encode()}
        self.bed.checkpoint(folder, beside=mine | dict(beside or {}))

    def slow_down(self, share: float) -> None:
        """Have every step from now on take only this share of its learning rates; no undo takes that back."""
        self._warmup.rate_share *= share

    def _go_on(self, folder: Path | str) -> None:
        """Take up what `checkpoint` wrote: the kernels are those of then, as they were measured."""
        memory = remembering.read(folder)
        self._crucible = bytes.fromhex(memory.public_key)
        self.bed.trust(self._crucible)
        self.bed.resume(folder)
        self.epoch, self.kernels = memory.epoch, memory.kernels
        self.events, self.field_reports = list(memory.events), list(memory.field_reports)
        self._history = [known.figures() for known in memory.history]
        self._trials.update({known.seed_id: known.trial() for known in memory.seeds})
        self._warmup.load_state_dict(memory.warmup)
        self._warmup.rate_share = memory.rate_share
        self._begun = time.monotonic() - memory.seconds
        for (
            report
        ) in self.field_reports:  # the library may have missed the last ones; twice is once
            self._runtime.publish(report)

    def end_epoch(
        self,
        *,
        val_loss: float,
        val_accuracy: float | None = None,
        train_loss: float | None = None,
    ) -> SystemStatePacket:
        """Take the decisions that are due at the end of an epoch; call it once per epoch.

        May change the host: grafts a block, or restores the host exactly as it was before a graft.

        Args:
            val_loss: mean loss on validation data, as the model stands now.
            val_accuracy: share of correct answers, 0 to 1, if there is such a thing.
            train_loss: mean loss over the epoch, if known.

        Returns:
            The system at this decision point, as it was put on the bus: metrics, seeds, decisions
            with their reasons, and the transitions that followed.

        Raises:
            ConfigError: if a figure makes no sense, or the controller is closed.

        """
        if not self._is_open:
            raise ConfigError(
                "end_epoch was called after this controller was closed; nothing grows any more: call "
                "it inside the with statement, or make another Tamiyo"
            )
        val_loss = float(val_loss)
        if val_accuracy is not None and not 0.0 <= val_accuracy <= 1.0:
            raise ConfigError(
                f"val_accuracy={val_accuracy}; expected a share from 0 to 1, not per cent"
            )
        self._history.append(
            EpochFigures(
                epoch=self.epoch,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                train_loss=train_loss,
            )
        )
        self._decisions = []
        first_event = len(self.events)
        self.bed.end_epoch(self.epoch, with_health=False)
        self._obey_others()
        for seed in self.bed.seeds():
            self._advance(seed)
        if self._history[-1].is_finite:
            self._grow(self._look())
        else:
            self._decide(Action.WAIT, NO_DECISION)
        packet = SystemStatePacket(
            run_id=self._runtime.run_id,
            epoch=self.epoch,
            step=self.bed.step,
            train_loss=train_loss,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=float(self._optimizer.param_groups[0]["lr"]) * self._warmup.rate_share,
            num_parameters=self.bed.num_parameters(),
            seeds=tuple(self.bed.seeds()),
            decisions=tuple(self._decisions),
            events=tuple(self.events[first_event:]),
        )
        self._record("epoch", packet)
        self.epoch += 1
        return packet

    def _obey_others(self) -> None:
        """Carry out commands that an operator sent over the bus; a bad one changes nothing."""
        for command in self._runtime.take_commands():
            try:
                self._execute(command)
            except EsperError as error:
                _log.warning("command refused", command_id=command.command_id, error=str(error))

    def _advance(self, seed: SeedStatus) -> None:
        """Move a seed as far as it is ready to go at this decision point."""
        while (move := self._next_move(seed)) is not None:
            target, reason, numbers = move
            action = Action.CULL if target in UNDONE else Action.ADVANCE
            self._decide(action, reason, seed_id=seed.seed_id, numbers=numbers)
            try:
                self._command(seed.seed_id, target, reason)
            except KernelRejectedError as error:
                refusal = f"its kernel was refused: {error}"
                self._decide(Action.CULL, refusal, seed_id=seed.seed_id)
                self._command(seed.seed_id, _S.CANCELLED, refusal)
            except IllegalTransitionError as error:
                if target not in UNDONE:
                    raise
                self._live_with(seed, target, error)
                return
            seed = self._status(seed.seed_id)

    def _live_with(
        self, seed: SeedStatus, target: SeedState, error: IllegalTransitionError
    ) -> None:
        """Keep a block that cannot be undone: one that came with a loaded model."""
        reason = f"it cannot be undone: {error}"
        if target is _S.CULLED and seed.state in (_S.EVALUATING, _S.FINE_TUNING):
            self._decide(Action.ADVANCE, reason, seed_id=seed.seed_id)
            self._command(seed.seed_id, _S.FOSSILIZED, reason)
        else:
            self._decide(Action.WAIT, reason, seed_id=seed.seed_id)

    def _next_move(self, seed: SeedStatus) -> Move | None:
        """Return where the seed goes now, why, and the numbers behind it; None if it stays."""
        trial = self._trials.get(seed.seed_id, Trial())
        if (move := emergency(seed, self._history, trial.before)) is not None:
            return move
        if not self._history[-1].is_finite:
            return None
        if seed.state is _S.EVALUATING and seed.is_ready_for_transition:
            return self._judge(seed, _S.FINE_TUNING, is_last=self._evaluate is None)
        is_tuned = seed.state is _S.FINE_TUNING and seed.is_ready_for_transition
        if is_tuned and self._evaluate is not None:
            # Judged again, for fine-tuning may have spoiled it; what convinced needs no second gain to stay.
            has_convinced = trial.evidence is not None and judge(trial.evidence).keep
            return self._judge(seed, _S.FOSSILIZED, min_gain=0.0 if has_convinced else MIN_GAIN)
        is_trained = seed.state is _S.TRAINING
        others = is_trained and any(other.state in GRAFTED for other in self.bed.seeds())
        return next_move(seed, others_await_verdict=others)

    def _judge(
        self,
        seed: SeedStatus,
        if_kept: SeedState,
        *,
        min_gain: float = MIN_GAIN,
        is_last: bool = True,
    ) -> Move:
        trial = self._trials[seed.seed_id]
        trial.evidence = gather(
            self.bed,
            seed.seed_id,
            now=self._history[-1],
            before=trial.before,
            evaluate=self._evaluate,
        )
        verdict = judge(trial.evidence, min_gain=min_gain, is_last=is_last)
        return Move(if_kept if verdict.keep else _S.CULLED, verdict.reason, verdict.numbers)

    def _look(self) -> Observation:
        """Measure the health of all sites if the policy wants to know it; have it sampled if it ever may."""
        observation = self._observe(())
        attention = attention_of(self.policy, observation)
        self.bed.watch(on=attention is not Attention.NONE)
        if attention is not Attention.NOW:
            return observation
        health = self.bed.health(self.epoch)
        for signal in health:
            self._record("health", signal)
        return replace(observation, health=health)

    def _grow(self, observation: Observation) -> None:
        """Ask the policy, and germinate what it chose."""
        germinated: set[tuple[int, int]] = set()
        while True:
            proposal = self.policy.propose(observation)
            chosen = proposal.chosen
            if chosen is None or chosen.seed_id in germinated:
                break
            germinated.add(chosen.seed_id)
            self._trials[chosen.seed_id].copy_of = chosen.copy_of
            self._decide(
                Action.GERMINATE, proposal.reason, seed_id=chosen.seed_id, proposal=proposal
            )
            self._command(chosen.seed_id, _S.GERMINATED, proposal.reason, chosen.kernel_id)
            self._advance(self._status(chosen.seed_id))
            observation = self._observe(observation.health)
        if not germinated:
            self._decide(Action.WAIT, proposal.reason, proposal=proposal)

    def _observe(self, health: Sequence[HealthSignal]) -> Observation:
        return Observation(
            epoch=self.epoch,
            epochs_left=None if self._epochs is None else self._epochs - self.epoch - 1,
            history=tuple(figures for figures in self._history if figures.is_finite),
            sites=self.bed.sites,
            seeds=self.bed.seeds(),
            health=health,
            kernels=self.kernels,
            outcomes=tuple(self.field_reports),
            num_parameters=self.bed.num_parameters(),
            seconds=time.monotonic() - self._begun,
            steps=self.bed.step,
            batches_per_step=self._batches_per_step,
            designs=self._designs,
        )

    def _decide(
        self,
        action: Action,
        reason: str,
        *,
        seed_id: tuple[int, int] | None = None,
        numbers: dict[str, float] | None = None,
        proposal: Proposal | None = None,
    ) -> None:
        self._decisions.append(
            AdaptationSignal(
                epoch=self.epoch,
                policy=self.policy.name,
                action=action,
                seed_id=seed_id,
                reason=reason,
                numbers=numbers or (proposal.numbers if proposal is not None else {}),
                candidates=tuple(proposal.candidates) if proposal is not None else (),
            )
        )

    def _command(
        self,
        seed_id: tuple[int, int],
        target: SeedState,
        reason: str,
        kernel_id: str | None = None,
    ) -> None:
        trial = self._trials.get(seed_id, Trial())
        self._execute(
            KasminaCommand(
                seed_id=seed_id,
                target=target,
                kernel_id=kernel_id,
                copy_of=trial.copy_of if target is _S.LOADING else None,
                epoch=self.epoch,
                reason=reason,
            )
        )

    def _execute(self, command: KasminaCommand) -> None:
        """Have the bed carry out one command, and follow up on what it means."""
        before = self._status(command.seed_id)
        event = self.bed.execute(command)
        self._record("command", command)
        if event is None:
            return
        self.events.append(event)
        self._record("transition", event)
        if event.to_state is _S.GRAFTING:
            trial = self._trials[event.seed_id]
            trial.before, trial.risen = self._history[-1], self._warmup.rise
            self._warmup.begin(self.epoch + 1)
        if event.to_state in (_S.FOSSILIZED, *UNDONE):
            self._report_outcome(event, before)

    def _report_outcome(self, event: SeedEvent, seed: SeedStatus) -> None:
        trial = self._trials.pop(event.seed_id, Trial())
        if event.to_state is not _S.FOSSILIZED and trial.before is not None:
            # The host is again what it was then; what came later did not happen to it.
            self._history = [f for f in self._history if f.epoch <= trial.before.epoch]
            self._warmup.rise = trial.risen
        report = field_report(
            self._runtime.run_id,
            len(self.field_reports),
            event,
            seed=seed,
            kernel=kernel_of(seed, self.bed.sites, self.kernels),
            events=self.events,
            before=trial.before,
            evidence=trial.evidence,
        )
        self.field_reports.append(report)
        self._record("field_report", report)

    def _status(self, seed_id: tuple[int, int]) -> SeedStatus:
        return next(seed for seed in self.bed.seeds() if seed.seed_id == seed_id)

    def _record(self, kind: str, content: Contract) -> None:
        """Append to the event log, and publish what has a topic; a dead bus cannot stop the run."""
        if self._log is not None:
            self._log.append(kind, content)
        if isinstance(content, HealthSignal | KasminaCommand | SystemStatePacket | FieldReport):
            self._runtime.publish(content)
