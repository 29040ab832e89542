"""Grows a small classifier of handwritten digits while Lightning trains it, on CPU in seconds.

    uv run --group adapters python packages/esper-tamiyo/examples/lightning_callback.py

Shapes: `B` batch, 64 pixels.
"""
# Libraries that leave their types open, one of them not always installed:
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

from esper.kasmina import wrap
from esper.tamiyo.adapters.lightning import GrowCallback


class Digits(lightning.LightningModule):
    """A host that is too narrow for its task."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10)
        )

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Return the loss of one batch."""
        images, labels = batch  # (B, 64), (B,)
        return functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Log what growth is decided by."""
        images, labels = batch  # (B, 64), (B,)
        scores = self.net(images)
        self.log("val_loss", functional.cross_entropy(scores, labels))
        self.log("val_accuracy", (scores.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the one optimizer, which grown parameters will join."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    """Train, and say what was decided."""
    lightning.seed_everything(0, verbose=False)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32) / 16
    data = TensorDataset(images, torch.tensor(digits))
    train, validation = random_split(data, [0.8, 0.2])

    module = Digits()
    bed = wrap(module.net, example=images[:8], widen=True)
    growth = GrowCallback(bed, val_accuracy="val_accuracy")
    before = bed.num_parameters()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=30,
        callbacks=[growth],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(
        module,
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(validation, batch_size=len(validation)),
    )
    for packet in growth.packets:
        for event in packet.events:
            print(packet.epoch, event.site, event.to_state.value, event.reason)
    accuracy = trainer.callback_metrics["val_accuracy"].item()
    print(f"{before} parameters became {bed.num_parameters()}, accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
