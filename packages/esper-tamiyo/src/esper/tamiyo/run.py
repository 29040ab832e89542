"""The run behind `train`: puts the parts together and writes the run folder.

`run` is the story; its steps follow below it. This is the composition root: seed layer, bus, library
and workers come in through entry points.
"""

import math
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape
from torch import nn

from esper.contracts import (
    ArtifactIntegrityError,
    BlueprintIR,
    ConfigError,
    EventLog,
    NotFoundError,
    SystemStatePacket,
    load_settings,
    read_blueprint,
    trace_context,
)
from esper.contracts.registry import saved_beds, seed_bed_factory
from esper.contracts.words import plural, type_of
from esper.tamiyo import checkpoints, diverging
from esper.tamiyo.averaging import average_of, averaged_weights
from esper.tamiyo.checkpoints import Checkpoints, Place
from esper.tamiyo.config import RunConfig, override
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.diverging import RATE_SHARE, DivergedError, LossNotFiniteError, Setback, advice
from esper.tamiyo.environment import describe_environment, describe_layers
from esper.tamiyo.epochs import Learner, epochs, make_learner
from esper.tamiyo.folder import (
    LOG,
    RunFolder,
    keep_changed_config,
    reopened_folder,
    resume_command,
    run_folder,
)
from esper.tamiyo.foreseeing import shorter_epochs, what_will_not_grow
from esper.tamiyo.hosts import build_host
from esper.tamiyo.loading import call, resolve
from esper.tamiyo.policies import Chance, Gap, Heuristic, Never, Policy, Scripted
from esper.tamiyo.runtime import Runtime, RuntimeUrls
from esper.tamiyo.saving import keep_average, save_model, save_report, save_summary
from esper.tamiyo.stopping import StopRequestedError, StopSignals
from esper.tamiyo.summary import RunRecord, Training
from esper.tamiyo.tasks import Readers, Source, Task, load_task
from esper.tamiyo.tasks.facts import TaskFacts, facts_of, write_facts
from esper.tamiyo.tracking import Tracker, tracking
from esper.tamiyo.training import Means, Progress, choose_means
from esper.tamiyo.ui import Ui

POLICIES: Mapping[str, Callable[[], Policy]] = {
    "gap": Gap,
    "heuristic": Heuristic,
    "random": Chance,
    "never": Never,
}
"""The policies that a run can name."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on while a run goes on, and may stop it."""

    ui: Ui
    tracker: Tracker
    stop: StopSignals


def run(config: RunConfig, ui: Ui) -> RunRecord:
    """Train a host that grows, then its twin that does not; leave a run folder and return its record.

    Ctrl-C stops between two steps: what was trained so far is saved, and the record says so. The model
    is on disk before the twin is trained and before any server is waited for.

    Raises:
        DivergedError: if the loss is not finite, also after going back; the last good model is saved.
        EsperError: for anything wrong with the request or the servers; nothing is left behind.

    """
    with StopSignals() as stop:
        with run_folder(config) as folder:
            record = _run(config, folder, ui, stop)
        ui.result(record, folder.final_path)  # signals are held until it is said where all is
    return record


def resume(path: Path, ui: Ui) -> RunRecord:
    """Go on with a run that was stopped or killed, from its newest checkpoint, to the same final weights.

    Raises:
        NotFoundError: if there is no such run, or it has no checkpoint.
        ConfigError: if it is complete.
        EsperError: as `run`; the run folder stays as it was.

    """
    with StopSignals() as stop:
        with reopened_folder(path) as folder:
            slot, place, problems = checkpoints.newest(folder.path)
            config = override(RunConfig(), place.config | {"out": folder.final_path.parent})
            for problem in problems:
                ui.say(f"[yellow]note[/]   an older checkpoint is used: {escape(problem)}")
            ui.say(f"going on with {folder.final_path} {_where(place, config)}")
            record = _run(config, folder, ui, stop, slot=slot, place=place)
        ui.result(record, folder.final_path)
    return record


def _where(place: Place, config: RunConfig) -> str:
    if place.epoch >= config.epochs:
        return "behind its last epoch: what was still to be written is written now"
    behind = f", behind {place.batches} mini-batches" if place.batches else ""
    return f"at epoch {place.epoch + 1} of {config.epochs}{behind}"


def _run(
    config: RunConfig,
    folder: RunFolder,
    ui: Ui,
    stop: StopSignals,
    *,
    slot: Path | None = None,
    place: Place | None = None,
) -> RunRecord:
    """Train and save; where the loss is not finite, from an earlier state on (`diverging`)."""
    setback: Setback | None = None
    while True:
        try:
            record = _train(config, folder, ui, stop, slot=slot, place=place, setback=setback)
        except LossNotFiniteError as found:
            slot, place, setback = _go_back(folder, found.packet, setback)
            if not setback.is_end:
                ui.say(f"[yellow]back[/]   {escape(setback.told)}")
            continue
        if setback is not None and setback.is_end:
            raise DivergedError(advice(config.learning_rate, setback))
        return record


def _go_back(
    folder: RunFolder, packet: SystemStatePacket, last: Setback | None
) -> tuple[Path, Place, Setback]:
    """Return the state to go back to; the record of what is abandoned stays beside the run's.

    `last` is the setback before this one, which a full disk may have kept out of the checkpoints.
    """
    try:
        slot, place, _ = checkpoints.newest(folder.path)
    except (NotFoundError, ArtifactIntegrityError) as error:
        raise DivergedError(
            f"the loss was not finite in epoch {packet.epoch + 1}, with nothing to go back to: {error}"
        ) from error
    earlier = max(len(place.setbacks), 0 if last is None else 1)
    with suppress(OSError):
        shutil.copyfile(
            folder.path / LOG, folder.path / f"events-before-setback-{earlier + 1}.jsonl"
        )
    return (
        slot,
        place,
        Setback(
            epoch=packet.epoch,
            train_loss=packet.train_loss,
            val_loss=packet.val_loss,
            back_to=place.epoch,
            batches=place.batches,
            rate_share=None if earlier else RATE_SHARE,
        ),
    )


def _train(
    config: RunConfig,
    folder: RunFolder,
    ui: Ui,
    stop: StopSignals,
    *,
    slot: Path | None,
    place: Place | None,
    setback: Setback | None,
) -> RunRecord:
    policy = choose_policy(config.policy)
    blueprints = own_blueprints(config, folder, is_new=slot is None)
    means = choose_means(config.device, config.precision, config.accumulate)
    readers = Readers(config.workers, pin=means.device.type == "cuda")
    task = load_task(config.task, Source(path=config.data, target=config.target)).read_by(readers)
    host = build_host(config.host, task, seed=config.seed, width=config.width)
    for note in task.notes if setback is None else ():
        ui.say(f"[dim]data[/]   {escape(note)}")
    if config.workers and readers.are_idle and setback is None:
        ui.say(
            f"[yellow]note[/]   --workers {config.workers} brings nothing: the data of task "
            f"{escape(repr(task.name))} is in memory, where nothing is faster"
        )
    facts = facts_of(task)
    before = None if place is None else place.data_sha256
    data_changed = before not in (None, facts.data_sha256)
    if data_changed and setback is None:
        ui.say(
            "[yellow]note[/]   the data changed since this run was stopped: it goes on with what is there "
            "now, not to the weights that it would have come to"
        )
    layers = describe_layers(host)
    host = host.to(means.device)
    average = average_of(host, config.ema)  # before it has a bed, which no copy may have
    if slot is None:
        example = task.train.first(config.batch_size).inputs.to(means.device)
        bed = seed_bed_factory()(
            host,
            example=example,
            widen=config.widen,
            blueprints=blueprints,
            sample_compiled=config.compile,
        )
    else:
        bed = saved_beds().load(host, slot, blueprints=blueprints, sample_compiled=config.compile)
    if isinstance(policy, Scripted):
        policy.check(bed.sites)
    before = bed.num_parameters() if place is None else place.parameters_before
    record = RunRecord(
        config=config,
        run_id=folder.run_id,
        parameters_before=before,
        grown=Training(parameters=before, curve=[] if place is None else place.points()),
        layers=layers,
        environment=describe_environment(means),
        setbacks=[*(place.setbacks if place is not None else ()), *([setback] if setback else ())],
    )
    after = None if place is None else place.log
    with _threads(config.threads), readers, tracking(config, folder, ui.warn) as tracker:
        watch = Watch(ui=ui, tracker=tracker, stop=stop)
        with (
            trace_context(folder.run_id),
            EventLog(folder.path / LOG, after=after) as log,
            Runtime(folder.run_id, _urls(config, folder)) as runtime,
        ):
            if place is None:
                log.append("run", {"run_id": folder.run_id, "config": config.public()})
            elif setback is not None:
                log.append("went_back", setback)
            else:
                where = {"epoch": place.epoch, "batches": place.batches}
                log.append("resumed", where | {"data_changed": data_changed})
            if kept := keep_changed_config(folder, config):
                ui.say(
                    "[yellow]note[/]   config.yaml was changed since this run began; the run goes on with "
                    f"what it was told at first, and the changed file is kept as {kept.name}, for another run"
                )
            folder.write_text(
                "config.yaml", config.to_yaml()
            )  # to begin again, if all else is lost
            write_facts(folder.path, facts, task.encoding)
            learner = make_learner(bed.model, task, config, means, average)
            saver = Checkpoints(folder.path, config, after=slot)
            controller = Tamiyo(
                bed,
                learner.optimizer,
                scheduler=learner.scheduler,
                scaler=learner.scaler,
                copies=[] if average is None else [average],
                policy=policy,
                evaluate=learner.measure,
                epochs=config.epochs,
                batches_per_step=config.accumulate,
                runtime=runtime,
                log=log,
                resume=slot,
                on_forged=ui.forged,
            )
            try:
                grow(
                    controller,
                    learner,
                    record,
                    log,
                    saver,
                    watch,
                    facts,
                    place=place,
                    setback=setback,
                )
            finally:
                folder.can_go_on = bool(record.grown.curve) and saver.has_written
            save_model(folder, bed)
            keep_average(folder, bed, learner, record)
            if config.twin and not record.interrupted:
                train_twin(task, record, means, watch)
            stop.hold()
            record.complete = runtime.settle(num_field_reports=len(record.field_reports))
            log.append("result", _result(record))
            record.events_head = log.head
            record.events_lost, record.events_failure = log.lost, log.failure
        # After closing: what was still queued for a dead server counts as lost only then.
        record.topics, record.lost = runtime.topic_counts, runtime.lost
        record.unfiled = max(0, runtime.unfiled)
        save_summary(folder, record)
        folder.is_complete = not record.interrupted
        save_report(folder)
        tracker.end(record)
    return record


def own_blueprints(config: RunConfig, folder: RunFolder, *, is_new: bool) -> list[BlueprintIR]:
    """Return the user's designs; a run keeps them, so that it goes on with the same ones.

    Raises:
        BlueprintError: naming file, line and what is wrong.

    """
    kept = [
        folder.path / "blueprints" / f"{number}.json" for number in range(len(config.blueprints))
    ]
    if not is_new:
        return [read_blueprint(path) for path in kept]
    designs = [read_blueprint(path) for path in config.blueprints]
    if designs:
        kept[0].parent.mkdir(exist_ok=True)
    for path, design in zip(kept, designs, strict=True):
        folder.write_json(f"blueprints/{path.name}", design.model_dump(mode="json"))
    return designs


def choose_policy(name: str) -> Policy:
    """Return a policy by name: a built-in one, `scripted:RUN_FOLDER`, or `module:function` of one's own.

    Raises:
        NotFoundError, ConfigError: if there is no such policy or log, or it is none.

    """
    if name.startswith("scripted:"):
        return Scripted.from_log(name.removeprefix("scripted:"))
    policy = call("policy", name, resolve("policy", name, POLICIES))
    if not callable(getattr(policy, "propose", None)) or not hasattr(policy, "name"):
        raise ConfigError(
            f"policy {name!r} is {type_of(policy)}; expected something with a name and "
            "propose(observation), see esper.tamiyo.Policy"
        )
    return policy


def grow(
    controller: Tamiyo,
    learner: Learner,
    record: RunRecord,
    log: EventLog,
    saver: Checkpoints,
    watch: Watch,
    facts: TaskFacts,
    *,
    place: Place | None = None,
    setback: Setback | None = None,
) -> None:
    """Train the host with its seeds, from `place` on, filling `record.grown`.

    Raises:
        LossNotFiniteError: if the loss is not, and no block is to blame; filled then is nothing.

    """
    bed, stop = controller.bed, watch.stop
    progress = place.progress if place is not None else Progress()

    def save() -> None:
        here = Place(
            run_id=record.run_id,
            config=record.config.public(),
            parameters_before=record.parameters_before,
            epoch=len(record.grown.curve),
            batches=progress.batches,
            loss_sum=progress.loss_sum,
            curve=checkpoints.known(record.grown.curve),
            setbacks=tuple(record.setbacks),
            log=log.position,
            data_sha256=facts.data_sha256,
        )
        if not saver.write(controller, here):
            record.checkpoint_failure = saver.failure

    if controller.kernels and setback is None:
        kernels, sites = plural(len(controller.kernels), "kernel"), plural(len(bed.sites), "site")
        watch.ui.say(f"{kernels} forged and judged for {sites}")
    instead = shorter_epochs(record.config, facts.num_train)
    why = what_will_not_grow(controller, record.config.epochs, instead=instead)
    if place is None and why is not None:
        watch.ui.say(f"[yellow]note[/]   {escape(why)}")
    stop.defer()
    is_over = setback is not None and setback.is_end
    with controller:
        if setback is not None and setback.rate_share is not None:
            controller.slow_down(setback.rate_share)
        if place is None or (setback is not None and not is_over):
            save()
        if place is None and saver.has_written:
            command = escape(resume_command(record.config.out / record.run_id))
            watch.ui.say(f"[dim]run {record.run_id}; if it is killed: {command}[/]")
        going_on = epochs("grown", record.grown, learner, watch.ui, stop, progress=progress)
        with _until_stopped(record):
            for epoch in () if is_over else going_on:
                packet = controller.end_epoch(
                    val_loss=epoch.val_loss,
                    val_accuracy=epoch.val_accuracy,
                    train_loss=epoch.train_loss,
                )
                watch.ui.decisions("grown", packet)
                watch.tracker.epoch("grown", epoch, packet)
                diverging.check(packet, is_finite=epoch.is_finite)
                if saver.is_due() or len(record.grown.curve) == record.config.epochs:
                    save()
        stop.hold()
        if record.interrupted and math.isfinite(progress.loss_sum) and _is_finite(learner.model):
            save()
    record.interrupted = record.interrupted or is_over
    record.grown.parameters = bed.num_parameters()
    record.grown.hold_out(learner.measure("test"))
    record.best_constant = learner.task.best_constant()
    record.events = controller.events
    record.field_reports = controller.field_reports
    record.blueprint_names = {k.kernel_id: k.blueprint_name for k in controller.kernels}
    record.weights_sha256 = bed.weights_sha256()


def _is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(each).all()) for each in model.parameters())


def train_twin(task: Task, record: RunRecord, means: Means, watch: Watch) -> None:
    """Train the same host from the same seed, without Esper, filling `record.twin`."""
    config = record.config
    model = build_host(config.host, task, seed=config.seed, width=config.width).to(means.device)
    twin = Training(parameters=record.parameters_before)
    learner = make_learner(model, task, config, means, average_of(model, config.ema))
    watch.stop.defer()
    with _until_stopped(record, KeyboardInterrupt):  # the grown model is safe by now
        for epoch in epochs("twin", twin, learner, watch.ui, watch.stop):
            watch.tracker.epoch("twin", epoch, None)
            if not epoch.is_finite:
                break
        twin.hold_out(learner.measure("test"))
        if learner.average is not None:
            with averaged_weights(model, learner.average):
                twin.averaged = learner.measure("test")
        record.twin = twin


def _urls(config: RunConfig, folder: RunFolder) -> RuntimeUrls:
    """Fill in the embedded defaults, which live in the run folder."""
    here = folder.path.resolve()
    settings = load_settings()
    return RuntimeUrls(
        bus=f"memory://{folder.run_id}"
        if config.bus == "memory://"
        else settings.with_password(config.bus),
        library=settings.with_password(config.library or f"sqlite:///{here / 'library.db'}"),
        artifacts=config.artifacts or f"file://{here / 'artifacts'}",
    )


@contextmanager
def _threads(number: int) -> Generator[None]:
    """Compute with `number` threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _until_stopped(record: RunRecord, *others: type[BaseException]) -> Generator[None]:
    try:
        yield
    except (StopRequestedError, *others):
        record.interrupted = True


def _result(record: RunRecord) -> dict[str, object]:
    return {
        "weights_sha256": record.weights_sha256,
        "parameters": record.grown.parameters,
        "interrupted": record.interrupted,
    }
