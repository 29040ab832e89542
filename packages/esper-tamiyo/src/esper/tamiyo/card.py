"""The model card: what a stranger must know of a model, in Markdown (Mitchell et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any

from esper.tamiyo.config import RunConfig
from esper.tamiyo.tasks import Task

NOT_FINITE = "The loss of this model on the held-out data is not finite: its answers are of no use."


def model_card(
    config: RunConfig,
    task: Task,
    summary: Mapping[str, Any],
    hashes: Mapping[str, str],
    undecided: Sequence[str] = (),
) -> str:
    """Return the card of a run's model, whose exported files have these sha256.

    `undecided` is said of blocks that awaited their verdict.
    """
    grown, twin = summary["grown"], summary["twin"]
    shape = tuple(task.train.inputs.shape[1:])
    lines = [
        f"# {config.host} for {task.name}",
        "",
        f"A model that grew while it learned, from {summary['parameters_before']:,} to "
        f"{grown['parameters']:,} parameters (Esper, run {summary['run_id']}).",
        "",
        "## Use",
        "",
        f"Inputs have the shape (batch, {', '.join(map(str, shape))}) and type "
        f"{str(task.train.inputs.dtype).removeprefix('torch.')}; {_answers(task)}",
        "",
        "```python",
        "import torch",
        "",
        'model = torch.export.load("model.pt2").module()',
        "answers = model(inputs)",
        "```",
        "",
        "## Data",
        "",
        f"Task `{task.name}`: {len(task.train):,} samples to learn from, {len(task.validation):,} for "
        f"decisions, {len(task.test):,} held out.",
        *(f"- {note}" for note in task.notes),
        "",
        "## Growth",
        "",
        *_growth(summary, undecided),
        "",
        "## Figures on the held-out data",
        "",
        "| | accuracy | loss | parameters |",
        "|---|---|---|---|",
        _row("this model", grown),
        *([_row("the same host, never grown", twin)] if twin is not None else []),
        "",
        *((NOT_FINITE, "") if grown["loss"] is None else ()),
        f"{_trained(summary)} with policy `{config.policy}`, seed {config.seed}, AdamW at "
        f"{config.learning_rate:g} ({config.schedule}), batches of {config.batch_size}.",
        "",
        "## Files",
        "",
        "| file | sha256 |",
        "|---|---|",
        *(f"| {name} | `{sha256}` |" for name, sha256 in sorted(hashes.items())),
        "",
        f"Weights as a whole: `{summary['weights_sha256']}`. Last event of the run's record: "
        f"`{summary['events_head']}`.",
        "",
    ]
    return "\n".join(lines)


def _answers(task: Task) -> str:
    return {
        "classification": f"answers are {task.num_classes} logits, one per class.",
        "regression": "answers are one number each, in the target's scaled units.",
        "language": f"answers are {task.num_classes} logits per position, one per character.",
    }[task.goal]


def _trained(summary: Mapping[str, Any]) -> str:
    if summary["interrupted"]:
        return f"Trained until it was stopped, before the end of its {summary['epochs']} epochs,"
    return f"Trained for {summary['epochs']} epochs"


def _growth(summary: Mapping[str, Any], undecided: Sequence[str]) -> list[str]:
    kept = [
        f"{each['blueprint']} at layer {each['site']}, from epoch {each['states'][1]['epoch'] + 1} on"
        for each in summary["adaptations"]
        if each["outcome"] == "FOSSILIZED"
    ]
    return [f"- {each}" for each in (*kept, *undecided)] or ["Nothing that was tried stayed."]


def _row(name: str, figures: Mapping[str, Any]) -> str:
    accuracy, loss = figures["accuracy"], figures["loss"]
    shown = "-" if accuracy is None else f"{accuracy:.1%}"
    return f"| {name} | {shown} | {'-' if loss is None else f'{loss:.4f}'} | {figures['parameters']:,} |"
