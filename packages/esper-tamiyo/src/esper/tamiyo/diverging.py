"""A run whose loss is not finite any more, with no block to blame: it goes back once, and then it ends.

`run` answers to what `check` raises: it takes up the newest checkpoint, which is always of a finite loss. A
plain repeat would come to the same end again, so the run goes on from there at a lower rate. The second time
it stops, with the last good model saved and a `DivergedError` for the user.
"""

from esper.contracts import Contract, EsperError, SeedState, SystemStatePacket

RATE_SHARE = 0.5
"""Of the learning rate, after going back: the customary step, which costs little where once was bad luck."""


class Setback(Contract):
    """One time that the loss was not finite, and what the run did about it."""

    epoch: int
    """Whose loss was not finite, counted from 0."""
    train_loss: float | None
    val_loss: float
    back_to: int
    """Epochs done in the state that the run went back to."""
    batches: int = 0
    """Mini-batches of the next one that were done."""
    rate_share: float | None
    """Of the learning rates, from there on; None: the run ended there."""

    @property
    def is_end(self) -> bool:
        """Whether the run ended with it."""
        return self.rate_share is None

    @property
    def state(self) -> str:
        """The state that the run went back to, in words."""
        when = f"after epoch {self.back_to}" if self.back_to else "before the first epoch"
        return f"{when} and {self.batches} mini-batches" if self.batches else when

    @property
    def told(self) -> str:
        """What happened, for a person."""
        train = "" if self.train_loss is None else f"training {self.train_loss:.4g}, "
        found = f"the loss was not finite in epoch {self.epoch + 1} ({train}validation {self.val_loss:.4g})"
        if self.rate_share is None:
            return f"{found}, again after going back once; the model is as it was {self.state}"
        return (
            f"{found}, and no block was to blame: the run went back to its state {self.state}, and on "
            f"from there at {self.rate_share:g} of the learning rate"
        )


class LossNotFiniteError(Exception):
    """The loss of an epoch is not finite, and no block was rolled back for it."""

    def __init__(self, packet: SystemStatePacket) -> None:
        super().__init__(f"the loss of epoch {packet.epoch} is not finite")
        self.packet = packet


class DivergedError(EsperError, ArithmeticError):
    """A run ended because its loss was not finite; what was good of it is saved."""


def check(packet: SystemStatePacket, *, is_finite: bool) -> None:
    """Pass silently if the epoch's loss is finite, or the model is again what it was when it was.

    Raises:
        LossNotFiniteError: if not.

    """
    if is_finite or any(event.to_state is SeedState.ROLLED_BACK for event in packet.events):
        return
    raise LossNotFiniteError(packet)


def advice(learning_rate: float, setback: Setback) -> str:
    """Say what a run ended of, and what to do."""
    return (
        f"{setback.told}. Train again with a smaller --learning-rate than {learning_rate:g}, and check the "
        "data for values that are missing, infinite or far too large"
    )
