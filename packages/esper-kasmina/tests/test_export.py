"""What an export writes, what it refuses, and that it leaves the host and its training alone."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from kasmina_beds import bed_of
from kasmina_exports import AT_ONCE, CausalLM, grow_all, grown, grown_mlp
from kasmina_factory import PATHS, S, grow, mlp, order, state_bits, wake
from kasmina_hosts import NUM_CLASSES, digest, life
from torch import Tensor, nn

from esper.contracts import (
    ConfigError,
    HostError,
    IllegalTransitionError,
    SeedState,
)
from esper.kasmina import Bed, ExportManifest, export, load, verify_export, wrap

pytestmark = pytest.mark.long

FILES = {"export.json", "lineage.json", "model.pt2", "model.safetensors"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Odd(nn.Module):
    """A host whose forward ends in a way of its own, given as a function of `(y, x)`."""

    def __init__(self, end: Callable[..., Any]) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.end = end

    def forward(self, x: Tensor, **more: Any) -> Any:
        return self.end(self.head(torch.relu(self.body(x))), x, **more)


def odd(end: Callable[..., Any]) -> Bed:
    torch.manual_seed(0)
    return wrap(Odd(end))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportManifest]:
    """An export that tests may copy, not change."""
    folder = tmp_path_factory.mktemp("made") / "export"
    small = grown_mlp(torch.float32)
    return folder, small.bed.export(folder, small.inputs[0])


@pytest.fixture
def copied(made: tuple[Path, ExportManifest], tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    for name, data in contents(made[0]).items():
        (folder / name).write_bytes(data)
    return folder


# What is written.


def test_an_export_holds_program_weights_lineage_and_manifest(
    made: tuple[Path, ExportManifest],
) -> None:
    folder, manifest = made
    assert names(folder) == FILES
    assert verify_export(folder) == manifest
    assert {file.name for file in manifest.files} == FILES - {"export.json"}
    assert json.loads((folder / "export.json").read_text())["torch_version"] == torch.__version__


def test_the_manifest_tells_shapes_types_and_what_may_vary(
    made: tuple[Path, ExportManifest],
) -> None:
    (program,) = made[1].programs
    (axis,) = program.axes
    assert [(i.name, i.dtype, i.shape) for i in program.inputs] == [
        ("input", "float32", (axis.name, 6))
    ]
    assert [(o.dtype, o.shape) for o in program.outputs] == [("float32", (axis.name, 3))]
    assert (axis.least, axis.most, axis.tried) == (1, None, (5, 6, 1))
    assert program.deviation <= 1e-6
    assert (program.requires, program.notes) == ((), ())


def test_a_model_that_never_grew_is_exported_without_a_trace_of_its_seeds(
    tmp_path: Path, x: Tensor
) -> None:
    model = mlp()
    before = model.eval()(x)
    bed = wrap(model)
    grow(bed, (S.GERMINATED, S.LOADING))  # chosen and loaded, not part of the model yet
    bed.export(tmp_path / "export", x)
    program = torch.export.load(tmp_path / "export" / "model.pt2")
    assert program.state_dict.keys() == mlp().state_dict().keys()
    assert torch.equal(program.module()(x), before)
    assert b"esper" not in (tmp_path / "export" / "model.pt2").read_bytes()


def test_the_program_is_a_plain_module_that_takes_the_weights_file(copied: Path, x: Tensor) -> None:
    from safetensors.torch import load_file

    model = torch.export.load(copied / "model.pt2").module()
    assert not {type(m).__module__ for m in model.modules() if "esper" in type(m).__module__}
    before = model(x)
    weights = load_file(copied / "model.safetensors")
    assert model.state_dict().keys() == weights.keys()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(model(x), before)
    model.load_state_dict(weights, strict=True)
    assert torch.equal(model(x), before)


def test_esper_loads_an_export_to_let_it_grow_on(copied: Path, x: Tensor) -> None:
    fresh = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    bed = load(fresh, copied)
    assert [seed.state for seed in bed.seeds()] == [SeedState.FOSSILIZED] * 2
    assert torch.equal(fresh.eval()(x), torch.export.load(copied / "model.pt2").module()(x))


def test_exporting_twice_gives_the_same_bytes(copied: Path, tmp_path: Path) -> None:
    small = grown_mlp(torch.float32)
    small.bed.export(tmp_path / "again", small.inputs[0])
    assert contents(tmp_path / "again") == contents(copied)


def test_no_file_holds_a_pickle_an_example_or_a_path_of_this_machine(
    copied: Path, tmp_path: Path
) -> None:
    small = grown_mlp(torch.float32)
    secrets = [small.inputs[0].numpy().tobytes()[:64], str(Path(__file__).parent).encode()]
    secrets += [str(Path(torch.__file__).parent).encode(), b"site-packages"]
    data = contents(copied)
    assert [(name, s) for name in data for s in secrets if s in data[name]] == []
    with zipfile.ZipFile(copied / "model.pt2") as archive:
        assert archive.read("model/data/sample_inputs/model.pt") == b""
        assert not [name for name in archive.namelist() if name.endswith(".pkl")]


def test_a_training_program_trains_as_the_host_does(tmp_path: Path) -> None:
    made = grown("batch_norm")  # with dropout
    model, x = made.bed.model, made.inputs[0]
    manifest = made.bed.export(tmp_path, x, training=True)
    assert [program.mode for program in manifest.programs] == ["eval", "train"]
    twin = torch.export.load(tmp_path / "model_train.pt2").module()
    y = torch.arange(x.shape[0]) % NUM_CLASSES

    def steps(trained: nn.Module) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        torch.manual_seed(2)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(x), y).backward()
            optimizer.step()
        return dict(trained.state_dict())

    theirs, ours = steps(twin), steps(model.train())
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-6) for name in ours)


# What may vary.


def test_tokens_vary_up_to_what_the_host_has_places_for(tmp_path: Path) -> None:
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(1))
    bed = wrap(CausalLM(), targets=["block"], example=ids)
    (program,) = bed.export(tmp_path, {"x": ids}).programs
    batch, tokens = program.axes
    assert program.inputs[0].shape == (batch.name, tokens.name)
    assert (batch.most, tokens.most) == (None, 12)
    model = torch.export.load(tmp_path / "model.pt2").module()
    assert model(x=torch.zeros(2, 12, dtype=torch.long)).shape == (2, 12, 11)
    with pytest.raises(RuntimeError, match="to be <= 12"):
        model(x=torch.zeros(2, 13, dtype=torch.long))


def test_an_axis_of_one_in_the_example_is_fixed_and_said_to_be(tmp_path: Path, x: Tensor) -> None:
    (program,) = wrap(mlp()).export(tmp_path, x[:1]).programs
    assert program.inputs[0].shape == (1, 6)
    assert program.notes == ("axis 0 of input is fixed at 1, as in the example",)


def test_a_host_that_treats_one_row_differently_is_said_to(tmp_path: Path, x: Tensor) -> None:
    bed = odd(lambda y, x: 2 * y if x.shape[0] == 1 else y)
    (program,) = bed.export(tmp_path, x).programs
    assert [axis.least for axis in program.axes] == [2]
    assert "must not be 1" in program.notes[0]


def test_a_host_that_counts_rows_in_python_is_exported_for_that_many(
    tmp_path: Path, x: Tensor
) -> None:
    bed = odd(lambda y, x: y * float(f"{x.shape[0]}"))
    (program,) = bed.export(tmp_path, x).programs
    assert program.inputs[0].shape == (5, 6)
    assert program.axes == ()


def test_what_torch_would_let_vary_wrongly_is_fixed_and_said_to_be(tmp_path: Path) -> None:
    bed = odd(lambda y, x: y if x.shape[0] % 2 == 0 else -y)
    (program,) = bed.export(tmp_path, torch.ones(6, 6)).programs
    assert program.inputs[0].shape == (6, 6)
    assert "no axis may vary: the program's outputs are off" in program.notes[0]


def test_operators_that_a_loading_process_must_bring_are_named(tmp_path: Path, x: Tensor) -> None:
    twice = torch.library.custom_op("kasmina_tests::twice", _twice, mutates_args=())
    twice.register_fake(lambda y: torch.empty_like(y))
    (program,) = odd(lambda y, x: twice(y)).export(tmp_path, x).programs
    assert program.requires == ("kasmina_tests",)


def _twice(y: Tensor) -> Tensor:
    return 2 * y


def test_arguments_by_name_and_outputs_of_several_parts_are_kept(tmp_path: Path, x: Tensor) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(
            self, x: Tensor, *, scale: Tensor, double: bool = False
        ) -> dict[str, Tensor | tuple[Tensor, None]]:
            y = self.head(self.body(x)) * scale
            return {"y": 2 * y if double else y, "rest": (y.sum(), None)}

    torch.manual_seed(0)
    model = Named()
    example = {"scale": torch.rand(5, 1), "x": x, "double": True}
    (program,) = wrap(model).export(tmp_path, example).programs
    assert [record.name for record in program.inputs] == ["scale", "x"]
    found = torch.export.load(tmp_path / "model.pt2").module()(**example)
    wanted: Any = model(**example)
    assert torch.equal(found["y"], wanted["y"])
    assert torch.equal(found["rest"][0], wanted["rest"][0])
    assert found["rest"][1] is None


@dataclass
class Scores:
    y: Tensor
    cache: object = None


def test_outputs_in_containers_of_the_hosts_own_come_as_dicts(tmp_path: Path, x: Tensor) -> None:
    class Pair(NamedTuple):
        scores: Scores
        rest: OrderedDict[str, Tensor]

    bed = odd(lambda y, x: Pair(Scores(y), OrderedDict(y=2 * y)))
    (program,) = bed.export(tmp_path, x).programs
    assert program.requires == ()
    found = torch.export.load(tmp_path / "model.pt2").module()(x)
    assert (type(found), type(found[0]), type(found[1])) == (tuple, dict, dict)
    assert torch.equal(2 * found[0]["y"], found[1]["y"])


def test_an_output_that_no_program_can_return_is_refused_by_its_type(
    tmp_path: Path, x: Tensor
) -> None:
    with pytest.raises(HostError, match=r"returns a Generator, which.*use_cache=False"):
        odd(lambda y, x: Scores(y, torch.Generator())).export(tmp_path / "export", x)
    assert names(tmp_path) == set()


def test_randomness_in_evaluation_is_drawn_alike(tmp_path: Path, x: Tensor) -> None:
    bed = odd(lambda y, x: y + torch.randn_like(y))
    assert bed.export(tmp_path, x).programs[0].deviation == 0.0


def test_state_that_changes_in_evaluation_starts_where_the_host_stands(
    tmp_path: Path, x: Tensor
) -> None:
    class Counting(nn.Module):
        num: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
            self.register_buffer("num", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.num += 1
            return self.head(self.body(x)) * self.num

    torch.manual_seed(0)
    model = Counting()
    wrap(model).export(tmp_path, x)
    assert float(model.num) == 0.0
    twin = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(twin(x), model(x))
    assert torch.equal(twin(x), model(x))


# What is refused.


@pytest.mark.parametrize("state", PATHS, ids=str)
def test_a_seed_before_its_verdict_is_refused(state: SeedState, tmp_path: Path, x: Tensor) -> None:
    bed = wrap(mlp())
    bed.attach(torch.optim.SGD(bed.model.parameters(), lr=0.1))
    grow(bed, PATHS[state])
    with pytest.raises(IllegalTransitionError, match=rf"\(0, 0\) is in {state}; fossilize or cull"):
        bed.export(tmp_path / "export", x)
    assert names(tmp_path) == set()
    order(bed, S.CULLED)
    bed.export(tmp_path / "export", x)


def test_a_host_that_cannot_be_traced_is_refused_with_the_reason_and_nothing_is_written(
    tmp_path: Path, x: Tensor
) -> None:
    bed = odd(lambda y, x: y if y.sum() > 0 else -y)
    with pytest.raises(HostError, match=r"cannot trace.*eval mode.*data-dependent.*torch\.where"):
        bed.export(tmp_path / "export", x)
    assert names(tmp_path) == set()


def test_a_host_that_depends_on_the_world_is_refused_and_the_earlier_export_stays(
    copied: Path, x: Tensor
) -> None:
    calls: list[int] = []

    def end(y: Tensor, x: Tensor) -> Tensor:
        calls.append(1)
        return y * len(calls)

    before = contents(copied)
    with pytest.raises(HostError, match="outputs are off by"):
        odd(end).export(copied, x)
    assert contents(copied) == before
    assert names(copied.parent) == {"export"}


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (torch.zeros(5, 7), "does not run through the model: RuntimeError"),
        ({"y": torch.zeros(5, 6)}, "does not run through the model: TypeError"),
        ((), "does not run through the model: TypeError"),
    ],
    ids=["width", "name", "number"],
)
def test_an_example_that_does_not_fit_is_refused(example: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=reason):
        wrap(mlp()).export(tmp_path / "export", example)
    assert names(tmp_path) == set()


def test_an_output_without_tensors_is_refused(tmp_path: Path, x: Tensor) -> None:
    with pytest.raises(HostError, match="holds no tensor"):
        odd(lambda y, x: float(y.detach().sum())).export(tmp_path / "export", x)


def test_a_folder_that_is_a_file_or_a_checkpoint_is_refused(tmp_path: Path, x: Tensor) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        wrap(mlp()).export(tmp_path / "file", x)
    bed = wrap(mlp())
    bed.attach(torch.optim.SGD(bed.model.parameters(), lr=0.1))
    bed.checkpoint(tmp_path / "run")
    before = names(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a checkpoint"):
        bed.export(tmp_path / "run", x)
    assert names(tmp_path / "run") == before


# What is left alone.


def test_an_export_replaces_the_earlier_one_and_no_other_file(tmp_path: Path, x: Tensor) -> None:
    bed = wrap(mlp())
    bed.export(tmp_path, x, training=True)
    (tmp_path / "notes.txt").write_text("mine")
    assert names(tmp_path) == FILES | {"model_train.pt2", "notes.txt"}
    bed.export(tmp_path, x)
    assert names(tmp_path) == FILES | {"notes.txt"}
    verify_export(tmp_path)


@pytest.mark.parametrize("name", ["conv2d", "lstm"])
def test_exports_in_the_middle_leave_training_as_it_was(name: str, tmp_path: Path) -> None:
    def run(*, exporting: bool) -> str:
        host, bed, optimizer = bed_of(name)
        grow(bed, AT_ONCE, change=wake)

        def meddle(step: int) -> None:
            if exporting and step == 2:
                before, modes = state_bits(bed.model), [m.training for m in bed.model.modules()]
                export(bed, tmp_path, host.batch(9)[0], training=True)
                assert state_bits(bed.model) == before
                assert [m.training for m in bed.model.modules()] == modes

        return digest(
            bed.model, optimizer, life(host, bed.model, optimizer, steps=4, before=meddle)
        )

    assert run(exporting=True) == run(exporting=False)


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "gru", "attention", "encoder", "chunks"])
def test_grafts_are_traced_by_the_strict_tracer_too(name: str) -> None:
    """Users may trace a model that carries seeds themselves."""
    host, bed, _ = bed_of(name)
    grow_all(bed)
    x, model = host.batch(0)[0], bed.model.eval()
    program = torch.export.export(model, (x,), strict=True)
    assert torch.equal(program.module()(x), model(x))
