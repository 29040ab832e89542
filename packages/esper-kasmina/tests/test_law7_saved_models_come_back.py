"""Law 7: save in any state, load in a fresh process, same output."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kasmina_beds import ALL_HOSTS, bed_of
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    TO_TRAINING,
    Make,
    batch_for,
    cnn,
    grow,
    mlp,
    order,
    train,
    wake,
)
from kasmina_hosts import life
from torch import nn

from esper.contracts import (
    ArtifactIntegrityError,
    ConfigError,
    HostError,
    IllegalTransitionError,
    NotFoundError,
    SeedState,
    canonical_json,
    sha256_hex,
)
from esper.kasmina import Bed, load, wrap

pytestmark = pytest.mark.long

ALL_PATHS = PATHS | {SeedState.TRAINING: TO_TRAINING, SeedState.FOSSILIZED: TO_FOSSILIZED}


def grown(make: Make, state: SeedState) -> tuple[Bed, torch.optim.Optimizer]:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, ALL_PATHS[state], between=lambda _: train(model, optimizer, 2))
    return bed, optimizer


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("state", list(ALL_PATHS))
def test_a_model_saved_in_any_state_comes_back(
    make: Make, state: SeedState, tmp_path: Path
) -> None:
    bed, _ = grown(make, state)
    bed.save(tmp_path / "saved")
    fresh = make()
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    again = load(fresh, tmp_path / "saved", stages=QUICK)
    assert again.weights_sha256() == bed.weights_sha256()
    x, _ = batch_for(bed.model)
    assert torch.equal(again.model.eval()(x), bed.model.eval()(x))
    assert again.num_parameters() == bed.num_parameters()
    if state is not SeedState.TRAINING:
        assert again.seeds()[0].model_dump(exclude={"is_ready_for_transition"}) == bed.seeds()[
            0
        ].model_dump(exclude={"is_ready_for_transition"})


@pytest.mark.parametrize("name", ALL_HOSTS)
def test_every_kind_of_host_comes_back_without_an_example(name: str, tmp_path: Path) -> None:
    host, bed, optimizer = bed_of(name)
    site, chunk = len(bed.sites) - 1, bed.sites[-1].num_seeds - 1
    for place in dict.fromkeys([(site, chunk), (0, 0)]):
        grow(
            bed,
            TO_FOSSILIZED,
            site=place[0],
            chunk=place[1],
            change=wake,
            between=lambda _: life(host, bed.model, optimizer, steps=1),
        )
    bed.save(tmp_path)
    again = load(host.make(7), tmp_path)
    assert again.sites == bed.sites
    assert again.weights_sha256() == bed.weights_sha256()
    assert list(again.model.state_dict()) == list(bed.model.state_dict())
    x, _ = host.batch(9)
    assert torch.equal(again.model.eval()(x), bed.model.eval()(x))


def test_a_lineage_of_the_first_format_is_still_read(tmp_path: Path) -> None:
    bed, _ = grown(cnn, SeedState.FOSSILIZED)
    bed.save(tmp_path)
    path = tmp_path / "lineage.json"
    fields = json.loads(path.read_bytes()) | {"format_version": 1}
    fields["sites"] = [site["name"] for site in fields["sites"]]
    for record in fields["grafts"]:
        del record["seed_idx"]
    rewrite(path, fields)
    assert load(cnn(1), tmp_path).weights_sha256() == bed.weights_sha256()


def rewrite(path: Path, fields: dict[str, Any]) -> None:
    """Write changed fields with the hash that belongs to them."""
    fields = {name: value for name, value in fields.items() if name != "content_sha256"}
    fields["content_sha256"] = sha256_hex(canonical_json(fields))
    path.write_text(json.dumps(fields))


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    bed, _ = grown(cnn, SeedState.FOSSILIZED)
    bed.save(tmp_path)
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kasmina_factory import batch_for, cnn
from esper.kasmina import load
bed = load(cnn(5), Path(sys.argv[1]))
print(bed.weights_sha256(), bed.model.eval()(batch_for(bed.model)[0]).tolist())
"""
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), tests],
        capture_output=True,
        text=True,
        check=True,
    )
    output = bed.model.eval()(batch_for(bed.model)[0]).tolist()
    assert done.stdout.strip() == f"{bed.weights_sha256()} {output}"


def test_equal_models_save_equal_bytes_and_leave_no_other_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        bed, _ = grown(mlp, SeedState.FOSSILIZED)
        bed.save(tmp_path / name)
        bed.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["lineage.json", "model.safetensors"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_loaded_ramp_goes_on_and_can_end_but_not_be_undone(tmp_path: Path) -> None:
    bed, _ = grown(mlp, SeedState.GRAFTING)
    bed.save(tmp_path)
    again = load(mlp(1), tmp_path, stages=QUICK)
    optimizer = torch.optim.SGD(again.model.parameters(), lr=0.01)
    again.attach(optimizer)
    assert len(optimizer.param_groups) == 1
    assert again.seeds()[0].alpha == pytest.approx(2 / 3)
    train(again.model, optimizer, 1)
    assert again.seeds()[0].alpha == 1.0
    with pytest.raises(IllegalTransitionError, match="does not keep what the host was before"):
        order(again, SeedState.CULLED)
    for state in (SeedState.STABILIZATION, SeedState.EVALUATING, SeedState.FOSSILIZED):
        order(again, state)


def test_a_loaded_block_joins_an_optimizer_made_before(tmp_path: Path) -> None:
    bed, _ = grown(mlp, SeedState.FOSSILIZED)
    bed.save(tmp_path)
    model = mlp(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    load(model, tmp_path).attach(optimizer)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()))


def test_tied_weights_survive(tmp_path: Path) -> None:
    bed = wrap(Tied())
    bed.save(tmp_path)
    model = Tied()
    again = load(model, tmp_path)
    assert again.weights_sha256() == bed.weights_sha256()
    assert model.second.weight is model.first.weight


class Views(nn.Module):
    """Keeps what is a view of other memory, or is to be read with another sign."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        both = torch.arange(12.0).reshape(3, 4)
        for name, value in {
            "upper": both[:1],
            "lower": both[1:],
            "turned": torch.arange(6.0).reshape(2, 3).t(),
            "repeated": torch.arange(2.0).expand(3, 2),
            "none": torch.zeros(0, 3),
            "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
            "negative": torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
        }.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_views_of_other_memory_come_back(checkpoint: bool, tmp_path: Path) -> None:
    model = Views()
    bed = wrap(model, targets=["head"])
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    (bed.checkpoint if checkpoint else bed.save)(tmp_path)
    fresh = Views()
    for buffer in fresh.buffers():
        buffer.data = torch.zeros_like(buffer)
    again = load(fresh, tmp_path)
    assert again.weights_sha256() == bed.weights_sha256()
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"lineage\.json does not exist"):
        load(mlp(), tmp_path)
    wrap(mlp()).save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"model\.safetensors does not exist"):
        load(mlp(), tmp_path)


@pytest.mark.parametrize("at", [0, 30, -1])
def test_a_changed_byte_in_the_weights_is_found_before_the_host_is_touched(
    at: int, tmp_path: Path
) -> None:
    wrap(mlp()).save(tmp_path)
    flip(tmp_path / "model.safetensors", at)
    model = mlp(1)
    before = wrap(mlp(1)).weights_sha256()
    with pytest.raises(
        ArtifactIntegrityError, match=r"model\.safetensors (was changed|is damaged)"
    ):
        load(model, tmp_path)
    assert wrap(model).weights_sha256() == before


def test_a_changed_byte_anywhere_in_the_lineage_is_found(tmp_path: Path) -> None:
    bed, _ = grown(mlp, SeedState.FOSSILIZED)
    bed.save(tmp_path)
    path = tmp_path / "lineage.json"
    good = path.read_bytes()
    for at in range(0, len(good) - 1, 97):
        flip(path, at)
        if json_or_none(path) != json.loads(good):
            with pytest.raises((ArtifactIntegrityError, ConfigError)):
                load(mlp(1), tmp_path)
        path.write_bytes(good)


def json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    wrap(mlp()).save(tmp_path)
    path = tmp_path / "lineage.json"
    rewrite(path, json.loads(path.read_bytes()) | {"format_version": 3, "invention": True})
    with pytest.raises(ConfigError, match=r"format version 3 .* reads version 2"):
        load(mlp(), tmp_path)


@pytest.mark.parametrize(
    ("make_other", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 3)), "the site '2' is missing"),
        (
            lambda: nn.Sequential(
                nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
            ),
            r"4\.bias: the host has float32 \(4,\), saved is float32 \(3,\)",
        ),
    ],
)
def test_a_different_host_is_refused_untouched(
    make_other: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    wrap(mlp()).save(tmp_path)
    other = make_other()
    with pytest.raises(HostError, match=message):
        load(other, tmp_path)
    wrap(other)
