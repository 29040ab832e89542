"""What the adapters share: a controller that is opened and closed with somebody else's training.

Reads metrics by name as a trainer measured them, and hands them to `Tamiyo` as one decision point.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from esper.contracts import ConfigError, EventLog, SeedBed, SystemStatePacket
from esper.contracts.words import type_of
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.policies import Policy
from esper.tamiyo.runtime import Runtime
from esper.tamiyo.verdict import Evaluate


class Options(TypedDict, total=False):
    """What a callback passes on to `Tamiyo` as it is."""

    copies: Sequence[Any]
    policy: Policy | None
    evaluate: Evaluate | None
    runtime: Runtime | None
    log: EventLog | None


class Keeper:
    """Keeps one bed under control while somebody else's trainer is at work."""

    def __init__(
        self,
        bed: SeedBed,
        *,
        val_loss: str,
        val_accuracy: str | None,
        **options: Unpack[Options],
    ) -> None:
        if not hasattr(bed, "execute"):
            raise ConfigError(
                f"GrowCallback got {type_of(bed)}; expected the seed bed of the model that is "
                "trained: GrowCallback(wrap(model))"
            )
        self.bed = bed
        self.packets: list[SystemStatePacket] = []
        self._names = {"val_loss": val_loss, "val_accuracy": val_accuracy}
        self._options = options
        self._measured: dict[str, float] = {}
        self._tamiyo: Tamiyo | None = None

    def open(self, model: Any, optimizer: Any, **trainer: Any) -> None:
        """Take control of the bed, if `model` is or holds its host; `trainer` is for `Tamiyo`."""
        self.close()
        if not any(module is self.bed.model for module in model.modules()):
            raise ConfigError(
                f"the {type(model).__name__} that is trained has no part that this seed bed belongs to; "
                "give GrowCallback the bed that wrap() made of this model, or of a module in it"
            )
        here = {parameter.device.type for parameter in self.bed.model.parameters()}
        if elsewhere := {site.signature.device for site in self.bed.sites} - here:
            raise ConfigError(
                f"the model is on {', '.join(here)}, but was wrapped on {', '.join(elsewhere)}; move it to "
                "its device before wrap(model)"
            )
        self._tamiyo = Tamiyo(self.bed, optimizer, **trainer, **self._options)

    def measure(self, metrics: Mapping[str, Any]) -> None:
        """Note what a validation found; the next `decide` goes by it."""
        if self._tamiyo is not None:
            self._measured |= {name: value for name, value in metrics.items() if value is not None}

    def decide(self) -> None:
        """Take the decisions that are due, if a validation took place since the last ones."""
        if self._tamiyo is None or not self._measured:
            return
        measured, self._measured = self._measured, {}
        found: dict[str, float] = {}
        for figure, name in self._names.items():
            if name is None:
                continue
            if name not in measured:
                known = ", ".join(sorted(measured))
                raise ConfigError(
                    f"no {name!r} was logged, which GrowCallback reads as {figure}; log it, or say "
                    f"GrowCallback(bed, {figure}=…) with one of: {known}"
                )
            found[figure] = float(measured[name])
        self.packets.append(self._tamiyo.end_epoch(**found))

    def close(self) -> None:
        """Let go of the bed; idempotent."""
        self._measured = {}
        if self._tamiyo is not None:
            self._tamiyo.close()
        self._tamiyo = None
