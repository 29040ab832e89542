"""Replays what another run grew: the same blocks at the same places and epochs, read from its event log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from esper.contracts import (
    Action,
    Candidate,
    CompiledKernelArtifact,
    ConfigError,
    NotFoundError,
    SeedState,
    Site,
    SystemStatePacket,
    read_chain,
)
from esper.contracts.words import place
from esper.tamiyo.policies.policy import Attention, Observation, Proposal


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """Grows at each epoch exactly what the script says."""

    name = "scripted"

    script: Mapping[int, Sequence[Candidate]]
    """What to germinate, by epoch."""

    @classmethod
    def from_log(cls, path: Path | str) -> Self:
        """Read the script from a run folder or its `events.jsonl`.

        Raises:
            NotFoundError: if there is no such log.
            ChainError: if it was changed or damaged.
            ConfigError: if it is no log of a run.

        """
        path = Path(path)
        log = path / "events.jsonl" if path.is_dir() else path
        if not log.is_file():
            raise NotFoundError(f"there is no log {log}; give a run folder or its events.jsonl")
        script: dict[int, list[Candidate]] = {}
        epochs = 0
        for event in read_chain(log):
            if event.kind != "epoch":
                continue
            epochs += 1
            try:
                packet = SystemStatePacket.model_validate(event.data)
            except ValidationError as error:
                raise ConfigError(f"{log}: event {event.seq} is no epoch of a run") from error
            for decision in packet.decisions:
                if decision.action is Action.GERMINATE:
                    chosen = [c for c in decision.candidates if c.seed_id == decision.seed_id]
                    script.setdefault(packet.epoch, []).extend(chosen[:1])
        if not epochs:
            raise ConfigError(f"{log} has no epoch in it; expected the log of a run")
        return cls(script=script)

    def attention(self, observation: Observation) -> Attention:  # noqa: ARG002
        """Return that it looks at nothing: all is decided."""
        return Attention.NONE

    def propose(self, observation: Observation) -> Proposal:
        """Return the script's next seed for this epoch that is still dormant.

        What this run cannot grow is left out, with the reason: training is never lost to a script.
        """
        seeds = {seed.seed_id: seed for seed in observation.seeds}
        kernels = {kernel.kernel_id for kernel in observation.kernels}
        missing: list[str] = []
        for wanted in self.script.get(observation.epoch, ()):
            seed = seeds.get(wanted.seed_id)
            if seed is None or seed.site != wanted.site or wanted.kernel_id not in kernels:
                missing.append(f"{wanted.blueprint_name} at {wanted.site} {wanted.seed_id}")
                continue
            if seed.state is SeedState.DORMANT:
                reason = f"the script says so at epoch {observation.epoch + 1}"
                return Proposal(chosen=wanted, reason=reason, candidates=[wanted])
        reason = f"the script has nothing for epoch {observation.epoch + 1}"
        if missing:
            reason = f"the script grows what this run has not: {', '.join(missing)}"
        return Proposal(chosen=None, reason=reason)

    def without_kernel(self, kernels: Sequence[CompiledKernelArtifact]) -> list[str]:
        """Return in words what the script grows that is not among these kernels."""
        known = {kernel.kernel_id for kernel in kernels}
        return [
            f"{wanted.blueprint_name} at {place(wanted.site)} in epoch {epoch + 1}"
            for epoch, chosen in self.script.items()
            for wanted in chosen
            if wanted.kernel_id not in known
        ]

    def check(self, sites: Sequence[Site]) -> None:
        """Pass silently if a host with these sites can grow what the script says.

        Raises:
            ConfigError: naming the first place that it has not.

        """
        names = {site.layer_id: site for site in sites}
        for epoch, chosen in self.script.items():
            for wanted in chosen:
                site = names.get(wanted.seed_id[0])
                fits = site is not None and site.label == wanted.site
                if site is None or not fits or wanted.seed_id[1] >= site.num_places:
                    raise ConfigError(
                        f"the script grows {wanted.blueprint_name} at {wanted.site!r} {wanted.seed_id} at "
                        f"epoch {epoch + 1}, and this host has no such place: replay it on the same host, "
                        "wrapped in the same way"
                    )
