"""Plans with an example: what only a trial run can tell, found on a copy of the host."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kasmina_factory import cnn, state_bits
from torch import Tensor, nn

from esper.contracts import HostError, SiteKind
from esper.kasmina import FIRST_OF_TUPLE, Example, plan, register_adapter


class Residual(nn.Module):
    """A block as users write them: one site as a whole."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class ConvBlock(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
        self.conv = conv(4, 4, 3, padding=1)
        self.norm = norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Pair(nn.Module):
    """Returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


class Odd(nn.Module):
    """Has a layer that never runs, one whose output is thrown away, and one that returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.wasted = nn.Linear(4, 4)
        self.pair = Pair()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.used(x)
        self.wasted(h)
        return self.head(self.pair(h)[0])


class Language(nn.Module):
    """Token by token, looking back only or both ways."""

    def __init__(self, *, causal: bool, pooled: bool = False) -> None:
        super().__init__()
        self.causal, self.pooled = causal, pooled
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = Residual(8)
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        h = self.block(self.mix(h, h, h, attn_mask=mask)[0])
        return self.head(h.mean(dim=1) if self.pooled else h)


IDS = torch.arange(10).reshape(2, 5)


def kinds(model: nn.Module, example: Example, *names: str) -> list[tuple[str, SiteKind, int]]:
    found = plan(model, names or None, example=example)
    assert found.problems == ()
    return [(s.name, s.signature.kind, s.signature.features) for s in found.sites]


def test_a_block_of_the_users_own_is_one_site() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Residual(8), nn.Linear(8, 3))
    assert kinds(model, torch.zeros(2, 6), "1") == [("1", SiteKind.FEATURES, 8)]
    with pytest.raises(HostError, match="1 is a Residual, whose output is not known; give plan"):
        plan(model, ["1"]).check()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_blocks_and_norms_of_channels_are_recognised(rank: int) -> None:
    model = nn.Sequential(ConvBlock(rank), ConvBlock(rank))
    kind = (SiteKind.CHANNELS_1D, SiteKind.CHANNELS_2D, SiteKind.CHANNELS_3D)[rank - 1]
    example = torch.zeros(2, 4, *([5] * rank))
    found = kinds(model, example, "0", "0.conv", "0.norm")
    assert found == [
        ("0.conv", kind, 4),
        ("0.norm", kind, 4),
        ("0", kind, 4),
    ]  # the block ends last


class TwoTensors(nn.Module):
    """Returns two tensors, so that nobody knows which of them a seed should add to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.inner(x)


class First(nn.Module):
    def forward(self, both: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return both[0] + both[1]


def test_with_an_example_blocks_in_a_row_are_sites_by_default_after_their_layers() -> None:
    row = nn.Sequential(nn.Sequential(Residual(8), Residual(8)), TwoTensors(), First())
    model = nn.Sequential(nn.Linear(6, 8), row, Residual(8), nn.Linear(8, 3))
    found = plan(model, example=torch.zeros(2, 6))
    names = ["0", "1.0.0.up", "1.0.0.down", "1.0.0", "1.0.1.up", "1.0.1.down", "1.0.1", "1.1.inner"]
    assert [site.name for site in found.sites] == [*names, "2.up", "2.down", "2"]
    assert [line.split()[0] for line in found.refused] == ["3"]  # the head; of the pair not a word
    unknown = {"1.0.0", "1.0.1", "2"}
    assert {site.name for site in plan(model).sites} == {s.name for s in found.sites} - unknown


def test_every_problem_that_a_run_shows_is_listed() -> None:
    found = plan(Odd(), ["used", "never", "wasted", "pair"], example=torch.zeros(2, 4))
    assert [line.split(":")[1][:40] for line in found.problems] == [
        " never is never called by the model, so ",
        " wasted has no effect on the model's out",
        " pair returns a tuple (Tensor, Tensor), ",
    ]
    assert [s.name for s in plan(Odd(), example=(torch.zeros(2, 4),)).sites] == [
        "used",
        "pair.inner",
    ]


def test_a_registered_adapter_makes_a_site_of_a_block_that_returns_a_tuple() -> None:
    class MyPair(Pair):
        pass

    model = Odd()
    model.pair = MyPair()
    register_adapter(MyPair, FIRST_OF_TUPLE)
    assert kinds(model, torch.zeros(2, 4), "pair") == [("pair", SiteKind.FEATURES, 4)]
    with pytest.raises(HostError, match="7 is not a subclass"):
        register_adapter(7, FIRST_OF_TUPLE)  # pyright: ignore[reportArgumentType]


def test_tokens_that_look_back_only_get_blocks_that_look_back_only() -> None:
    causal = kinds(Language(causal=True), IDS, "mix", "block")
    assert causal == [("mix", SiteKind.CAUSAL_SEQUENCE, 8), ("block", SiteKind.CAUSAL_SEQUENCE, 8)]
    both = kinds(Language(causal=False), {"ids": IDS}, "embed")
    assert both == [("embed", SiteKind.SEQUENCE, 8)]
    # After the last attention the host mixes no tokens any more: to be careful, nor do blocks.
    assert kinds(Language(causal=False), IDS, "block") == [("block", SiteKind.CAUSAL_SEQUENCE, 8)]


def test_a_host_that_pools_its_tokens_may_look_ahead() -> None:
    found = kinds(Language(causal=True, pooled=True), IDS, "block")
    assert found == [("block", SiteKind.SEQUENCE, 8)]


SHAPES: dict[str, Callable[[Tensor], object]] = {
    "flat": lambda scores: scores.flatten(0, 1),
    "loss": lambda scores: scores.square().mean(),
    "loss and scores": lambda scores: (scores.square().mean(), scores),
    "classes second": lambda scores: scores.mT,
    "shifted": lambda scores: scores[:, :-1],
    "shifted and flat": lambda scores: scores[:, :-1].flatten(0, 1),
    "shifted, classes second": lambda scores: scores[:, :-1].mT,
}


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_no_shape_of_the_output_lets_a_language_model_look_ahead(shape: str, batch: int) -> None:
    class Shaped(Language):
        def forward(self, ids: Tensor) -> Any:
            return SHAPES[shape](super().forward(ids))

    ids = torch.arange(5 * batch).reshape(batch, 5) % 11
    found = kinds(Shaped(causal=True), ids, "embed", "mix", "block")
    assert {kind for _, kind, _ in found} == {SiteKind.CAUSAL_SEQUENCE}


@pytest.mark.parametrize("shape", ["flat", "loss and scores", "classes second"])
def test_tokens_that_look_both_ways_are_known_in_every_shape_that_shows_them(shape: str) -> None:
    class Shaped(Language):
        def forward(self, ids: Tensor) -> Any:
            return SHAPES[shape](super().forward(ids))

    found = kinds(Shaped(causal=False), IDS, "embed")
    assert found == [("embed", SiteKind.SEQUENCE, 8)]


def test_outputs_whose_sum_says_nothing_show_both_ways_too() -> None:
    class Shaped(Language):
        def forward(self, ids: Tensor) -> Any:
            scores = super().forward(ids)[..., :8]
            return scores - scores.mean(dim=-1, keepdim=True)  # as a norm's, it sums to zero

    assert kinds(Shaped(causal=False), IDS, "embed") == [("embed", SiteKind.SEQUENCE, 8)]
    assert kinds(Shaped(causal=True), IDS, "embed") == [("embed", SiteKind.CAUSAL_SEQUENCE, 8)]


def test_each_side_of_an_encoder_and_decoder_has_its_own_kind() -> None:
    class Translation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = Language(causal=False)
            self.writer = Language(causal=True)
            self.look = nn.MultiheadAttention(11, 1, batch_first=True)

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            read, written = self.reader(ids), self.writer(ids)
            return written + self.look(written, read, read)[0], read

    found = kinds(Translation(), IDS, "reader.block", "writer.block")
    assert [kind for _, kind, _ in found] == [SiteKind.CAUSAL_SEQUENCE, SiteKind.CAUSAL_SEQUENCE]
    found = kinds(Translation(), IDS, "reader.embed", "writer.embed")
    assert [kind for _, kind, _ in found] == [SiteKind.SEQUENCE, SiteKind.CAUSAL_SEQUENCE]


def test_an_example_without_a_batch_finds_sites_too() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    assert kinds(model, torch.zeros(6), "0") == [("0", SiteKind.FEATURES, 8)]


def test_without_an_example_tokens_may_not_look_ahead_unless_told() -> None:
    model = Language(causal=True)
    assert plan(model, ["mix"]).sites[0].signature.kind is SiteKind.CAUSAL_SEQUENCE
    assert plan(model, ["mix"], causal=False).sites[0].signature.kind is SiteKind.SEQUENCE
    told = plan(model, ["mix"], causal=False, example=IDS)
    assert told.sites[0].signature.kind is SiteKind.SEQUENCE


def test_the_trial_run_touches_nothing() -> None:
    model = cnn()
    before = state_bits(model), [dict(vars(m)) for m in model.modules()]
    streams = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    assert [s.name for s in plan(model, example=torch.ones(2, 1, 5, 5)).sites] == ["0", "4"]
    assert (state_bits(model), [dict(vars(m)) for m in model.modules()]) == before
    after = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    assert after == streams


def test_an_example_that_does_not_fit_is_reported() -> None:
    found = plan(cnn(), example=torch.ones(2, 3))
    assert len(found.problems) == 1
    assert "the example does not run through the model: RuntimeError" in found.problems[0]


def test_features_split_into_equal_chunks() -> None:
    found = plan(cnn(), ["4"], chunks=3)
    (site,) = found.sites
    assert (site.num_seeds, site.signature.features) == (3, 2)
    with pytest.raises(HostError, match="4 has 6 features, which do not split into 4 equal"):
        plan(cnn(), ["4"], chunks=4).check()


class Chain(nn.Module):
    """A container of a user's own that runs whatever children it has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


def test_a_block_that_runs_every_child_is_refused() -> None:
    model = nn.Sequential(Chain(), Residual(4), nn.Linear(4, 2))
    found = plan(model, ["0", "1"], example=torch.zeros(2, 4))
    assert [site.name for site in found.sites] == ["1"]
    assert found.problems[0].startswith("target '0': 0 runs every child that it has")
    assert not [name for name, _ in model.named_modules() if "esper" in name]


def test_a_failing_example_does_not_hide_wrong_targets() -> None:
    found = plan(cnn(), ["0", "nowhere"], example=torch.ones(2, 3))
    assert ["does not run" in found.problems[0], "'nowhere'" in found.problems[1]] == [True, True]


def test_convolutions_over_tokens_are_refused_where_nothing_may_look_ahead() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 1))
    assert plan(model, ["0"]).problems == ()
    (problem,) = plan(model, ["0"], causal=True).problems
    assert "blocks for those look both ways" in problem
