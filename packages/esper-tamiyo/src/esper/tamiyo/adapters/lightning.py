"""A callback that grows the model of a `lightning.pytorch.Trainer`; needs `esper-tamiyo[lightning]`.

Opens the controller when `fit` starts, hands it each epoch's validation, closes it when `fit` ends.
"""
# ruff: noqa: ARG002 - hooks get more than each needs; lightning may be missing where this is checked:
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUntypedBaseClass=false

from typing import Any, Unpack

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from esper.contracts import ConfigError, SeedBed, SystemStatePacket
from esper.tamiyo.adapters.keeper import Keeper, Options


class GrowCallback(Callback):
    """Grows the wrapped model while Lightning trains it, with the trainer's own optimizer.

    What you do: move the model to its device; `bed = wrap(model)` before the trainer gets it (the
    `LightningModule` itself or a module in it); return one optimizer and at most one scheduler from
    `configure_optimizers`; log the validation loss in `validation_step`. Decisions about an epoch are
    taken when its checkpoints are written: they hold what was measured. A grown model comes back from
    `bed.save` or `bed.checkpoint`, not from `ckpt_path`.

    Args:
        bed: the seeds of the model, from `esper.kasmina.wrap`.
        val_loss: the name under which the validation loss is logged.
        val_accuracy: that of the share of correct answers, if there is one.
        options: `policy`, `evaluate`, `copies`, `runtime` and `log`, as for `Tamiyo`.

    Raises:
        ConfigError: when `fit` starts: for several processes, optimizers or schedulers, no validation,
            averaging callbacks, or a model without this bed; later: if a metric is missing.

    """

    def __init__(
        self,
        bed: SeedBed,
        *,
        val_loss: str = "val_loss",
        val_accuracy: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._keeper = Keeper(bed, val_loss=val_loss, val_accuracy=val_accuracy, **options)

    @property
    def packets(self) -> list[SystemStatePacket]:
        """Every decision point so far."""
        return self._keeper.packets

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Take control: optimizer and scheduler exist, and the model is where it is trained."""
        if refusal := _refusal(trainer):
            raise ConfigError(refusal)
        last, every = trainer.max_epochs or 0, trainer.check_val_every_n_epoch or 1
        self._keeper.open(
            pl_module,
            *trainer.optimizers,
            scheduler=next((each.scheduler for each in trainer.lr_scheduler_configs), None),
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            epochs=last // every if last > 0 else None,
        )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the figures, unless it was the trial before training."""
        if not trainer.sanity_checking:
            self._keeper.measure(trainer.callback_metrics)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Decide about the epoch before."""
        self._keeper.decide()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Decide about the last epoch, and close the controller."""
        self._keeper.decide()
        self._keeper.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the controller of a training that failed or was interrupted."""
        self._keeper.close()


def _refusal(trainer: Any) -> str | None:
    """Return why a model cannot grow under `trainer`, and what to do."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        how = f"{type(trainer.strategy).__name__} with {trainer.world_size} processes"
        return f"this is {how}; a model grows in one process on one device: Trainer(devices=1)"
    if not trainer.enable_validation:
        return "no validation takes place, which growth is decided by; give fit() validation data"
    numbers = len(trainer.optimizers), len(trainer.lr_scheduler_configs)
    if numbers not in ((1, 0), (1, 1)):
        found = "optimizers: {}, schedulers: {}".format(*numbers)
        return f"configure_optimizers returned {found}; expected one, and at most one"
    names = {base.__name__ for callback in trainer.callbacks for base in type(callback).__mro__}
    if names & {"StochasticWeightAveraging", "WeightAveraging"}:
        return "averaging callbacks cannot grow; average your own: GrowCallback(bed, copies=…)"
    return None
