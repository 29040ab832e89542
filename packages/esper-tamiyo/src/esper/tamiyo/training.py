"""The training loop: one epoch of mini-batch cross-entropy, and a measurement.

Deliberately plain, as in anybody's script: nothing here knows of seeds. Shapes: B batch, C classes.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from esper.tamiyo.stopping import StopRequestedError
from esper.tamiyo.tasks import Split
from esper.tamiyo.verdict import Figures


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split,
    *,
    batch_size: int,
    order_seed: int,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """Train one pass over `data` and return the mean loss.

    The order of the samples depends on `order_seed` only, not on the global random streams.

    Raises:
        StopRequestedError: if `stop` said so before a step.

    """
    model.train()
    generator = torch.Generator().manual_seed(order_seed)
    order = torch.randperm(len(data), generator=generator)
    total = 0.0
    for batch in order.split(batch_size):  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if stop():
            raise StopRequestedError
        logits = model(data.inputs[batch])  # (B, C)
        loss = functional.cross_entropy(logits, data.targets[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        total += loss.item() * len(batch)  # pyright: ignore[reportUnknownArgumentType]
    return total / len(data)


def measure(model: nn.Module, data: Split) -> Figures:
    """Return mean cross-entropy and accuracy on `data`; leaves the model's mode as it was."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(data.inputs)  # (N, C)
        losses = functional.cross_entropy(logits, data.targets, reduction="none")  # (N,)
        correct = int((logits.argmax(dim=1) == data.targets).sum())
    model.train(was_training)
    return Figures(
        loss=losses.mean().item(),
        accuracy=correct / len(data),
        losses=[float(loss) for loss in losses],
    )
