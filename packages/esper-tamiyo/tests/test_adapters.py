"""The callbacks under the real trainers of lightning and transformers, and the examples, on CPU."""
# Libraries that leave their types open, and are not always installed:
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own imports
    lightning = pytest.importorskip("lightning")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
pytest.importorskip("esper.kasmina")

import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from esper.contracts import ConfigError, SeedState, SystemStatePacket
from esper.kasmina import Bed, StageLengths, load, wrap
from esper.tamiyo import Figures, Never, Tamiyo
from esper.tamiyo.adapters import huggingface
from esper.tamiyo.adapters import lightning as lightning_adapter

pytestmark = [
    # lightning's own: an old call of torch, workers, and where it is on CPU though a GPU is there
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:GPU available but not used.*"),
]

EXAMPLES = Path(__file__).parents[1] / "examples"
EPOCHS, NUM_TRAIN, BATCH = 16, 512, 32
QUICK = StageLengths(training_steps=4, ramp_steps=4, settle_steps=4, fine_tuning_steps=4)


def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32)[:640] / 16, torch.tensor(labels)[:640]


def host() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10))


def wrapped(model: nn.Module) -> Bed:
    return wrap(model, example=digits()[0][:8], widen=True, stages=QUICK)


def reached(packets: list[SystemStatePacket]) -> list[SeedState]:
    return [event.to_state for packet in packets for event in packet.events]


def is_part(name: str) -> bool:
    """Tell whether a parameter of this name is a block's."""
    return "esper" in name


def unhelpful() -> Figures:
    """Find the model as good without any block: each is culled."""
    return Figures(loss=10.0)


class Module(lightning.LightningModule):
    """A host as a part of a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = host()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        scores = self.net(batch[0])
        self.log("val_loss", functional.cross_entropy(scores, batch[1]))
        self.log("val_accuracy", (scores.argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=5)]


def fit(module: Any, *callbacks: Any, validates: bool = True, **settings: Any) -> Any:
    """Train as a user of lightning would, and return the trainer."""
    pixels, labels = digits()
    train = TensorDataset(pixels[:NUM_TRAIN], labels[:NUM_TRAIN])
    validation = TensorDataset(pixels[NUM_TRAIN:], labels[NUM_TRAIN:])
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        **{"max_epochs": EPOCHS, "enable_checkpointing": False} | settings,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader(train, batch_size=BATCH, shuffle=True)
    trainer.fit(module, batches, DataLoader(validation, batch_size=128) if validates else None)
    return trainer


def test_a_model_grows_under_lightning_and_what_grew_is_trained() -> None:
    module = Module()
    bed = wrapped(module.net)
    before = bed.num_parameters()
    growth = lightning_adapter.GrowCallback(bed, val_accuracy="val_accuracy")
    trainer = fit(module, growth)
    assert {SeedState.GRAFTING, SeedState.FOSSILIZED} <= set(reached(growth.packets))
    assert bed.num_parameters() > before
    assert [packet.epoch for packet in growth.packets] == list(range(EPOCHS))
    assert growth.packets[-1].step == trainer.global_step == EPOCHS * NUM_TRAIN // BATCH
    assert growth.packets[-1].val_loss < growth.packets[0].val_loss
    assert growth.packets[-1].val_accuracy == trainer.callback_metrics["val_accuracy"].item()
    (optimizer,) = trainer.optimizers
    grown = [p for name, p in module.named_parameters() if is_part(name)]
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert grown
    assert all(owned.count(id(p)) == 1 for p in grown)
    assert any(p in optimizer.state for p in grown)


def test_a_block_that_does_not_help_is_culled_and_lightning_trains_on() -> None:
    module = Module()
    bed = wrapped(module.net)
    before = bed.num_parameters()
    growth = lightning_adapter.GrowCallback(bed, evaluate=unhelpful)
    trainer = fit(module, growth)
    assert SeedState.CULLED in reached(growth.packets)
    assert SeedState.FOSSILIZED not in reached(growth.packets)
    assert bed.num_parameters() == before
    assert trainer.global_step == EPOCHS * NUM_TRAIN // BATCH
    assert not any(is_part(name) for name, _ in module.named_parameters())
    (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
    assert len(optimizer.param_groups) == len(config.scheduler.base_lrs) == 1
    assert growth.packets[-1].val_loss < growth.packets[0].val_loss


def test_lightning_with_a_callback_that_never_grows_trains_as_without_it() -> None:
    watched, alone = Module(), Module()
    bed = wrapped(watched.net)
    fit(watched, lightning_adapter.GrowCallback(bed, policy=Never()))
    fit(alone)
    pairs = zip(bed.unwrap().parameters(), alone.net.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_checkpoint_of_lightning_holds_the_model_that_was_measured(tmp_path: Path) -> None:
    module = Module()
    growth = lightning_adapter.GrowCallback(wrapped(module.net))
    files = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, monitor="val_loss")
    fit(module, growth, files, enable_checkpointing=True)
    states = [event.to_state for packet in growth.packets for event in packet.events]
    assert SeedState.GRAFTING in states
    grafted = next(
        packet.epoch
        for packet in growth.packets
        if any(event.to_state is SeedState.GRAFTING for event in packet.events)
    )
    for epoch, has_block in ((grafted, False), (grafted + 1, True)):
        saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert any(is_part(name) for name in saved) is has_block


def test_epochs_without_a_validation_are_no_decision_points() -> None:
    module = Module()
    growth = lightning_adapter.GrowCallback(wrapped(module.net))
    fit(module, growth, check_val_every_n_epoch=3, max_epochs=9)
    assert [packet.step for packet in growth.packets] == [48, 96, 144]


def test_after_a_training_that_failed_the_bed_is_free() -> None:
    module = Module()
    bed = wrapped(module.net)

    class Failing(lightning.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            raise RuntimeError("out of something")

    with pytest.raises(RuntimeError, match="out of something"):
        fit(module, lightning_adapter.GrowCallback(bed), Failing())
    Tamiyo(bed, torch.optim.SGD(module.parameters(), lr=0.1)).close()


class SeveralOptimizers(Module):
    """What a generative adversarial net does."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[0].parameters()),
            torch.optim.SGD(self.net[4].parameters()),
        ]


class Silent(Module):
    """Logs no validation loss."""

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_error", functional.cross_entropy(self.net(batch[0]), batch[1]))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (SeveralOptimizers, {}, "optimizers: 2, schedulers: 0"),
        (Silent, {}, "no 'val_loss' was logged.*val_error"),
        (Module, {"validates": False}, "no validation takes place"),
        (Module, {"average": StochasticWeightAveraging(swa_lrs=1e-2)}, "averaging callbacks"),
    ],
)
def test_lightning_is_told_what_cannot_work(
    make: Callable[[], Any], settings: dict[str, Any], message: str
) -> None:
    module = make()
    others = [settings.pop("average")] if "average" in settings else []
    with pytest.raises(ConfigError, match=message):
        fit(module, lightning_adapter.GrowCallback(wrapped(module.net)), *others, **settings)


def test_several_processes_of_lightning_are_refused_before_they_train() -> None:
    trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False)
    growth = lightning_adapter.GrowCallback(wrapped(host()))
    with pytest.raises(ConfigError, match="with 2 processes"):
        growth.on_fit_start(trainer, Module())


@pytest.mark.parametrize("adapter", [lightning_adapter, huggingface])
def test_what_is_no_bed_is_refused(adapter: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape("GrowCallback(wrap(model))")):
        adapter.GrowCallback(host())


def test_the_bed_of_another_model_is_refused_by_lightning() -> None:
    with pytest.raises(ConfigError, match="the Module that is trained has no part"):
        fit(Module(), lightning_adapter.GrowCallback(wrapped(host())))


class Classifier(nn.Module):
    """A host that answers as `transformers.Trainer` expects."""

    def __init__(self) -> None:
        super().__init__()
        self.net = host()

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(pixels)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer_of(model: nn.Module, growth: Any, folder: Path, **settings: Any) -> Any:
    """Make a Trainer as a user of transformers would."""
    pixels, labels = digits()
    data = [{"pixels": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]
    arguments = transformers.TrainingArguments(
        **{"eval_strategy": "epoch", "save_strategy": "no", "num_train_epochs": EPOCHS} | settings,
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data[:NUM_TRAIN],
        eval_dataset=data[NUM_TRAIN:],
        compute_metrics=accuracy,
        callbacks=[growth] if growth else [],
    )


def test_a_model_grows_under_transformers_and_what_grew_is_trained(tmp_path: Path) -> None:
    model = Classifier()
    bed = wrapped(model.net)
    before = bed.num_parameters()
    growth = huggingface.GrowCallback(bed, val_accuracy="eval_accuracy")
    trainer = trainer_of(model, growth, tmp_path)
    trainer.train()
    assert {SeedState.GRAFTING, SeedState.FOSSILIZED} <= set(reached(growth.packets))
    assert bed.num_parameters() > before
    assert [packet.epoch for packet in growth.packets] == list(range(EPOCHS))
    assert growth.packets[-1].step == trainer.state.global_step == EPOCHS * NUM_TRAIN // BATCH
    assert growth.packets[-1].val_loss < growth.packets[0].val_loss
    grown = [p for name, p in model.named_parameters() if is_part(name)]
    owned = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert grown
    assert all(owned.count(id(p)) == 1 for p in grown)
    assert any(p in trainer.optimizer.state for p in grown)
    bed.save(tmp_path / "grown")
    again = host()
    load(again, tmp_path / "grown")
    pixels = digits()[0]
    assert torch.equal(again(pixels), model.net(pixels))


def test_a_block_that_does_not_help_is_culled_and_transformers_trains_on(tmp_path: Path) -> None:
    model = Classifier()
    bed = wrapped(model.net)
    before = bed.num_parameters()
    growth = huggingface.GrowCallback(bed, evaluate=unhelpful)
    trainer = trainer_of(model, growth, tmp_path)
    first_groups = trainer.create_optimizer().param_groups[:]
    trainer.train()
    assert SeedState.CULLED in reached(growth.packets)
    assert SeedState.FOSSILIZED not in reached(growth.packets)
    assert bed.num_parameters() == before
    assert trainer.state.global_step == EPOCHS * NUM_TRAIN // BATCH
    assert len(trainer.optimizer.param_groups) == len(first_groups)
    assert len(trainer.lr_scheduler.base_lrs) == len(first_groups)
    assert growth.packets[-1].val_loss < growth.packets[0].val_loss


def test_transformers_with_a_callback_that_never_grows_trains_as_without_it(tmp_path: Path) -> None:
    watched, alone = Classifier(), Classifier()
    bed = wrapped(watched.net)
    trainer_of(watched, huggingface.GrowCallback(bed, policy=Never()), tmp_path).train()
    trainer_of(alone, None, tmp_path).train()
    pairs = zip(bed.unwrap().parameters(), alone.net.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_trainer_grows_on_when_it_trains_again(tmp_path: Path) -> None:
    model = Classifier()
    growth = huggingface.GrowCallback(wrapped(model.net))
    trainer = trainer_of(model, growth, tmp_path)
    trainer.train()
    trainer.train()
    assert [packet.epoch for packet in growth.packets] == [*range(EPOCHS), *range(EPOCHS)]


def test_evaluations_between_steps_are_decision_points(tmp_path: Path) -> None:
    model = Classifier()
    growth = huggingface.GrowCallback(wrapped(model.net))
    steps = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    trainer_of(model, growth, tmp_path, **steps, num_train_epochs=16, eval_on_start=True).train()
    assert [packet.step for packet in growth.packets] == [*range(5, 257, 5), 256]
    grafted = next(
        packet.step
        for packet in growth.packets
        if any(event.to_state is SeedState.GRAFTING for event in packet.events)
    )
    for step, has_block in ((grafted, False), (grafted + 5, True)):
        saved = (tmp_path / f"checkpoint-{step}" / "model.safetensors").read_bytes()
        assert (b"esper" in saved) is has_block, "a checkpoint holds what was measured"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_strategy": "no"}, "no evaluation takes place"),
        ({"load_best_model_at_end": True, "save_strategy": "epoch"}, "load_best_model_at_end"),
    ],
)
def test_transformers_is_told_what_cannot_work(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = Classifier()
    growth = huggingface.GrowCallback(wrapped(model.net))
    with pytest.raises(ConfigError, match=message):
        trainer_of(model, growth, tmp_path, **settings).train()


def test_a_metric_that_no_evaluation_has_is_named_and_the_bed_can_be_freed(tmp_path: Path) -> None:
    model = Classifier()
    bed = wrapped(model.net)
    growth = huggingface.GrowCallback(bed, val_loss="eval_perplexity")
    with pytest.raises(ConfigError, match=r"no 'eval_perplexity' was logged.*eval_loss"):
        trainer_of(model, growth, tmp_path).train()
    growth.close()
    Tamiyo(bed, torch.optim.SGD(model.parameters(), lr=0.1)).close()


def test_the_bed_of_another_model_is_refused_by_transformers(tmp_path: Path) -> None:
    growth = huggingface.GrowCallback(wrapped(host()))
    with pytest.raises(ConfigError, match="the Classifier that is trained has no part"):
        trainer_of(Classifier(), growth, tmp_path).train()


def test_several_processes_of_transformers_are_refused(tmp_path: Path) -> None:
    distributed = transformers.training_args.ParallelMode.DISTRIBUTED
    args = SimpleNamespace(parallel_mode=distributed, world_size=2, n_gpu=1)
    growth = huggingface.GrowCallback(wrapped(host()))
    with pytest.raises(ConfigError, match=r"2 processes.*one device"):
        growth.on_train_begin(args, None, None)


@pytest.mark.parametrize("name", ["lightning_callback", "huggingface_callback", "accelerate_loop"])
def test_the_example_runs_and_its_model_grows(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = re.findall(r"(\d+) parameters became (\d+)", done.stdout)[0]
    assert int(after) > int(before)
    assert "FOSSILIZED" in done.stdout
