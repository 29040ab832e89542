"""Grows a small BERT while a `transformers.Trainer` trains it, on CPU in seconds, without any download.

    uv run --group adapters python packages/esper-tamiyo/examples/huggingface_callback.py

The task: in which half of a sentence is the larger word? Shapes: `T` tokens.
"""
# Libraries that leave their types open, one of them not always installed:
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false

import tempfile

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from esper.kasmina import wrap
from esper.tamiyo.adapters.huggingface import GrowCallback

T, NUM_WORDS = 8, 32


def sentences(count: int) -> list[dict[str, Tensor]]:
    """Return random sentences with their labels."""
    words = torch.randint(NUM_WORDS, (count, T))
    labels = (words[:, : T // 2].amax(dim=1) < words[:, T // 2 :].amax(dim=1)).long()
    return [{"input_ids": ids, "labels": label} for ids, label in zip(words, labels, strict=True)]


def main() -> None:
    """Train, and say what was decided."""
    set_seed(0)
    config = BertConfig(
        vocab_size=NUM_WORDS,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=T,
    )
    model = BertForSequenceClassification(config)
    train, validation = sentences(1024), sentences(256)

    example = {"input_ids": torch.stack([each["input_ids"] for each in train[:8]])}
    bed = wrap(
        model, targets=["**.intermediate.dense", "**.pooler.dense"], example=example, widen=True
    )
    growth = GrowCallback(bed)
    before = bed.num_parameters()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            num_train_epochs=16,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation,
            callbacks=[growth],
        )
        trainer.train()
    for packet in growth.packets:
        for event in packet.events:
            print(packet.epoch, event.site, event.to_state.value, event.reason)
    loss = growth.packets[-1].val_loss
    print(f"{before} parameters became {bed.num_parameters()}, validation loss {loss:.3f}")


if __name__ == "__main__":
    main()
