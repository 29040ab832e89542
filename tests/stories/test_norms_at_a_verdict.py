"""A verdict where there are batch norms, whose statistics lag behind weights that change fast."""

import torch
from torch import nn
from torch.nn import functional

from esper.contracts import SeedBed, SeedState
from esper.kasmina import wrap
from esper.kasmina.graft import Graft
from esper.tamiyo import EpochFigures, Figures, Heuristic, Plateau, Tamiyo
from esper.tamiyo.verdict import gather

EAGER = Heuristic(timing=Plateau(stall_improvement=10.0))


class Host:
    """A model with one block, which has come to compute nothing."""

    def __init__(self, norm: nn.Module) -> None:
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        self.inputs, self.targets = torch.rand(64, 12), torch.randint(0, 3, (64,))
        self.model = nn.Sequential(nn.Linear(12, 6), norm, nn.ReLU(), nn.Linear(6, 3))
        self.looks = 0
        self.bed: SeedBed = wrap(self.model)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        grafted: list[tuple[int, int]] = []
        with Tamiyo(self.bed, optimizer, policy=EAGER) as tamiyo:
            while not grafted:
                self._loss().backward()  # pyright: ignore[reportUnknownMemberType]
                optimizer.step()  # pyright: ignore[reportUnknownMemberType]
                packet = tamiyo.end_epoch(val_loss=1.0)
                grafted = [e.seed_id for e in packet.events if e.to_state is SeedState.GRAFTING]
        (self.seed_id,) = grafted
        (graft,) = [module for module in self.model.modules() if isinstance(module, Graft)]
        with torch.no_grad():
            for parameter in graft.parameters():
                parameter.zero_()

    def _loss(self) -> torch.Tensor:
        return functional.cross_entropy(self.model(self.inputs), self.targets)

    def evaluate(self) -> Figures:
        self.looks += 1
        self.model.eval()
        with torch.no_grad():
            loss = self._loss()
        self.model.train()
        return Figures(loss=loss.item())


def test_a_block_that_does_nothing_gains_nothing_however_far_norms_lag_behind() -> None:
    host = Host(nn.BatchNorm1d(6))
    host.model.get_buffer("1.running_mean").add_(3.0)
    lagging = host.evaluate()
    host.looks = 0
    now = EpochFigures(epoch=9, val_loss=lagging.loss)
    found = gather(host.bed, host.seed_id, now=now, before=now, evaluate=host.evaluate)
    assert host.looks == 4  # each side after its norms have settled
    assert found.with_block == found.without_block != lagging
    assert found.now == found.before == lagging
    assert host.evaluate() == lagging


def test_a_host_without_batch_norms_is_measured_as_it_is() -> None:
    host = Host(nn.LayerNorm(6))
    plain = host.evaluate()
    host.looks = 0
    now = EpochFigures(epoch=9, val_loss=plain.loss)
    found = gather(host.bed, host.seed_id, now=now, before=None, evaluate=host.evaluate)
    assert host.looks == 2
    assert found.with_block == found.without_block == plain
