"""A callback that grows the model of a `lightning.pytorch.Trainer`; needs `esper-tamiyo[lightning]`.

Opens the controller when `fit` starts, hands it the metrics of each epoch, closes it when `fit` ends.
"""
# Checked where lightning is not installed, too:
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUntypedBaseClass=false

from typing import Any, Unpack

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from esper.contracts import ConfigError, SeedBed, SystemStatePacket
from esper.tamiyo.adapters.growing import Growing, Options

AVERAGING = ("StochasticWeightAveraging", "WeightAveraging")
"""Callbacks that keep a copy of the model's architecture as it was when training began."""


class GrowCallback(Callback):
    """Grows the wrapped model while Lightning trains it, with the trainer's own optimizer.

    What you do: move the model to its device, `bed = wrap(model)` before the trainer gets it (the
    `LightningModule` itself or a module in it), return one optimizer and at most one scheduler from
    `configure_optimizers`, and log the validation loss in `validation_step`. Decisions are taken after
    each epoch with a validation, when its checkpoints are written: what a checkpoint holds is what was
    measured. A grown model comes back from `bed.save` or `bed.checkpoint`, not from `ckpt_path`.

    Args:
        bed: the seeds of the model, from `esper.kasmina.wrap`.
        val_loss: the name under which the validation loss is logged.
        val_accuracy: that of the share of correct answers, if there is one.
        train_loss: that of the epoch's training loss, logged with `on_epoch=True`.
        options: `policy`, `evaluate`, `copies`, `runtime` and `log`, as for `Tamiyo`.

    Raises:
        ConfigError: when `fit` starts: for several processes, optimizers or schedulers, no validation, a
            callback that averages weights, or a model without this bed; later: if a metric is missing.

    """

    def __init__(
        self,
        bed: SeedBed,
        *,
        val_loss: str = "val_loss",
        val_accuracy: str | None = None,
        train_loss: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._growing = Growing(
            bed, val_loss=val_loss, val_accuracy=val_accuracy, train_loss=train_loss, **options
        )
        self._was_validated = False

    @property
    def packets(self) -> list[SystemStatePacket]:
        """Every decision point so far."""
        return self._growing.packets

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work before anything is trained."""
        if stage != "fit":
            return
        if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise ConfigError(
                f"{type(trainer.strategy).__name__} trains in {trainer.world_size} processes or in parts; "
                "a model can grow in one process on one device: Trainer(devices=1)"
            )
        if not trainer.enable_validation:
            raise ConfigError(
                "no validation takes place; growth is decided by a validation loss: define "
                "validation_step and give fit() validation data"
            )
        names = {base.__name__ for each in trainer.callbacks for base in type(each).__mro__}
        if averaging := names.intersection(AVERAGING):
            raise ConfigError(
                f"{min(averaging)} averages a model that keeps its size; use a "
                "torch.optim.swa_utils.AveragedModel of your own: GrowCallback(bed, copies=[average])"
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Take control: optimizer and scheduler exist, and the model is where it is trained."""
        for what, found in (
            ("optimizers", trainer.optimizers),
            ("schedulers", trainer.lr_scheduler_configs),
        ):
            if len(found) > 1:
                raise ConfigError(
                    f"configure_optimizers returned {len(found)} {what}; a growing model is trained by one "
                    "optimizer, with one scheduler at most"
                )
        if not trainer.optimizers:
            raise ConfigError("configure_optimizers returned no optimizer; return one")
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        every = trainer.check_val_every_n_epoch or 1
        is_counted = trainer.max_epochs is not None and trainer.max_epochs > 0
        self._growing.open(
            pl_module,
            trainer.optimizers[0],
            scheduler=next(iter(schedulers), None),
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            epochs=trainer.max_epochs // every if is_counted else None,
        )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note that there are new figures, unless it was the trial before training."""
        self._was_validated = self._was_validated or not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the figures of an epoch with a validation."""
        if self._was_validated:
            self._growing.measure(trainer.callback_metrics)
        self._was_validated = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Decide about the epoch before, whose checkpoints are written by now."""
        self._growing.decide()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Decide about the last epoch."""
        self._growing.decide()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the controller."""
        self._growing.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the controller of a training that failed or was interrupted."""
        self._growing.close()
