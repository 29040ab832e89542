"""The model card: what a stranger must know of a model, in Markdown (Mitchell et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any

from esper.contracts.words import plural
from esper.tamiyo.config import RunConfig
from esper.tamiyo.tasks import Task


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
    one = task.train.first(1).inputs
    lines = [
        f"# {config.host} for {task.name}",
        "",
        f"A model that grew while it learned, from {summary['parameters_before']:,} to "
        f"{plural(grown['parameters'], 'parameter')} (Esper, run {summary['run_id']}).",
        "",
        "## Use",
        "",
        f"Inputs have the shape (batch, {', '.join(map(str, one.shape[1:]))}) and type "
        f"{str(one.dtype).removeprefix('torch.')}; {_answers(task)}",
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
        f"Task `{task.name}`: {plural(len(task.train), 'sample')} to learn from, "
        f"{len(task.validation):,} for decisions, {len(task.test):,} held out.",
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
        "classification": f"answers are {plural(task.num_classes, 'logit')}, one per class.",
        "regression": "answers are one number each, in the target's scaled units.",
        "language": f"answers are {task.num_classes} logits per position, one per character.",
    }[task.goal]


def _trained(summary: Mapping[str, Any]) -> str:
    if summary["interrupted"]:
        return f"Trained until it was stopped, before the end of its {plural(summary['epochs'], 'epoch')},"
    return f"Trained for {plural(summary['epochs'], 'epoch')}"


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
