"""What a run came to: the record that the trainer fills and `summary.json` is made from."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from esper.contracts import FieldReport, SeedEvent, SeedState
from esper.tamiyo.config import RunConfig
from esper.tamiyo.diverging import Setback
from esper.tamiyo.stopping import StoppedEarlyError
from esper.tamiyo.verdict import Figures

_ROUNDING = 1e-6
"""Of means in float32."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One epoch on a curve."""

    epoch: int
    """Counted from 0, as in all data; what a person reads counts from 1."""
    train_loss: float
    val_loss: float
    val_accuracy: float | None
    parameters: int
    flops: int | None = None
    """Of one forward pass over one sample (`environment.count_flops`)."""

    @property
    def is_finite(self) -> bool:
        """Whether both losses are finite."""
        return math.isfinite(self.train_loss) and math.isfinite(self.val_loss)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of the host as it was given."""

    name: str
    kind: str
    """The class of the module."""
    parameters: int


@dataclass(kw_only=True)
class Training:
    """One trained model: its curve, and its figures on held-out data."""

    parameters: int
    curve: list[Point] = field(default_factory=list[Point])
    held_out: Figures | None = None
    """On test data, which no decision was based on; None until trained, and where the loss is not finite."""
    averaged: Figures | None = None
    """Those of the moving average of the weights, where the run keeps one."""

    def hold_out(self, figures: Figures) -> None:
        """Note the figures on held-out data; a model whose loss is not finite has none worth the name."""
        self.held_out = figures if math.isfinite(figures.loss) else None

    def as_json(self) -> dict[str, Any]:
        """Return the figures as `summary.json` shows them."""
        return {
            **(figures_as_json(self.held_out) or {"accuracy": None, "loss": None}),
            "parameters": self.parameters,
            "averaged": figures_as_json(self.averaged),
            "curve": [
                {key: _finite(value) for key, value in asdict(point).items()}
                for point in self.curve
            ],
        }


def has_learned_nothing(figures: Figures | None, constant: Figures | None) -> bool:
    """Tell whether neither loss nor accuracy is better than that of the best answer that is always the same.

    Of data on which such an answer is perfect nothing is said.
    """
    if figures is None or constant is None or constant.loss <= 0:
        return False
    if figures.loss < constant.loss * (1 - _ROUNDING):
        return False
    if figures.accuracy is None or constant.accuracy is None:
        return True
    return figures.accuracy <= constant.accuracy + _ROUNDING


def figures_as_json(figures: Figures | None) -> dict[str, float | None] | None:
    """Return a model's figures as `summary.json` shows them."""
    if figures is None:
        return None
    return {"accuracy": figures.accuracy, "loss": _finite(figures.loss)}


def figures_from_json(data: Mapping[str, Any] | None) -> Figures | None:
    """Return what `figures_as_json` wrote; None where there was no loss.

    Raises:
        KeyError, TypeError: if it is something else.

    """
    if data is None or data["loss"] is None:
        return None
    numbers = [data["loss"], *([] if data["accuracy"] is None else [data["accuracy"]])]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"expected numbers, not {numbers}")
    return Figures(loss=data["loss"], accuracy=data["accuracy"])


def _finite(value: float | None) -> float | None:
    """Return `value`, or None where it is none or no number that JSON can hold."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(kw_only=True)
class RunRecord:
    """Everything that a run leaves behind, as it comes to be."""

    config: RunConfig
    parameters_before: int
    grown: Training
    run_id: str = ""
    best_constant: Figures | None = None
    """How good always giving the same answer is on held-out data (`Task.best_constant`), where known."""
    twin: Training | None = None
    events: Sequence[SeedEvent] = ()
    field_reports: Sequence[FieldReport] = ()
    blueprint_names: dict[str, str] = field(default_factory=dict[str, str])
    """By kernel id."""
    topics: dict[str, int] = field(default_factory=dict[str, int])
    lost: dict[str, int] = field(default_factory=dict[str, int])
    weights_sha256: str = ""
    averaged_sha256: str | None = None
    """Of the moving average of the weights, where the run keeps one."""
    events_head: str = ""
    complete: bool = True
    """Whether bus and library confirmed everything."""
    unfiled: int = 0
    """Outcomes that the library did not confirm."""
    events_lost: int = 0
    """Events that could not be written into the event log."""
    events_failure: str | None = None
    """Why, if any."""
    interrupted: bool = False
    """Whether it ended before its last epoch: the user stopped it, or it diverged."""
    setbacks: Sequence[Setback] = ()
    """When the loss was not finite and no block was to blame, oldest first."""
    checkpoint_failure: str | None = None
    """Why the last checkpoint could not be written; None if it could."""
    layers: Sequence[Layer] = ()
    """Of the host before it grew."""
    environment: dict[str, str] = field(default_factory=dict[str, str])
    """What the run ran on."""

    def stop_if_interrupted(self) -> None:
        """Raise `StoppedEarlyError` if the user stopped the run."""
        if self.interrupted:
            raise StoppedEarlyError


def adaptations(record: RunRecord) -> list[dict[str, Any]]:
    """Return every attempt to grow, in order, with the states it went through.

    An attempt begins with GERMINATED, or where a loaded model had got to; the return of a culled site to
    DORMANT closes it.
    """
    attempts: list[dict[str, Any]] = []
    open_attempts: dict[tuple[int, int], dict[str, Any]] = {}
    for event in record.events:
        if event.seed_id not in open_attempts or event.to_state is SeedState.GERMINATED:
            open_attempts[event.seed_id] = {
                "seed_id": list(event.seed_id),
                "site": event.site,
                "blueprint": record.blueprint_names.get(event.kernel_id or "", "unknown"),
                "kernel": event.kernel_id,
                "states": [{"state": event.from_state.value, "epoch": 0}],
                "outcome": None,
            }
            attempts.append(open_attempts[event.seed_id])
        attempt = open_attempts[event.seed_id]
        attempt["states"].append({"state": event.to_state.value, "epoch": event.epoch})
        if event.to_state is not SeedState.DORMANT:
            attempt["outcome"] = event.to_state.value
    return attempts


def summarise(record: RunRecord) -> dict[str, Any]:
    """Return the content of `summary.json`: data for programs, so its epochs count from 0."""
    return {
        "run_id": record.run_id,
        "task": record.config.task,
        "host": record.config.host,
        "seed": record.config.seed,
        "policy": record.config.policy,
        "epochs": record.config.epochs,
        "first_epoch": 0,
        "parameters_before": record.parameters_before,
        "best_constant": figures_as_json(record.best_constant),
        "grown": record.grown.as_json(),
        "twin": record.twin.as_json() if record.twin is not None else None,
        "adaptations": adaptations(record),
        "topics": record.topics,
        "lost": record.lost,
        "complete": record.complete,
        "unfiled": record.unfiled,
        "events_lost": record.events_lost,
        "weights_sha256": record.weights_sha256,
        "averaged_sha256": record.averaged_sha256,
        "events_head": record.events_head,
        "interrupted": record.interrupted,
        "setbacks": [json.loads(setback.model_dump_json()) for setback in record.setbacks],
        "events_failure": record.events_failure,
        "config": record.config.public(),
        "layers": [asdict(layer) for layer in record.layers],
        "environment": record.environment,
    }
