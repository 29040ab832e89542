"""Grows a small classifier of handwritten digits in a loop of your own under `accelerate`, in seconds.

    uv run --group adapters python packages/esper-tamiyo/examples/accelerate_loop.py

No adapter is needed: give Tamiyo what is inside accelerate's wrappers. Run it as one process on one
device (plain `python`, not `accelerate launch` with several). Shapes: `B` batch, 64 pixels.
"""
# Libraries that leave their types open, one of them not always installed:
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from esper.kasmina import wrap
from esper.tamiyo import Figures, Tamiyo

EPOCHS, BATCHES_PER_STEP = 30, 2


def main() -> None:
    """Train, and say what was decided."""
    set_seed(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=BATCHES_PER_STEP)
    if accelerator.num_processes > 1:
        raise SystemExit("a model grows in one process on one device; start this with plain python")
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32, device=accelerator.device) / 16
    labels = torch.tensor(digits, device=accelerator.device)
    train = TensorDataset(images[:1400], labels[:1400])
    validation_images, validation_labels = images[1400:], labels[1400:]

    model = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10))
    model.to(accelerator.device)  # before it is wrapped: seeds stay where they are made
    bed = wrap(model, example=images[:8], widen=True)
    before = bed.num_parameters()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(train, batch_size=32, shuffle=True)
    num_steps = EPOCHS * len(loader) // BATCHES_PER_STEP
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
    prepared = accelerator.prepare(model, optimizer, loader, scheduler)
    trained, stepping, batches, annealing = prepared

    def evaluate() -> Figures:
        """Measure on the validation data; with it a block is judged against its absence."""
        trained.eval()
        with torch.no_grad():
            scores = trained(validation_images)  # (B, 10)
        trained.train()
        losses = functional.cross_entropy(scores, validation_labels, reduction="none")
        hits = scores.argmax(dim=1) == validation_labels
        return Figures(
            loss=losses.mean().item(), accuracy=hits.float().mean().item(), losses=losses.tolist()
        )

    tamiyo = Tamiyo(
        bed,
        stepping.optimizer,
        scheduler=annealing.scheduler,
        scaler=accelerator.scaler,
        evaluate=evaluate,
        epochs=EPOCHS,
    )
    with tamiyo:
        for epoch in range(EPOCHS):
            for inputs, targets in batches:
                with accelerator.accumulate(trained):
                    accelerator.backward(functional.cross_entropy(trained(inputs), targets))
                    stepping.step()
                    annealing.step()
                    stepping.zero_grad()
            measured = evaluate()
            packet = tamiyo.end_epoch(val_loss=measured.loss, val_accuracy=measured.accuracy)
            for event in packet.events:
                print(epoch, event.site, event.to_state.value, event.reason)
    accuracy = evaluate().accuracy or 0.0
    print(f"{before} parameters became {bed.num_parameters()}, accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
