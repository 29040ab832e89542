"""A callback that grows the model of a `transformers.Trainer`; needs `esper-tamiyo[huggingface]`.

Opens the controller when `train` begins, hands it the metrics of each evaluation, closes it at the end.
"""
# ruff: noqa: ARG002 - hooks are given more than each needs
# Checked where transformers is not installed, too:
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUntypedBaseClass=false

import math
from typing import Any, Unpack

from transformers import TrainerCallback

from esper.contracts import ConfigError, SeedBed, SystemStatePacket
from esper.tamiyo.adapters.keeper import Keeper, Options


class GrowCallback(TrainerCallback):
    """Grows the wrapped model while a `Trainer` trains it, with the trainer's own optimizer.

    What you do: move the model to its device, `bed = wrap(model, example=...)` before the `Trainer` gets
    it, and evaluate on a schedule (`eval_strategy="epoch"`, or `"steps"`). Each evaluation is a decision
    point; decisions are taken before the next step, when its checkpoint is written: what a checkpoint
    holds is what was measured. A grown model comes back from `bed.save` or `bed.checkpoint`, not from
    `resume_from_checkpoint`. After a training that failed, `close()` frees the bed for another callback.

    Args:
        bed: the seeds of the model, from `esper.kasmina.wrap`.
        val_loss: the name of the validation loss among the evaluation's metrics.
        val_accuracy: that of the share of correct answers, if `compute_metrics` returns one.
        options: `policy`, `evaluate`, `copies`, `runtime` and `log`, as for `Tamiyo`.

    Raises:
        ConfigError: when training begins: for several processes or devices, no evaluation,
            `load_best_model_at_end`, or a model without this bed; later: if a metric is missing.

    """

    def __init__(
        self,
        bed: SeedBed,
        *,
        val_loss: str = "eval_loss",
        val_accuracy: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._keeper = Keeper(bed, val_loss=val_loss, val_accuracy=val_accuracy, **options)

    @property
    def packets(self) -> list[SystemStatePacket]:
        """Every decision point so far."""
        return self._keeper.packets

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what cannot work, then take control of the model and of what trains it."""
        if args.parallel_mode.value != "not_parallel":
            raise ConfigError(
                f"the Trainer trains in parallel ({args.parallel_mode.value}, {args.world_size} processes); "
                "a model grows in one process on one device"
            )
        if args.eval_strategy == "no":
            raise ConfigError(
                "no evaluation takes place; growth is decided by a validation loss: "
                'TrainingArguments(eval_strategy="epoch") and an eval_dataset'
            )
        if args.load_best_model_at_end:
            raise ConfigError(
                "load_best_model_at_end would load weights from before a growth into what was grown "
                "since; leave it out"
            )
        optimizer, scheduler = kwargs["optimizer"], kwargs["lr_scheduler"]
        self._keeper.open(
            kwargs["model"],
            getattr(optimizer, "optimizer", optimizer),  # inside accelerate's
            scheduler=getattr(scheduler, "scheduler", scheduler),
            scaler=getattr(optimizer, "scaler", None),
            epochs=math.ceil(args.num_train_epochs)
            if args.eval_strategy == "epoch"
            else math.ceil(state.max_steps / state.eval_steps),
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the figures, unless nothing was trained yet."""
        if state.global_step:
            self._keeper.measure(kwargs["metrics"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide about the evaluation before, whose checkpoint is written by now."""
        self._keeper.decide()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide about the last evaluation, and close the controller."""
        self._keeper.decide()
        self._keeper.close()

    def close(self) -> None:
        """Let go of the bed; idempotent."""
        self._keeper.close()
