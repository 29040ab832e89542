"""The run behind `train`: puts the parts together and writes the run folder.

`run` is the story; its steps follow below it. This is the composition root: seed layer, bus, library
and workers come in through entry points.
"""

import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape

from esper.contracts import (
    BlueprintIR,
    ConfigError,
    EventLog,
    SeedBed,
    load_settings,
    read_blueprint,
    trace_context,
)
from esper.contracts.registry import saved_beds, seed_bed_factory
from esper.contracts.words import plural, type_of
from esper.tamiyo import checkpoints
from esper.tamiyo.averaging import average_of, averaged_weights
from esper.tamiyo.checkpoints import Checkpoints, Place
from esper.tamiyo.config import RunConfig, override
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.environment import describe_environment, describe_layers
from esper.tamiyo.epochs import Learner, epochs, make_learner
from esper.tamiyo.folder import RunFolder, reopened_folder, run_folder
from esper.tamiyo.foreseeing import why_nothing_grows
from esper.tamiyo.hosts import build_host
from esper.tamiyo.loading import call, resolve
from esper.tamiyo.policies import Chance, Gap, Heuristic, Never, Policy, Scripted
from esper.tamiyo.runtime import Runtime, RuntimeUrls
from esper.tamiyo.stopping import StopRequestedError, StopSignals
from esper.tamiyo.summary import RunRecord, Training, summarise
from esper.tamiyo.tasks import Readers, Source, Task, load_task
from esper.tamiyo.tasks.facts import write_facts
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

AVERAGED = "ema"
"""The folder of the averaged weights in the run folder; `esper.kasmina.load` reads both."""


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
        EsperError: for anything wrong with the request or the servers; nothing is left behind.

    """
    with StopSignals() as stop, run_folder(config) as folder:
        record = _run(config, folder, ui, stop)
    ui.result(record, folder.final_path)
    return record


def resume(path: Path, ui: Ui) -> RunRecord:
    """Go on with a run that was stopped or killed, from its newest checkpoint, to the same final weights.

    Raises:
        NotFoundError: if there is no such run, or it has no checkpoint.
        ConfigError: if it is complete.
        EsperError: as `run`; the run folder stays as it was.

    """
    with StopSignals() as stop, reopened_folder(path) as folder:
        slot, place, problems = checkpoints.newest(folder.path)
        config = override(RunConfig(), place.config | {"out": folder.final_path.parent})
        for problem in problems:
            ui.say(f"[yellow]note[/]   an older checkpoint is used: {escape(problem)}")
        done = f"epoch {place.epoch + 1} of {config.epochs}" + (
            f", behind {place.batches} mini-batches" if place.batches else ""
        )
        ui.say(f"going on with {folder.final_path} at {done}")
        record = _run(config, folder, ui, stop, slot=slot, place=place)
    ui.result(record, folder.final_path)
    return record


def _run(
    config: RunConfig,
    folder: RunFolder,
    ui: Ui,
    stop: StopSignals,
    *,
    slot: Path | None = None,
    place: Place | None = None,
) -> RunRecord:
    policy = choose_policy(config.policy)
    blueprints = own_blueprints(config, folder, is_new=slot is None)
    means = choose_means(config.device, config.precision, config.accumulate)
    readers = Readers(config.workers, pin=means.device.type == "cuda")
    task = load_task(config.task, Source(path=config.data, target=config.target)).read_by(readers)
    host = build_host(config.host, task, seed=config.seed, width=config.width)
    for note in task.notes:
        ui.say(f"[dim]data[/]   {escape(note)}")
    if config.workers and readers.are_idle:
        ui.say(
            f"[yellow]note[/]   --workers {config.workers} brings nothing: the data of task "
            f"{escape(repr(task.name))} is in memory, where nothing is faster"
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
    )
    after = None if place is None else place.log
    with _threads(config.threads), readers, tracking(config, folder, ui.warn) as tracker:
        watch = Watch(ui=ui, tracker=tracker, stop=stop)
        with (
            trace_context(folder.run_id),
            EventLog(folder.path / "events.jsonl", after=after) as log,
            Runtime(folder.run_id, _urls(config, folder)) as runtime,
        ):
            if place is None:
                log.append("run", {"run_id": folder.run_id, "config": config.public()})
            else:
                log.append("resumed", {"epoch": place.epoch, "batches": place.batches})
            folder.write_text(
                "config.yaml", config.to_yaml()
            )  # to begin again, if all else is lost
            write_facts(folder.path, task)
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
                grow(controller, learner, record, log, saver, watch, place=place)
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
        record.unfiled = runtime.unfiled
        _save_record(folder, record)
        tracker.end(record)
    if not record.interrupted:
        saver.clear()
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
    *,
    place: Place | None = None,
) -> None:
    """Train the host with its seeds, from `place` on, filling `record.grown`."""
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
            log=log.position,
        )
        if not saver.write(controller, here):
            record.checkpoint_failure = saver.failure

    watch.ui.say(
        f"{plural(len(controller.kernels), 'kernel')} forged and judged for {plural(len(bed.sites), 'site')}"
    )
    if place is None and (why := why_nothing_grows(controller, record.config.epochs)) is not None:
        watch.ui.say(f"[yellow]note[/]   {escape(why)}")
    stop.defer()
    with controller:
        if place is None:
            save()
        with _until_stopped(record):
            for epoch in epochs("grown", record.grown, learner, watch.ui, stop, progress=progress):
                packet = controller.end_epoch(
                    val_loss=epoch.val_loss,
                    val_accuracy=epoch.val_accuracy,
                    train_loss=epoch.train_loss,
                )
                watch.ui.decisions("grown", packet)
                watch.tracker.epoch("grown", epoch, packet)
                if saver.is_due() or len(record.grown.curve) == record.config.epochs:
                    save()
        stop.hold()
        if record.interrupted:
            save()
    record.grown.parameters = bed.num_parameters()
    record.grown.held_out = learner.measure("test")
    record.events = controller.events
    record.field_reports = controller.field_reports
    record.blueprint_names = {k.kernel_id: k.blueprint_name for k in controller.kernels}
    record.weights_sha256 = bed.weights_sha256()


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
        twin.held_out = learner.measure("test")
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


def save_model(folder: RunFolder, bed: SeedBed) -> None:
    """Write the model; the folder is kept from here on.

    With no room there, the model goes to the system's folder for temporary files: hours of training
    must not be lost to a full disk.

    Raises:
        ConfigError: if it cannot be written there either.

    """
    try:
        bed.save(folder.path)
    except OSError as error:
        refuge = _save_elsewhere(bed)
        where = f"the model was saved in {refuge}" if refuge is not None else "the model is lost"
        raise ConfigError(
            f"the run could not be saved in {folder.final_path}: {_reason(error)}; {where}. "
            "Make room or choose another folder with --out"
        ) from error
    folder.keep = True


def keep_average(folder: RunFolder, bed: SeedBed, learner: Learner, record: RunRecord) -> None:
    """Measure the moving average of the weights and write it beside the model, if the run keeps one.

    Raises:
        ConfigError: if it cannot be written.

    """
    if learner.average is None:
        return
    with averaged_weights(bed.model, learner.average):
        record.grown.averaged = learner.measure("test")
        record.averaged_sha256 = bed.weights_sha256()
        try:
            bed.save(folder.path / AVERAGED)
        except OSError as error:
            raise ConfigError(
                f"the averaged weights could not be saved in {folder.final_path}: {_reason(error)}; "
                "the model as trained was saved"
            ) from error


def _save_elsewhere(bed: SeedBed) -> Path | None:
    try:
        refuge = Path(tempfile.mkdtemp(prefix="esper-model-"))
        bed.save(refuge)
    except OSError:
        return None
    return refuge


def _save_record(folder: RunFolder, record: RunRecord) -> None:
    """Write what a person and a program want to know of the run."""
    from esper.tamiyo.report import write_report  # with its pictures it takes a second to import

    try:
        folder.write_json("summary.json", summarise(record))
        write_report(folder.path)
    except OSError as error:
        raise ConfigError(
            f"the report could not be saved in {folder.final_path}: {_reason(error)}; "
            "make room or choose another folder with --out"
        ) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
