"""The run behind `train`: puts the parts together and writes the run folder.

`run` is the story; its steps follow below it. This is the composition root: seed layer, bus, library
and workers come in through entry points.
"""

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from esper.contracts import (
    ConfigError,
    EventLog,
    SeedBed,
    load_settings,
    trace_context,
)
from esper.contracts.registry import seed_bed_factory
from esper.tamiyo.config import RunConfig
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.folder import RunFolder, run_folder
from esper.tamiyo.hosts import build_host
from esper.tamiyo.loading import call, resolve
from esper.tamiyo.policies import Chance, Gap, Heuristic, Never, Policy, Scripted
from esper.tamiyo.report import render_report
from esper.tamiyo.runtime import Runtime, RuntimeUrls
from esper.tamiyo.stopping import StopRequestedError, StopSignals
from esper.tamiyo.summary import Point, RunRecord, Training, summarise
from esper.tamiyo.tasks import Task, load_task
from esper.tamiyo.training import measure, train_epoch
from esper.tamiyo.ui import Ui

POLICIES: Mapping[str, Callable[[], Policy]] = {
    "gap": Gap,
    "heuristic": Heuristic,
    "random": Chance,
    "never": Never,
}
"""The policies that a run can name."""


def run(config: RunConfig, ui: Ui) -> RunRecord:
    """Train a host that grows, then its twin that does not; leave a run folder and return its record.

    Ctrl-C stops between two steps: what was trained so far is saved, and the record says so. The model
    is on disk before the twin is trained and before any server is waited for.

    Raises:
        EsperError: for anything wrong with the request or the servers; nothing is left behind.

    """
    with StopSignals() as stop:
        record = _run(config, ui, stop)
        ui.result(record, config.out / record.run_id)
    return record


def _run(config: RunConfig, ui: Ui, stop: StopSignals) -> RunRecord:
    policy = choose_policy(config.policy)
    task = load_task(config.task)
    host = build_host(config.host, task, seed=config.seed)
    example = task.train.inputs[: config.batch_size]
    bed = seed_bed_factory()(host, example=example, widen=config.widen)
    if isinstance(policy, Scripted):
        policy.check(bed.sites)
    record = RunRecord(
        config=config,
        parameters_before=bed.num_parameters(),
        grown=Training(parameters=bed.num_parameters()),
    )
    with run_folder(config) as folder, _threads(config.threads):
        record.run_id = folder.run_id
        with (
            trace_context(folder.run_id),
            EventLog(folder.path / "events.jsonl") as log,
            Runtime(folder.run_id, _urls(config, folder)) as runtime,
        ):
            log.append("run", {"run_id": folder.run_id, "config": config.public()})
            grow(bed, task, policy, record, runtime, log, ui, stop)
            save_model(folder, bed, record)
            if config.twin and not record.interrupted:
                train_twin(task, record, ui, stop)
            stop.hold()
            record.complete = runtime.settle(num_field_reports=len(record.field_reports))
            log.append("result", _result(record))
            record.events_head = log.head
            record.events_lost, record.events_failure = log.lost, log.failure
        # After closing: what was still queued for a dead server counts as lost only then.
        record.topics, record.lost = runtime.topic_counts, runtime.lost
        record.unfiled = runtime.unfiled
        _save_record(folder, record)
    return record


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
            f"policy {name!r} is a {type(policy).__name__}; expected something with a name and "
            "propose(observation), see esper.tamiyo.Policy"
        )
    return policy


def grow(
    bed: SeedBed,
    task: Task,
    policy: Policy,
    record: RunRecord,
    runtime: Runtime,
    log: EventLog,
    ui: Ui,
    stop: StopSignals,
) -> None:
    """Train the host with its seeds, filling `record.grown`."""
    config, model = record.config, bed.model
    optimizer = _optimizer(model, config)
    controller = Tamiyo(
        bed,
        optimizer,
        policy=policy,
        evaluate=lambda: measure(model, task.validation),
        epochs=config.epochs,
        runtime=runtime,
        log=log,
    )
    ui.say(f"{len(controller.kernels)} kernels forged and judged for {len(bed.sites)} sites")
    stop.defer()
    with controller, _until_stopped(record):
        for epoch in _epochs("grown", record.grown, model, optimizer, task, config, ui, stop):
            packet = controller.end_epoch(
                val_loss=epoch.val_loss,
                val_accuracy=epoch.val_accuracy,
                train_loss=epoch.train_loss,
            )
            ui.decisions("grown", packet)
    stop.hold()
    record.grown.parameters = bed.num_parameters()
    record.grown.held_out = measure(model, task.test)
    record.events = controller.events
    record.field_reports = controller.field_reports
    record.blueprint_names = {k.kernel_id: k.blueprint_name for k in controller.kernels}
    record.weights_sha256 = bed.weights_sha256()


def train_twin(task: Task, record: RunRecord, ui: Ui, stop: StopSignals) -> None:
    """Train the same host from the same seed, without Esper, filling `record.twin`."""
    config = record.config
    model = build_host(config.host, task, seed=config.seed)
    twin = Training(parameters=record.parameters_before)
    stop.defer()
    with _until_stopped(record, KeyboardInterrupt):  # the grown model is safe by now
        for _ in _epochs("twin", twin, model, _optimizer(model, config), task, config, ui, stop):
            pass
        twin.held_out = measure(model, task.test)
        record.twin = twin


def _epochs(
    label: str,
    training: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    config: RunConfig,
    ui: Ui,
    stop: StopSignals,
) -> Iterator[Point]:
    """Train epoch by epoch, yielding each one's figures at its decision point."""
    ui.begin(label, config.epochs)
    for epoch in range(config.epochs):
        train_loss = train_epoch(
            model,
            optimizer,
            task.train,
            batch_size=config.batch_size,
            order_seed=config.seed * 1_000_003 + epoch,
            stop=stop.honour,
        )
        figures = measure(model, task.validation)
        point = Point(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=figures.loss,
            val_accuracy=figures.accuracy,
            parameters=sum(p.numel() for p in model.parameters()),
        )
        training.curve.append(point)
        ui.epoch(label, point, config.epochs)
        yield point


def _optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate)


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


def save_model(folder: RunFolder, bed: SeedBed, record: RunRecord) -> None:
    """Write the model and how to repeat it; the folder is kept from here on.

    With no room there, the model goes to the system's folder for temporary files: hours of training
    must not be lost to a full disk.

    Raises:
        ConfigError: if it cannot be written there either.

    """
    try:
        bed.save(folder.path)
        folder.write_text("config.yaml", record.config.to_yaml())
    except OSError as error:
        refuge = _save_elsewhere(bed)
        where = f"the model was saved in {refuge}" if refuge is not None else "the model is lost"
        raise ConfigError(
            f"the run could not be saved in {folder.final_path}: {_reason(error)}; {where}. "
            "Make room or choose another folder with --out"
        ) from error
    folder.keep = True


def _save_elsewhere(bed: SeedBed) -> Path | None:
    try:
        refuge = Path(tempfile.mkdtemp(prefix="esper-model-"))
        bed.save(refuge)
    except OSError:
        return None
    return refuge


def _save_record(folder: RunFolder, record: RunRecord) -> None:
    """Write what a person and a program want to know of the run."""
    try:
        folder.write_json("summary.json", summarise(record))
        folder.write_text("report.html", render_report(record))
    except OSError as error:
        raise ConfigError(
            f"the report could not be saved in {folder.final_path}: {_reason(error)}; "
            "make room or choose another folder with --out"
        ) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
