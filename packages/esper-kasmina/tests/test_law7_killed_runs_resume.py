"""Law 7: a run that is killed at any point resumes to the identical final weights."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kasmina_beds import ALL_HOSTS, wrap_host
from kasmina_factory import (
    PATHS,
    TO_FOSSILIZED,
    TO_TRAINING,
    Crucible,
    admit,
    cnn,
    grow,
    mlp,
    order,
    wake,
)
from kasmina_run import WHEN
from kasmina_worlds import OPTIMIZERS, SCHEDULERS, Life, attach, begin, come_back, seen, surround
from safetensors import SafetensorError
from torch import nn, optim

from esper.contracts import (
    ArtifactIntegrityError,
    ConfigError,
    HostError,
    KasminaCommand,
    KernelRejectedError,
    NotFoundError,
    SeedState,
    canonical_json,
    sha256_hex,
)
from esper.kasmina import Bed, files, load, wrap

pytestmark = pytest.mark.long

S = SeedState

ALL_PATHS = {
    path[-1]: path for path in (TO_TRAINING[:2], TO_TRAINING, *PATHS.values(), TO_FOSSILIZED)
}
"""How to reach every state in which a seed holds a block."""

NEXT = dict(itertools.pairwise(TO_FOSSILIZED))


def lead(life: Life, path: tuple[SeedState, ...]) -> None:
    """Lead the seed along `path`, two steps in every state."""
    grow(life.bed, path, site=life.site, change=wake, between=lambda _: life.live(2))


def finish(life: Life) -> Any:
    """Lead the seed to its end, whatever state it is in; return everything there is to see."""
    seed_id = (life.site, 0)
    while (state := life.bed.seed(seed_id).state) in NEXT:
        life.live(2)
        order(life.bed, NEXT[state], seed_id=seed_id)
    life.live(2)
    health = life.bed.end_epoch(3)
    return (seen(life.world, objects=False), life.bed.seeds(), health, life.bed.step)


def check_coming_back(life: Life, path: tuple[SeedState, ...], folder: Path) -> None:
    """Checkpoint in a state, go on to the end; come back with nothing of it, end the same."""
    life.live(2)
    lead(life, path)
    life.bed.checkpoint(folder)
    then, clock = seen(life.world, objects=False), life.clock
    assert seen(life.world, objects=False) == then
    end = finish(life)
    torch.manual_seed(99)
    random.seed(99)
    other = come_back(life, folder)
    assert seen(other.world, objects=False) == then
    other.clock = clock
    assert finish(other) == end


@pytest.mark.parametrize("state", [S.TRAINING, S.GRAFTING, S.FINE_TUNING])
@pytest.mark.parametrize("name", ALL_HOSTS)
def test_every_kind_of_host_comes_back_from_a_checkpoint(
    name: str, state: SeedState, tmp_path: Path
) -> None:
    check_coming_back(begin(name), ALL_PATHS[state], tmp_path)


@pytest.mark.parametrize("state", list(ALL_PATHS))
def test_every_state_comes_back_from_a_checkpoint(state: SeedState, tmp_path: Path) -> None:
    check_coming_back(begin("conv2d"), ALL_PATHS[state], tmp_path)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_comes_back_from_a_checkpoint(optimizer: str, tmp_path: Path) -> None:
    life = begin("mlp", optimizer, "sequential", scaled="fused" not in optimizer)
    check_coming_back(life, ALL_PATHS[S.GRAFTING], tmp_path)


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_every_scheduler_comes_back_from_a_checkpoint(scheduler: str, tmp_path: Path) -> None:
    check_coming_back(begin("mlp", "sgd", scheduler), ALL_PATHS[S.FINE_TUNING], tmp_path)


@pytest.mark.parametrize("state", list(PATHS))
@pytest.mark.parametrize("optimizer", ["sgd", "adamw_foreach", "adagrad"])
def test_a_graft_can_still_be_undone_exactly_after_coming_back(
    optimizer: str, state: SeedState, tmp_path: Path
) -> None:
    life = begin("conv2d", optimizer, "sequential")
    life.live(2)
    before = seen(life.world, objects=False)
    grow(life.bed, TO_TRAINING, change=wake)
    grow(life.bed, (), site=1)
    for target in PATHS[state][len(TO_TRAINING) :]:
        order(life.bed, target)
        life.live(2)
    life.bed.checkpoint(tmp_path)
    clock = life.clock
    other = come_back(life, tmp_path)
    other.clock = clock
    other.live(3)
    order(other.bed, S.CULLED)
    assert seen(other.world, objects=False) == before


def test_a_checkpoint_of_a_run_that_came_back_is_the_same_run(tmp_path: Path) -> None:
    life = begin("conv2d")
    lead(life, ALL_PATHS[S.GRAFTING])
    life.bed.checkpoint(tmp_path)
    clock, end = life.clock, finish(life)
    for _ in range(2):
        life = come_back(life, tmp_path)
        life.bed.checkpoint(tmp_path)
    life.clock = clock
    assert finish(life) == end


def test_parameters_may_be_grouped_otherwise_in_the_new_process(tmp_path: Path) -> None:
    life = begin("mlp", averaged=False, scaled=False)
    lead(life, ALL_PATHS[S.FINE_TUNING])
    life.bed.checkpoint(tmp_path)
    clock, end = life.clock, finish(life)
    model: Any = life.host.make(7)
    bed = load(model, tmp_path)
    bed.trust(Crucible().public_key)
    groups = [{"params": [p], "lr": 0.5 / i} for i, p in enumerate(model.parameters(), start=1)]
    optimizer = optim.AdamW(groups)
    world = life.world.__class__(
        model=model, optimizer=optimizer, scheduler=SCHEDULERS["cosine"](optimizer)
    )
    attach(bed, world)
    bed.resume(tmp_path)
    assert [group["lr"] for group in optimizer.param_groups] != [0.5]
    assert len(optimizer.param_groups) == 2
    other = Life(host=life.host, world=world, bed=bed, site=0, made_with=("", ""), clock=clock)
    assert finish(other)[0]["state"] == end[0]["state"]


def test_a_bare_host_can_come_back_without_load(tmp_path: Path) -> None:
    life = begin("conv2d")
    lead(life, ALL_PATHS[S.FINE_TUNING])
    life.bed.checkpoint(tmp_path)
    clock, end = life.clock, finish(life)
    model = life.host.make(7)
    bed = wrap_host(life.host, model, sample_every_steps=3)
    bed.trust(Crucible().public_key)
    world = surround(model, *life.made_with, scaled=True, averaged=True)
    attach(bed, world)
    bed.resume(tmp_path)
    other = Life(
        host=life.host, world=world, bed=bed, site=life.site, made_with=life.made_with, clock=clock
    )
    assert finish(other) == end


def test_what_was_carried_out_before_is_not_carried_out_again(tmp_path: Path) -> None:
    life = begin("mlp")
    command = KasminaCommand(
        seed_id=(0, 0), target=S.GERMINATED, kernel_id=admit(life.bed), epoch=0, reason="test"
    )
    assert life.bed.execute(command) is not None
    order(life.bed, S.CANCELLED)
    life.bed.end_epoch(0)
    order(life.bed, S.DORMANT)
    life.bed.checkpoint(tmp_path)
    assert come_back(life, tmp_path).bed.execute(command) is None


def test_the_lengths_of_stages_come_back_unless_others_are_given(tmp_path: Path) -> None:
    life = begin("mlp")
    life.bed.checkpoint(tmp_path)
    stages = life.bed.seed((0, 0)).stages
    assert load(mlp(), tmp_path).seed((0, 0)).stages == stages


# --- killed for real ---------------------------------------------------------------------------


def run(folder: Path, what: str) -> dict[str, Any]:
    program = Path(__file__).with_name("kasmina_run.py")
    done = subprocess.run(
        [sys.executable, str(program), str(folder), what],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What becomes of runs that were killed in many states and resumed by another process."""
    folder = tmp_path_factory.mktemp("runs")
    assert run(folder, "kill") == dict.fromkeys(WHEN, signal.SIGKILL)
    return run(folder, "resume")


@pytest.mark.parametrize("kill_at", list(WHEN))
def test_a_killed_process_resumes_to_the_identical_final_weights(
    kill_at: str, ends: dict[str, str]
) -> None:
    assert ends[kill_at] == ends["never killed"]


# --- what can go wrong -------------------------------------------------------------------------


def leave(_path: Path, *, ignore_errors: bool) -> None:
    assert ignore_errors


def test_a_process_that_dies_while_it_writes_leaves_the_previous_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin("mlp")
    lead(life, ALL_PATHS[S.GRAFTING])
    life.bed.checkpoint(tmp_path)
    step = life.bed.step
    life.live(1)
    write = files.write_atomically
    num_files = 0

    def count(path: Path, data: bytes) -> None:
        nonlocal num_files
        num_files += 1
        write(path, data)

    monkeypatch.setattr(files, "write_atomically", count)
    life.bed.checkpoint(tmp_path / "elsewhere")
    assert num_files == 6

    for last in range(num_files):
        left = last

        def die(path: Path, data: bytes) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            write(path, data)

        monkeypatch.setattr(files, "write_atomically", die)
        # A process that is killed outright cannot clean up either.
        monkeypatch.setattr(shutil, "rmtree", leave)
        with pytest.raises(KeyboardInterrupt):
            life.bed.checkpoint(tmp_path)
        assert come_back(life, tmp_path).bed.step == step
    monkeypatch.undo()
    life.bed.checkpoint(tmp_path)
    assert come_back(life, tmp_path).bed.step == step + 1
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("step-")]) == 1


@pytest.mark.parametrize(
    "words",
    ["I/O error: No space left on device (os error 28)", "IoError(Os { code: 28, kind: … })"],
)
def test_a_full_disk_is_an_operating_systems_error_and_leaves_the_previous_moment(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin("mlp")
    life.bed.checkpoint(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    life.live(1)

    def fail(*_: object) -> None:
        raise SafetensorError(f"Error while serializing: {words}")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space left on device") as told:
        life.bed.checkpoint(tmp_path)
    assert told.value.errno == errno.ENOSPC
    assert sorted(tmp_path.rglob("*")) == before
    assert come_back(life, tmp_path).bed.step == life.bed.step - 1


def moment(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.name.startswith("step-"))
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run with a block before its verdict; read only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    life = begin("mlp")
    lead(life, ALL_PATHS[S.FINE_TUNING])
    life.bed.checkpoint(folder)
    return folder


def ready(folder: Path) -> Callable[[], object]:
    """Return what resumes from `folder` in a bed that stands ready."""
    life = begin("mlp")
    life.bed.trust(Crucible().public_key)
    life.live(1)
    before = seen(life.world), life.bed.seeds(), life.bed.step

    def resume() -> None:
        try:
            life.bed.resume(folder)
        finally:
            assert (seen(life.world), life.bed.seeds(), life.bed.step) == before

    return resume


FILES = ["model.safetensors", "lineage.json", "run.json", "run.safetensors", "kernel-*"]


@pytest.mark.parametrize("pattern", FILES)
def test_a_tampered_or_cut_file_is_named_and_changes_nothing(
    pattern: str, written: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
    (path,) = moment(folder).glob(pattern)
    good = path.read_bytes()
    resume = ready(folder)
    for at in (0, 9, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 1
        for data in (bytes(bad), good[:at]):
            path.write_bytes(data)
            with pytest.raises(ArtifactIntegrityError, match=f"{path.name} was changed or cut"):
                resume()
    path.unlink()
    with pytest.raises(NotFoundError, match=f"{path.name} does not exist; .* is incomplete"):
        resume()


def test_a_tampered_or_cut_manifest_is_named(written: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
    path = folder / "checkpoint.json"
    good = path.read_bytes()
    resume = ready(folder)
    for at in range(0, len(good) - 1, 61):
        bad = bytearray(good)
        bad[at] ^= 1
        for data in (bytes(bad), good[:at]):
            path.write_bytes(data)
            with pytest.raises((ArtifactIntegrityError, ConfigError), match=r"checkpoint\.json"):
                resume()
    path.unlink()
    with pytest.raises(NotFoundError, match=r"checkpoint\.json does not exist; give a folder"):
        resume()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2, "news": 1}, r"format version 2 .* reads version 1"),
        ({"api_version": "v9"}, r"of API 'v9'; this installation reads"),
        ({"folder": "../other"}, r"is damaged: folder"),
        ({"files": {"../../secret": "0" * 64}}, r"are not names of its files"),
    ],
)
def test_a_manifest_that_is_newer_or_leads_elsewhere_is_refused(
    change: dict[str, Any], message: str, written: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
    path = folder / "checkpoint.json"
    fields = json.loads(path.read_bytes()) | change
    del fields["content_sha256"]
    fields["content_sha256"] = sha256_hex(canonical_json(fields))
    path.write_text(json.dumps(fields))
    with pytest.raises((ArtifactIntegrityError, ConfigError), match=message):
        ready(folder)()


def test_a_crucible_that_is_not_trusted_here_is_refused(written: Path) -> None:
    model = mlp(5)
    bed = load(model, written)
    bed.attach(optim.AdamW(model.parameters()))
    with pytest.raises(KernelRejectedError, match=r"not trusted here .* call trust"):
        bed.resume(written)


def world_for(kind: str) -> Bed:
    """Return a bed that the checkpoint of `written` does not fit."""
    model = cnn() if kind == "host" else mlp()
    bed = wrap(model)
    bed.trust(Crucible().public_key)
    world = surround(model, "adamw_foreach", "cosine", scaled=True, averaged=kind != "copies")
    optimizer: Any = optim.SGD(model.parameters(), lr=0.1) if kind == "class" else world.optimizer
    scheduler = SCHEDULERS["step" if kind == "scheduler" else "cosine"](optimizer)
    if kind != "optimizer":
        scaler = None if kind == "scaler" else world.scaler
        bed.attach(optimizer, scheduler, scaler=scaler, copies=world.copies)
    return bed


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("host", "the host is not what this state was taken from"),
        ("class", "the optimizer is a SGD, the state is that of an AdamW"),
        ("scheduler", "the scheduler is StepLR, the state is that of CosineAnnealingLR"),
        ("copies", "0 copies of the host are attached, the state has 2"),
        ("scaler", "a run with one gradient scaler"),
        ("optimizer", "the run had an optimizer; attach"),
    ],
)
def test_a_bed_that_the_run_does_not_fit_is_refused_unchanged(
    kind: str, message: str, written: Path
) -> None:
    bed = world_for(kind)
    before = bed.weights_sha256(), bed.seeds(), [name for name, _ in bed.model.named_modules()]
    with pytest.raises(HostError, match=message):
        bed.resume(written)
    now = bed.weights_sha256(), bed.seeds(), [name for name, _ in bed.model.named_modules()]
    assert now == before


def test_a_saved_model_and_a_checkpoint_do_not_share_a_folder(tmp_path: Path) -> None:
    bed = begin("mlp").bed
    bed.save(tmp_path / "model")
    bed.checkpoint(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a saved model; choose another folder"):
        bed.checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match="holds a checkpoint; choose another folder"):
        bed.save(tmp_path / "run")


def test_state_that_cannot_be_written_is_named_and_the_previous_moment_stays(
    tmp_path: Path,
) -> None:
    life = begin("mlp")
    life.bed.checkpoint(tmp_path)
    optimizer: Any = life.world.optimizer
    optimizer.param_groups[0]["callback"] = print
    with pytest.raises(
        HostError, match=r"run\['now'\]\['optimizer'\]\['groups'\]\[0\].*'callback'\] is a"
    ):
        life.bed.checkpoint(tmp_path)
    del optimizer.param_groups[0]["callback"]
    assert come_back(life, tmp_path).bed.step == 0


def test_what_a_scaler_found_for_another_optimizer_cannot_be_written(tmp_path: Path) -> None:
    life = begin("mlp")
    scaler: Any = life.world.scaler
    other = nn.Parameter(torch.ones(1))
    second = optim.SGD([other], lr=0.1)
    scaler.scale(other.sum()).backward()
    scaler.unscale_(second)
    with pytest.raises(HostError, match=r"make the checkpoint after scaler\.update"):
        life.bed.checkpoint(tmp_path)
    scaler.step(second)
    scaler.update()
    life.bed.checkpoint(tmp_path)
