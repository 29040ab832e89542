"""A run as its folder tells it: what reports, comparisons and explanations are made from.

Read from `summary.json` (figures), `lineage.json` (where what grew) and `events.jsonl` (all that happened,
hash-chained). Of a log that was damaged the whole lines before the damage are told, and the damage is said.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esper.contracts import (
    Action,
    AdaptationSignal,
    ChainedEvent,
    ChainError,
    CompiledKernelArtifact,
    ConfigError,
    FieldReport,
    HealthSignal,
    NotFoundError,
    SeedEvent,
    SeedId,
    SeedState,
    Site,
    SystemStatePacket,
    read_chain,
)
from esper.contracts.words import type_of
from esper.tamiyo.config import RunConfig, override
from esper.tamiyo.diverging import Setback
from esper.tamiyo.folder import CHECKPOINTS, LOG, resume_command
from esper.tamiyo.summary import Layer, Point, Training, figures_from_json
from esper.tamiyo.verdict import Figures


@dataclass(kw_only=True)
class Attempt:
    """One block on its way, from the decision to grow it to its end."""

    seed_id: SeedId
    site: str
    kernel_id: str
    name: str
    """Of the blueprint."""
    parameters: int
    """Of the block."""
    states: list[SeedEvent] = field(default_factory=list[SeedEvent])
    decision: AdaptationSignal | None = None
    """By which it began, with everything else that could have been grown."""
    report: FieldReport | None = None
    """What it did to the figures; None while that is open."""

    @property
    def is_kept(self) -> bool:
        """Whether the block stayed."""
        return bool(self.states) and self.states[-1].to_state is SeedState.FOSSILIZED

    @property
    def is_over(self) -> bool:
        """Whether its fate is sealed."""
        return self.report is not None

    @property
    def begun(self) -> int:
        """The epoch of the decision, counted from 0."""
        return self.states[0].epoch

    @property
    def ended(self) -> int:
        """The epoch of the last change of state; the end of an embargo is none of its own."""
        return [each for each in self.states if each.to_state is not SeedState.DORMANT][-1].epoch


@dataclass(kw_only=True)
class Story:
    """One run."""

    run_id: str
    config: RunConfig
    summary: dict[str, Any]
    """As it is in the file."""
    grown: Training
    twin: Training | None
    layers: Sequence[Layer]
    """Of the host before it grew."""
    sites: Sequence[Site]
    best_constant: Figures | None = None
    """How good always giving the same answer is on held-out data, where known."""
    packets: list[SystemStatePacket] = field(default_factory=list[SystemStatePacket])
    """One for each epoch."""
    health: list[HealthSignal] = field(default_factory=list[HealthSignal])
    kernels: dict[str, CompiledKernelArtifact] = field(
        default_factory=dict[str, CompiledKernelArtifact]
    )
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    setbacks: Sequence[Setback] = ()
    """When the loss was not finite and no block was to blame."""
    damage: str | None = None
    """Why the log could not be read to its end; None if it was, and its chain holds."""

    @property
    def parameters_before(self) -> int:
        """Of the host before it grew."""
        return int(self.summary["parameters_before"])

    @property
    def is_interrupted(self) -> bool:
        """Whether the run was stopped before its end."""
        return bool(self.summary["interrupted"])

    @property
    def kept(self) -> list[Attempt]:
        """What stayed."""
        return [attempt for attempt in self.attempts if attempt.is_kept]

    @property
    def removed(self) -> list[Attempt]:
        """What went again."""
        return [each for each in self.attempts if each.is_over and not each.is_kept]

    @property
    def decisions(self) -> list[AdaptationSignal]:
        """Everything that was decided, in order."""
        return [decision for packet in self.packets for decision in packet.decisions]


def read_story(folder: Path) -> Story:
    """Read the folder of a run.

    Raises:
        NotFoundError: if there is no such run, or it did not come to its end.
        ConfigError: if a file is none that a run writes.

    """
    if not folder.is_dir():
        if folder.with_name(f".{folder.name}.partial").is_dir():
            raise NotFoundError(
                f"the run {folder} has not come to its end; {resume_command(folder)} goes on with it"
            )
        raise NotFoundError(f"there is no run folder {folder}; give one, for example runs/ID")
    summary = read_json(folder, "summary.json")
    lineage = read_json(folder, "lineage.json")
    try:
        story = Story(
            run_id=summary["run_id"],
            config=override(RunConfig(), summary["config"]),
            summary=summary,
            grown=_training(summary["grown"]),
            twin=_training(summary["twin"]) if summary["twin"] is not None else None,
            layers=[Layer(**layer) for layer in summary["layers"]],
            sites=[Site.model_validate(site) for site in lineage["sites"]],
            best_constant=figures_from_json(summary.get("best_constant")),
            setbacks=[Setback.model_validate(each) for each in summary.get("setbacks", ())],
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"{folder}: summary.json and lineage.json are not what this version of Esper writes "
            f"({type(error).__name__}: {error})"
        ) from error
    story.damage = _damage_of(folder, lambda: _read_events(folder, story))
    return story


def damage_of(folder: Path, summary: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the record of the run that `summary` tells of; None if it is whole."""
    return _damage_of(folder, lambda: deque(_events(folder, summary), maxlen=0))


def _events(folder: Path, summary: Mapping[str, Any]) -> Iterator[ChainedEvent]:
    """Yield what is on record, to the end that the summary knows; a run that was stopped may have gone on."""
    head = None if summary.get("interrupted") else summary.get("events_head")
    return read_chain(folder / LOG, head=head or None)


def _damage_of(folder: Path, read: Callable[[], object]) -> str | None:
    try:
        read()
    except FileNotFoundError:
        return f"{folder / LOG} is missing"
    except (ChainError, ValidationError, OSError) as error:
        return " ".join(str(error).split())
    return None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return what a file of a run holds.

    Raises:
        NotFoundError: if there is no such file.
        ConfigError: if it is damaged.

    """
    path = folder / name
    if not path.is_file():
        raise NotFoundError(
            f"{folder} has no {name}: it is no run folder, or its run did not come to an end; then "
            f"`{resume_command(folder)}` goes on with it"
        )
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        way = "restore a copy"
        if name == "summary.json" and (folder / CHECKPOINTS).is_dir():
            way = f"`{resume_command(folder)}` writes it again"
        raise ConfigError(f"{path} is no JSON ({error}); it was damaged: {way}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type_of(content)}; expected an object")
    return content  # pyright: ignore[reportUnknownVariableType]


def _training(data: dict[str, Any]) -> Training:
    curve = [Point(**(point | _lost(point))) for point in data["curve"]]
    return Training(
        parameters=data["parameters"],
        curve=curve,
        held_out=figures_from_json(data),
        averaged=figures_from_json(data.get("averaged")),
    )


def _lost(point: dict[str, Any]) -> dict[str, float]:
    """Return the losses that JSON had no number for."""
    return {name: math.nan for name in ("train_loss", "val_loss") if point[name] is None}


def _read_events(folder: Path, story: Story) -> None:
    open_attempts: dict[SeedId, Attempt] = {}
    for event in _events(folder, story.summary):
        match event.kind:
            case "kernel":
                kernel = CompiledKernelArtifact.model_validate(event.data)
                story.kernels[kernel.kernel_id] = kernel
            case "health":
                story.health.append(HealthSignal.model_validate(event.data))
            case "transition":
                change = SeedEvent.model_validate(event.data)
                _follow(change, story, open_attempts)
            case "field_report":
                report = FieldReport.model_validate(event.data)
                if report.seed_id in open_attempts:
                    open_attempts[report.seed_id].report = report
            case "epoch":
                packet = SystemStatePacket.model_validate(event.data)
                story.packets.append(packet)
                for decision in packet.decisions:
                    if decision.action is Action.GERMINATE and decision.seed_id in open_attempts:
                        open_attempts[decision.seed_id].decision = decision
            case _:
                pass


def _follow(change: SeedEvent, story: Story, open_attempts: dict[SeedId, Attempt]) -> None:
    """Note a change of state in the attempt that it belongs to."""
    if change.to_state is SeedState.GERMINATED or change.seed_id not in open_attempts:
        kernel = story.kernels.get(change.kernel_id or "")
        attempt = Attempt(
            seed_id=change.seed_id,
            site=change.site,
            kernel_id=change.kernel_id or "",
            name=kernel.blueprint_name if kernel is not None else "unknown",
            parameters=kernel.num_parameters if kernel is not None else 0,
        )
        open_attempts[change.seed_id] = attempt
        story.attempts.append(attempt)
    open_attempts[change.seed_id].states.append(change)
