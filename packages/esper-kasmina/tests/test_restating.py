"""Without a block, batch norms have the statistics of the model without it; then their own again."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import pytest
import torch
from kasmina_factory import QUICK, TO_EVALUATING, grow
from torch import Tensor, nn

from esper.kasmina import Bed, Block, wrap
from esper.kasmina.restating import restated

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def shifted_bed() -> Bed:
    """A host whose norm has got used to a block that adds 5 to every feature."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    bed = wrap(model, targets=["0"], stages=QUICK)
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.0))
    grow(bed, TO_EVALUATING, site=0, change=add_five)
    model.train()
    with torch.no_grad():
        for _ in range(200):
            model(X)
    return bed


def add_five(block: Block) -> None:
    for parameter in block.parameters():
        parameter.zero_()
    *_, last = [module for module in block.modules() if isinstance(module, nn.Linear)]
    assert last.bias is not None
    last.bias.fill_(5.0)


def answers(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        out = model(X)
    model.train()
    return out


def test_what_a_norm_takes_out_again_counts_for_nothing() -> None:
    bed = shifted_bed()
    model = bed.model
    with_block = answers(model)
    with bed.without((0, 0)):
        stale = answers(model)
    with bed.without((0, 0), settle=lambda: answers(model)):
        settled = answers(model)
    torch.testing.assert_close(settled, with_block, atol=0.05, rtol=0)
    assert (stale - with_block).abs().max() > 0.5


def test_the_whole_model_can_be_measured_with_statistics_of_now() -> None:
    bed = shifted_bed()
    model = bed.model
    steady = answers(model)
    model.get_buffer("1.running_mean").add_(2.0)
    lagging = answers(model)
    with bed.without(None, settle=lambda: answers(model)):
        torch.testing.assert_close(answers(model), steady, atol=0.05, rtol=0)
    assert torch.equal(answers(model), lagging)
    with bed.without(None):
        assert torch.equal(answers(model), lagging)


def test_afterwards_everything_is_as_it_was() -> None:
    bed = shifted_bed()
    norm = bed.model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm1d)
    mean = norm.get_buffer("running_mean")
    before = {name: value.clone() for name, value in bed.model.state_dict().items()}
    with bed.without((0, 0), settle=lambda: answers(bed.model)):
        assert not torch.equal(mean, before["1.running_mean"])
    with pytest.raises(ZeroDivisionError), bed.without((0, 0), settle=lambda: 1 / 0):
        pass
    after = bed.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert norm.momentum == 0.1
    assert norm.training
    assert not vars(norm)["_forward_hooks"]
    assert not vars(norm)["_forward_pre_hooks"]


def test_statistics_are_those_that_torch_finds_for_averaged_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 2, 1))
    batches = torch.randn(5, 8, 2, 7).unbind()
    expected = nn.Sequential(*(layer for layer in model))
    with restated(model, lambda: [model.eval()(batch) for batch in batches]):
        found = {name: value.clone() for name, value in model.state_dict().items()}
    torch.optim.swa_utils.update_bn(batches, expected)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value)


def test_a_norm_that_nothing_reaches_keeps_its_statistics() -> None:
    used, unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    means = [norm.get_buffer("running_mean") for norm in (used, unused)]
    for mean in means:
        mean.fill_(2.0)
    with restated(nn.ModuleList([used, unused]), lambda: used.eval()(torch.zeros(4, 3))):
        assert [mean.tolist() for mean in means] == [[0.0] * 3, [2.0] * 3]
    assert [mean.tolist() for mean in means] == [[2.0] * 3, [2.0] * 3]


def test_a_single_value_has_no_variance_and_is_passed_over() -> None:
    norm = nn.BatchNorm1d(3).eval()
    with restated(norm, lambda: norm(torch.ones(1, 3))):
        assert torch.equal(norm.get_buffer("running_var"), torch.ones(3))
        assert norm.num_batches_tracked == 0
    without_statistics = nn.BatchNorm1d(3, track_running_stats=False)
    with restated(without_statistics, lambda: without_statistics(torch.ones(2, 3))):
        assert without_statistics.running_mean is None
