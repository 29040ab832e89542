"""Tamiyo in somebody's own loop: the README's snippet, exact undo, commands from outside."""

import asyncio
import copy
import itertools
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from esper.contracts import (
    CompiledKernelArtifact,
    ConfigError,
    KasminaCommand,
    KernelRejectedError,
    SeedEvent,
    SeedState,
    SeedStatus,
    SystemStatePacket,
)
from esper.contracts.registry import bus_factory
from esper.kasmina import StageLengths, load, wrap
from esper.kasmina.graft import Graft
from esper.tamiyo import (
    Figures,
    Growing,
    Heuristic,
    Never,
    Observation,
    Plateau,
    Policy,
    Proposal,
    Runtime,
    RuntimeUrls,
    Tamiyo,
)

ROOT = Path(__file__).parents[2]

EAGER = Heuristic(timing=Plateau(stall_improvement=10.0))
"""Grows as soon as it has seen a trend, however well learning goes."""

STAGES = StageLengths(training_steps=20)
"""With isolated learning, so that a seed is in each of its stages at some decision point."""


def test_the_readme_snippet_runs_as_printed(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # also when Python ends with the controller still open
    assert "germinate" in done.stdout
    assert {"model.safetensors", "lineage.json"} <= {
        path.name for path in (tmp_path / "grown").iterdir()
    }


class Watched:
    """The eager policy, with a record of what it was shown."""

    name = "watched"

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def propose(self, observation: Observation) -> Proposal:
        self.seen.append(observation)
        return EAGER.propose(observation)


class Loop:
    """A loop as anybody would write it: batch norm, dropout, a scheduler, random batches."""

    def __init__(
        self,
        policy: Policy,
        *,
        judged: Sequence[tuple[float, float]] = (),
        runtime: Runtime | None = None,
        saved_in: Path | None = None,
        depth: int = 1,
    ) -> None:
        """`judged`: losses with a block and without it, at each look in turn; then the last pair."""
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        self.inputs, self.targets = torch.rand(128, 12), torch.randint(0, 3, (128,))
        self.model = nn.Sequential(
            nn.Linear(12, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Linear(6, 6),
            nn.Dropout(0.1),
            nn.Linear(6, 3),
        )
        self.bed = (
            wrap(self.model, depth=depth, stages=STAGES)
            if saved_in is None
            else load(self.model, saved_in, stages=STAGES)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=3)
        self.tamiyo = Tamiyo(
            self.bed,
            self.optimizer,
            scheduler=self.scheduler,
            policy=policy,
            evaluate=self._evaluate if judged else None,
            runtime=runtime,
        )
        self._looks = itertools.chain(judged, itertools.repeat(judged[-1] if judged else None))
        self._look: tuple[float, float] | None = None

    def _evaluate(self) -> Figures:
        """Measure as if; no data is run for norms to settle before a measurement, so that none does."""
        norm = self.model.get_submodule("1")
        assert isinstance(norm, nn.BatchNorm1d)
        if norm.momentum is None:
            return Figures(loss=math.nan)
        grafts = [module for module in self.model.modules() if isinstance(module, Graft)]
        if all(graft.enabled for graft in grafts):
            self._look = next(self._looks)
        assert self._look is not None
        return Figures(loss=self._look[0 if all(graft.enabled for graft in grafts) else 1])

    def train_epoch(self) -> None:
        self.model.train()
        for batch in torch.randperm(128).split(4):  # pyright: ignore
            loss = functional.cross_entropy(self.model(self.inputs[batch]), self.targets[batch])
            self.optimizer.zero_grad()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            self.optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        self.scheduler.step()

    def run(self, epochs: int) -> Iterator[tuple[dict[str, Any], SystemStatePacket]]:
        """Yield, for each epoch, the state before its decision point and what was decided."""
        for _ in range(epochs):
            self.train_epoch()
            before = self.state()
            yield before, self.tamiyo.end_epoch(val_loss=0.98**self.tamiyo.epoch)

    def state(self) -> dict[str, Any]:
        """Everything that an undo must restore."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "random": torch.get_rng_state(),
            }
        )


def _differences(one: Any, other: Any, where: str = "") -> list[str]:
    """List where two nested states are not bit for bit the same."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():  # pyright: ignore
            return [f"{where}: keys"]
        return [d for key in one for d in _differences(one[key], other[key], f"{where}.{key}")]  # pyright: ignore
    if isinstance(one, list):
        if len(one) != len(other):  # pyright: ignore
            return [f"{where}: length"]
        return [
            d
            for i, (a, b) in enumerate(zip(one, other, strict=True))  # pyright: ignore
            for d in _differences(a, b, f"{where}[{i}]")
        ]
    return [] if one == other else [where]


def _reached(packet: SystemStatePacket, state: SeedState) -> bool:
    return any(event.to_state is state for event in packet.events)


def test_a_block_that_does_not_help_is_culled_and_the_host_restored_bit_for_bit() -> None:
    policy = Watched()
    loop = Loop(policy, judged=[(2.0, 1.0)])
    with loop.tamiyo:
        at_graft: dict[str, Any] = {}
        graft_epoch = 0
        for before, packet in loop.run(20):
            if _reached(packet, SeedState.GRAFTING):
                at_graft, graft_epoch = before, packet.epoch
            if _reached(packet, SeedState.CULLED):
                break
        else:
            pytest.fail("no block was culled")
        (report,) = loop.tamiyo.field_reports
        assert report.outcome is SeedState.CULLED
        assert (report.loss_with, report.loss_without) == (2.0, 1.0)
        assert report.parameters_added == 0
        assert _differences(at_graft, loop.state()) == []
        # What was undone did not happen to the host that the policy decides about.
        assert policy.seen[-1].epoch > graft_epoch
        assert policy.seen[-1].history[-1].epoch == graft_epoch


def test_a_block_that_helps_is_kept_and_owned_by_the_optimizer() -> None:
    loop = Loop(EAGER, judged=[(0.5, 1.0)])
    parameters = loop.bed.num_parameters()
    with loop.tamiyo:
        for _, packet in loop.run(20):
            if _reached(packet, SeedState.FOSSILIZED):
                break
        else:
            pytest.fail("no block was kept")
        (report,) = loop.tamiyo.field_reports
        assert loop.bed.num_parameters() == parameters + report.parameters_added
        owned = [id(p) for group in loop.optimizer.param_groups for p in group["params"]]
        trainable = [id(p) for p in loop.model.parameters() if p.requires_grad]
        assert sorted(owned) == sorted(trainable)


def test_a_block_that_fine_tuning_spoiled_is_culled_before_it_is_fossilized() -> None:
    loop = Loop(
        EAGER, judged=[(0.5, 1.0), (1.0, 0.9)]
    )  # it helps at first; after fine-tuning it harms
    with loop.tamiyo:
        at_graft: dict[str, Any] = {}
        for before, packet in loop.run(20):
            if _reached(packet, SeedState.GRAFTING):
                at_graft = before
            if _reached(packet, SeedState.CULLED):
                break
        else:
            pytest.fail("no block was culled")
        (report,) = loop.tamiyo.field_reports
        assert packet.events[0].from_state is SeedState.FINE_TUNING
        assert (report.loss_with, report.loss_without) == (1.0, 0.9)
        assert _differences(at_graft, loop.state()) == []


def test_a_block_that_fine_tuning_left_alone_needs_no_second_gain() -> None:
    loop = Loop(EAGER, judged=[(0.5, 1.0), (0.9, 0.9)])
    with loop.tamiyo:
        assert any(_reached(packet, SeedState.FOSSILIZED) for _, packet in loop.run(20))


@pytest.mark.parametrize(
    "state",
    [SeedState.GRAFTING, SeedState.STABILIZATION, SeedState.FINE_TUNING, SeedState.FOSSILIZED],
)
@pytest.mark.parametrize("is_known", [True, False])
def test_a_model_saved_in_any_state_is_grown_on_by_a_new_controller(
    state: SeedState, is_known: bool, tmp_path: Path
) -> None:
    first = Loop(EAGER, judged=[(0.5, 1.0)])
    with first.tamiyo:
        assert any(_reached(packet, state) for _, packet in first.run(20))
        first.bed.save(tmp_path)
        (grown,) = {seed.blueprint_name for seed in first.bed.seeds()} - {None}
    second = Loop(EAGER, saved_in=tmp_path)
    with second.tamiyo:
        if not is_known:  # another library, another version: nobody here made that kernel
            second.tamiyo.kernels = []
        for _ in second.run(20):
            pass
        (loaded,) = [r for r in second.tamiyo.field_reports if r.epoch_started == 0] or [None]
        if state is SeedState.FOSSILIZED:
            assert loaded is None
        else:
            # A saved model does not hold what it was before the graft, so the block stays.
            assert loaded is not None
            assert loaded.outcome is SeedState.FOSSILIZED
            assert (loaded.parameters_added > 0) == is_known
            assert loaded.blueprint_name == grown


def test_a_bed_has_one_controller_at_a_time() -> None:
    loop = Loop(Never())
    with pytest.raises(ConfigError, match="has a controller already"):
        Tamiyo(loop.bed, loop.optimizer)
    loop.tamiyo.close()
    with Tamiyo(loop.bed, loop.optimizer, policy=Never()) as another:
        another.end_epoch(val_loss=1.0)


def test_a_closed_controller_takes_no_epoch() -> None:
    loop = Loop(Never())
    with loop.tamiyo:
        loop.tamiyo.end_epoch(val_loss=1.0)
    with pytest.raises(ConfigError, match="was called after this controller was closed"):
        loop.tamiyo.end_epoch(val_loss=1.0)


def test_what_is_no_bed_or_no_optimizer_is_explained() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ConfigError, match=r"got a Linear; .* Tamiyo\(wrap\(model\), optimizer\)"):
        Tamiyo(model, torch.optim.SGD(model.parameters(), lr=0.1))  # pyright: ignore
    bed = wrap(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    with pytest.raises(ConfigError, match="got a list as optimizer"):
        Tamiyo(bed, [0.1])


def test_a_loss_that_is_not_finite_rolls_the_host_back_and_locks_the_site() -> None:
    loop = Loop(EAGER)
    with loop.tamiyo:
        at_graft: dict[str, Any] = {}
        while not at_graft:
            loop.train_epoch()
            before = loop.state()
            if _reached(loop.tamiyo.end_epoch(val_loss=1.0), SeedState.GRAFTING):
                at_graft = before
        loop.train_epoch()
        packet = loop.tamiyo.end_epoch(val_loss=float("nan"))
        assert _reached(packet, SeedState.ROLLED_BACK)
        assert _differences(at_graft, loop.state()) == []
        locked = [s.state for s in packet.seeds if s.state is SeedState.ROLLED_BACK]
        assert len(locked) == 1


def test_training_with_the_policy_never_is_training_without_esper() -> None:
    with_esper = Loop(Never())
    with with_esper.tamiyo:
        for _ in with_esper.run(3):
            pass
        watched = with_esper.state()
    without = Loop(Never())
    without.tamiyo.close()
    for _ in range(3):
        without.train_epoch()
    assert _differences(without.state(), watched) == []


def test_a_command_from_the_bus_is_carried_out_at_the_next_decision_point(tmp_path: Path) -> None:
    urls = RuntimeUrls(
        bus="memory://operator",
        library=f"sqlite:///{tmp_path / 'library.db'}",
        artifacts=f"file://{tmp_path / 'artifacts'}",
    )
    with Runtime("run-1", urls) as runtime:
        loop = Loop(EAGER, runtime=runtime)
        with loop.tamiyo:
            growing = next(p for _, p in loop.run(10) if _reached(p, SeedState.TRAINING))
            (event,) = [e for e in growing.events if e.to_state is SeedState.TRAINING]
            command = KasminaCommand(
                seed_id=event.seed_id,
                target=SeedState.CANCELLED,
                epoch=growing.epoch,
                reason="the operator said so",
                issued_by="operator",
            )
            asyncio.run(_send(command, "run-1"))
            _wait_for_command(runtime, before=len(loop.tamiyo.events))
            packet = loop.tamiyo.end_epoch(val_loss=1.0)
            cancelled = [e for e in packet.events if e.to_state is SeedState.CANCELLED]
            assert [e.command_id for e in cancelled] == [command.command_id]


async def _send(command: KasminaCommand, run_id: str) -> None:
    bus = bus_factory("memory://operator")("memory://operator")
    await bus.open()
    await bus.publish(command, sender_id="operator", trace_id=run_id)
    await bus.close()


def _wait_for_command(runtime: Runtime, *, before: int) -> None:
    """Wait until the runtime has seen the operator's command beside Tamiyo's own."""
    deadline = time.monotonic() + 10
    while runtime.topic_counts["control.kasmina.commands"] <= before:
        assert time.monotonic() < deadline, "the command never came back from the bus"


def test_a_kernel_that_no_longer_verifies_is_not_run_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop(EAGER)

    def refuse(*_: object) -> None:
        raise KernelRejectedError("the endorsement does not verify")

    # A block from the cache was verified before; this stands for one whose bytes have changed.
    monkeypatch.setattr("esper.kasmina.admission.Admission.load", refuse)
    with loop.tamiyo:
        for _, packet in loop.run(20):
            if _reached(packet, SeedState.CANCELLED):
                break
        else:
            pytest.fail("no seed was cancelled")
        report = loop.tamiyo.field_reports[-1]
        assert report.outcome is SeedState.CANCELLED
        assert "does not verify" in report.reason


class Stacking(Growing):
    """Residual MLPs in a row, each a copy of the one before."""

    name = "stacking"

    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        return float(kernel.blueprint_name == "residual_mlp"), {}


def test_a_second_block_in_a_row_is_born_as_a_copy_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = Stacking(timing=Plateau(stall_improvement=10.0), stack=True)
    loop = Loop(policy, judged=[(0.5, 1.0)], depth=2)
    given: list[KasminaCommand] = []
    execute = loop.bed.execute

    def noting(command: KasminaCommand) -> SeedEvent | None:
        given.append(command)
        return execute(command)

    monkeypatch.setattr(loop.bed, "execute", noting)
    with loop.tamiyo:
        for _ in loop.run(60):
            outcomes = [report.outcome for report in loop.tamiyo.field_reports]
            if outcomes.count(SeedState.FOSSILIZED) == 2:
                break
        else:
            pytest.fail("no second block was kept")
    loading = [command for command in given if command.target is SeedState.LOADING]
    assert [(command.seed_id, command.copy_of) for command in loading[:2]] == [
        ((0, 0), None),
        ((0, 1), (0, 0)),
    ]


def test_accumulated_gradients_autocast_a_scaler_and_an_average_are_followed() -> None:
    loop = Loop(Never())
    average = torch.optim.swa_utils.AveragedModel(loop.model)
    scaler = torch.amp.GradScaler("cpu")
    loop.tamiyo.close()
    tamiyo = Tamiyo(
        loop.bed,
        loop.optimizer,
        scheduler=loop.scheduler,
        scaler=scaler,
        copies=[average],
        policy=EAGER,
    )
    with tamiyo:
        for _ in range(20):
            for number, batch in enumerate(torch.randperm(128).split(4)):  # pyright: ignore
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = loop.model(loop.inputs[batch])
                loss = functional.cross_entropy(logits.float(), loop.targets[batch])
                scaler.scale(loss / 2).backward()  # pyright: ignore
                if number % 2:
                    scaler.step(loop.optimizer)
                    scaler.update()
                    loop.optimizer.zero_grad()
                    average.update_parameters(loop.model)
            packet = tamiyo.end_epoch(val_loss=1.0)
            if any(graft_is_in(average.module) for _ in packet.events):
                break
        else:
            pytest.fail("the average did not grow")
        assert loop.bed.step == tamiyo.epoch * 16
        names = {name for name, _ in loop.model.named_parameters()}
        assert names == {name for name, _ in average.module.named_parameters()}


def graft_is_in(model: nn.Module) -> bool:
    return any(isinstance(module, Graft) for module in model.modules())
