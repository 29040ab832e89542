"""Plans: which layers become sites, and every reason why one does not."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import re
import warnings
from typing import Any

import pytest
import torch
from kasmina_factory import blueprint, cnn, mlp, state_bits
from torch import Tensor, nn

from esper.contracts import BlueprintError, BlueprintIR, HostError, SiteKind
from esper.kasmina import StageLengths, Target, plan, wrap


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.mix = nn.MultiheadAttention(8, 2)
        self.act = nn.GELU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head(self.act(self.mix(h, h, h)[0]))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.other = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)


def names(model: nn.Module, *targets: Target) -> list[str]:
    found = plan(model, targets or None)
    assert found.problems == ()
    return [site.name for site in found.sites]


def test_sites_are_all_layers_but_the_head_in_order() -> None:
    found = plan(cnn())
    assert [(site.layer_id, site.name, site.module_type) for site in found.sites] == [
        (0, "0", "Conv2d"),
        (1, "4", "Conv2d"),
    ]
    assert found.sites[1].signature.key == "channels_2d-6-float32-cpu"
    assert found.sites[0].num_seeds == 1
    assert found.refused == ("8 is the output head; name it in targets to use it",)


def test_linear_layers_of_other_packages_are_known_by_name() -> None:
    def init(layer: Any) -> None:
        nn.Module.__init__(layer)
        layer.nx, layer.nf = 4, 5

    theirs = type(
        "Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils", "__init__": init}
    )
    found = plan(nn.Sequential(theirs(), nn.Linear(5, 3)))
    assert [(site.name, site.signature.features) for site in found.sites] == [("0", 5)]


def test_planning_touches_nothing() -> None:
    model = mlp()
    before = state_bits(model), repr(model), [dict(vars(m)) for m in model.modules()]
    plan(model)
    plan(model, ["nothing"])
    assert (state_bits(model), repr(model), [dict(vars(m)) for m in model.modules()]) == before


def test_targets_choose_by_name_glob_type_or_predicate_in_order_of_registration() -> None:
    assert names(mlp(), "4", "0") == ["0", "4"]
    assert names(mlp(), "[02]") == ["0", "2"]
    assert names(cnn(), nn.Linear) == ["8"]
    assert names(cnn(), nn.Conv2d, "8") == ["0", "4", "8"]
    assert names(cnn(), lambda name, layer: isinstance(layer, nn.Conv2d) and name > "0") == ["4"]


def test_one_star_stays_within_a_level_and_two_cross_it() -> None:
    model = nn.ModuleDict({"a": mlp(), "b": nn.Sequential(mlp(), nn.Linear(3, 3))})
    assert names(model, "*.0") == ["a.0"]
    assert names(model, "b.**.?") == ["b.0.0", "b.0.2", "b.0.4"]


def test_a_wrong_target_is_named() -> None:
    wrong: Any = 7
    with pytest.raises(HostError, match="target 7; expected a name, a glob, a module type"):
        plan(mlp(), [wrong])


def test_layers_that_are_never_called_carry_no_seed() -> None:
    found = plan(Attention())
    assert [site.name for site in found.sites] == ["embed", "mix"]
    with pytest.raises(HostError, match=r"'mix\.out_proj': mix\.out_proj is used by"):
        plan(Attention(), ["mix.out_proj"]).check()


def test_encoder_layers_and_what_is_within_them_carry_seeds() -> None:
    model = nn.Sequential(nn.Linear(6, 8), encoder(), nn.Linear(8, 3))
    inner = [f"1.layers.0.{name}" for name in ("self_attn", "linear1", "linear2")]
    assert names(model) == ["0", *inner, "1.layers.0"]
    example = torch.zeros(4, 5, 6)
    found = plan(model, example=example, widen=True).sites
    assert "1" not in [site.name for site in found]  # where its last layer is one
    assert [(s.name, s.widens) for s in found if s.widens] == [(inner[2], inner[1])]


def test_where_tokens_come_first_encoder_layers_are_sites_as_a_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3))
    for example in (None, torch.zeros(5, 4, 6)):
        found = plan(model, example=example)
        assert [site.name for site in found.sites] == ["0", "1.self_attn", "1"]
        assert any("1.linear1 is within" in line for line in found.refused)


def test_an_encoder_layer_that_holds_the_output_is_left_out() -> None:
    found = plan(nn.Sequential(nn.Linear(6, 8), encoder()))
    assert [site.name for site in found.sites] == [
        "0",
        "1.layers.0.self_attn",
        "1.layers.0.linear1",
    ]
    assert any("1.layers.0 holds the output head" in line for line in found.refused)


def test_a_fast_path_that_passes_hooks_by_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    def passes_by(*_: object) -> bool:
        return False

    monkeypatch.setattr("esper.kasmina.refusals._fast_path_heeds_hooks", passes_by)
    model = nn.Sequential(nn.Linear(6, 8), encoder(), nn.Linear(8, 3))
    assert names(model) == ["0"]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert "1.layers.0.linear1" in names(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 1)


def test_shared_layers_carry_no_seed() -> None:
    assert names(Shared()) == ["other"]
    with pytest.raises(HostError, match="first is shared under the names first, again"):
        wrap(Shared(), targets=["first"])


def test_every_problem_is_listed_at_once_and_nothing_is_wrapped() -> None:
    model = Attention()
    with pytest.raises(HostError) as caught:
        wrap(model, targets=["embed", "mix.out_proj", "act", "nowhere.*", nn.Conv2d])
    lines = str(caught.value).splitlines()
    assert lines[0] == "this host cannot carry seeds as asked:"
    assert [line.split(":")[0].split(" is a")[0] for line in lines[1:]] == [
        "- target 'mix.out_proj'",
        "- target 'act'",
        "- target 'nowhere.*' matches no layer; there are",
        "- target 'Conv2d' matches no layer; there are",
    ]
    wrap(model)


def test_no_targets_is_a_problem() -> None:
    with pytest.raises(HostError, match="targets is empty"):
        wrap(mlp(), targets=[])


def test_a_host_without_sites_hears_why_for_each_layer() -> None:
    with pytest.raises(HostError, match=re.escape("0 is the output head")):
        wrap(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(HostError, match="no Linear, convolution, recurrent or attention layer"):
        wrap(nn.Sequential(nn.ReLU(), nn.Flatten()))


def test_a_model_that_is_a_single_layer_hears_what_to_do() -> None:
    for layer in (nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)):
        for targets in (None, ["*"]):
            with pytest.raises(HostError, match=r"is a single layer.*nn\.Sequential\(model\)"):
                plan(layer, targets).check()
    plan(nn.Sequential(nn.LSTM(4, 4)), ["0"]).check()


def test_a_model_named_as_a_whole_hears_that_layers_are_meant() -> None:
    for model in (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), mlp()):
        with pytest.raises(HostError, match=r"the model is all of it.*name a layer in it"):
            plan(model, [""]).check()


def test_parameters_outside_any_layer_are_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)
            self.weights = nn.ParameterList(torch.ones(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x @ self.weights[0])

    told = r"parameters outside any layer \(weights\.0, weights\.1, weights\.2, …\)"
    with pytest.raises(HostError, match=told):
        wrap(Bare())


def test_a_host_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(HostError, match="0 is on device 'meta'; expected cpu or cuda"):
        wrap(model)


def test_weights_that_cannot_learn_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with warnings.catch_warnings():
        # torch warns that complex modules are new.
        warnings.simplefilter("ignore", UserWarning)
        model.to(torch.complex64)
    with pytest.raises(
        HostError, match=r"0 has weights of torch\.complex64; expected one of float"
    ):
        wrap(model)


def test_a_lazy_layer_is_refused_until_it_has_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(HostError, match="0 is lazy and has no shape yet"):
        wrap(model)
    model(torch.zeros(1, 3))
    assert names(model) == ["0"]


def test_a_wrapped_host_is_refused() -> None:
    model = mlp()
    bed = wrap(model)
    with pytest.raises(HostError, match=r"already wrapped; use its bed, or unwrap\(\) it first"):
        wrap(model)
    bed.unwrap()
    wrap(model)


def test_a_parallel_host_is_refused() -> None:
    with pytest.raises(HostError, match="DataParallel has fixed its parameters"):
        wrap(nn.DataParallel(mlp()))


def test_the_bed_offers_the_blueprints_that_fit() -> None:
    assert {ir.kind for ir in wrap(mlp()).blueprints} == {SiteKind.FEATURES}
    own = blueprint("low_rank").model_copy(update={"name": "mine"})
    assert "mine" in {ir.name for ir in wrap(mlp(), blueprints=[own]).blueprints}
    assert {ir.kind for ir in wrap(cnn()).blueprints} == {SiteKind.CHANNELS_2D}


def test_stage_lengths_are_checked() -> None:
    with pytest.raises(ValueError, match="ramp_steps=-1; expected an integer of at least 0"):
        StageLengths(ramp_steps=-1)
    with pytest.raises(ValueError, match="ramp_shape='square'; expected one of linear"):
        StageLengths(ramp_shape="square")  # pyright: ignore[reportArgumentType]
    with pytest.raises(HostError, match="sample_every_steps=0; expected at least 1"):
        wrap(mlp(), sample_every_steps=0)


def test_designs_of_the_users_own_are_checked_before_anything_is_wrapped() -> None:
    model = mlp()
    with pytest.raises(
        BlueprintError, match="'residual_conv' is for channels_2d sites; this host's"
    ):
        wrap(model, blueprints=[blueprint("residual_conv")])
    narrow = blueprint("low_rank").model_dump()
    narrow["nodes"][0]["params"]["out"] = "D-8"
    ir = BlueprintIR.model_validate(narrow | {"name": "too_narrow"})
    with pytest.raises(BlueprintError, match=r"at the site '0': .*too_narrow"):
        wrap(model, blueprints=[ir])
    wrap(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "0"}, r"targets is '0'; expected a list of names"),
        ({"targets": nn.Linear}, r"targets is <class .*Linear.*; expected a list of names"),
        ({"chunks": 0}, "chunks=0; expected an integer of at least 1"),
        ({"chunks": 2.0}, r"chunks=2\.0; expected an integer"),
        ({"causal": "no"}, "causal='no'; expected True, False or None"),
        ({"targets": ["[z-a]"]}, r"target '\[z-a\]' is no glob"),
        ({"targets": [int]}, "target <class 'int'>; expected a name, a glob, a module type"),
    ],
)
def test_nonsense_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HostError, match=message):
        wrap(mlp(), **options)
