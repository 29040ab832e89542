"""The model card: what a stranger must know of a model, in Markdown (Mitchell et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any

from esper.contracts.words import place, plural
from esper.tamiyo.config import RunConfig
from esper.tamiyo.diverging import Setback
from esper.tamiyo.snippet import snippet
from esper.tamiyo.summary import figures_from_json, has_learned_nothing
from esper.tamiyo.tasks.facts import ENCODING_FILE, TaskFacts

NOT_FINITE = "The loss of this model on the held-out data is not finite: its answers are of no use."
LEARNED_NOTHING = "It does no better on them than always giving the same answer."
DAMAGED = "The record that this model's history is told from is damaged"
"""Begins the sentence that says so."""


def model_card(
    config: RunConfig,
    facts: TaskFacts,
    encoding: Mapping[str, Any] | None,
    summary: Mapping[str, Any],
    hashes: Mapping[str, str],
    undecided: Sequence[str] = (),
    *,
    damage: str | None = None,
    averaged: bool = False,
) -> str:
    """Return the card of a run's model, whose exported files have these sha256.

    `undecided` is said of blocks that awaited their verdict; `damage` is what is wrong with the run's record;
    `averaged` is the model whose weights are the moving average of the trained ones.
    """
    rows = _figures(summary, averaged=averaged)
    measured = figures_from_json(rows["this model"])
    constant = figures_from_json(summary.get("best_constant"))
    is_finite = rows["this model"]["loss"] is not None
    weights = summary["averaged_sha256" if averaged else "weights_sha256"]
    # In a task of the user's own a `kind` means what the user says.
    known = None if ":" in config.task else encoding
    lines = [
        f"# {config.host} for {facts.name}",
        "",
        _what(summary),
        "",
        "## Use",
        "",
        f"Inputs have the shape (batch, {', '.join(map(str, facts.shape))}) and type {facts.dtype}; "
        f"{_answers(facts)} {_encoded(encoding, known)}In this folder, with PyTorch:",
        "",
        "```python",
        *snippet(facts, known),
        "```",
        "",
        "## Data",
        "",
        f"Task `{facts.name}`: {plural(facts.num_train, 'sample')} to learn from, "
        f"{facts.num_validation:,} for decisions, {facts.num_test:,} held out.",
        *(f"- {note}" for note in facts.notes),
        *([f"- sha256 `{facts.data_sha256}`"] if facts.data_sha256 is not None else []),
        "",
        "## Growth",
        "",
        *(() if damage is None else (f"{DAMAGED}: {damage}.", "")),
        *_growth(summary, undecided),
        "",
        "## Figures on the held-out data",
        "",
        "| | accuracy | loss | parameters |",
        "|---|---|---|---|",
        *(_row(name, figures) for name, figures in rows.items()),
        "",
        *(() if is_finite else (NOT_FINITE, "")),
        *((LEARNED_NOTHING, "") if has_learned_nothing(measured, constant) else ()),
        f"{_trained(summary)} with policy `{config.policy}`, seed {config.seed}, AdamW at "
        f"{config.learning_rate:g} ({config.schedule}), batches of {config.batch_size}"
        f"{f'; these are its weights averaged, at a decay of {config.ema:g}' if averaged else ''}.",
        "",
        "## Files",
        "",
        "| file | sha256 |",
        "|---|---|",
        *(f"| {name} | `{sha256}` |" for name, sha256 in sorted(hashes.items())),
        "",
        f"Weights as a whole: `{weights}`. Last event of the run's record: "
        f"`{summary['events_head']}`.",
        "",
    ]
    return "\n".join(lines)


def _what(summary: Mapping[str, Any]) -> str:
    before, now = summary["parameters_before"], summary["grown"]["parameters"]
    run = f"(Esper, run {summary['run_id']})"
    if before == now:
        return f"A model of {plural(now, 'parameter')}, which did not grow {run}."
    return (
        f"A model that grew while it learned, from {before:,} to {plural(now, 'parameter')} {run}."
    )


def _answers(facts: TaskFacts) -> str:
    return {
        "classification": f"answers are {plural(facts.num_classes, 'logit')}, one per class.",
        "regression": "answers are one number each, in the target's scaled units.",
        "language": f"answers are {facts.num_classes} logits per position, one per character.",
    }[facts.goal]


_KINDS = {
    "pixels": "pixels are divided by `divisor`; `classes`, if named, come in the order of the logits.",
    "text": "a character's index is its place in `alphabet`; any other is `unknown`.",
    "table": "`columns` in the order of the inputs. A number becomes (number / unit - mean) / deviation; "
    "of `words` each is an input of its own, 1 where the cell is that word and else 0; a cell that, in small "
    "letters, is one of `missing` counts as `if_missing`. `left_out` columns are not used, and `target` says "
    "what answers mean.",
}


def _encoded(encoding: Mapping[str, Any] | None, known: Mapping[str, Any] | None) -> str:
    if encoding is None:
        return ""
    if known is None:
        return f"`{ENCODING_FILE}` holds what the task says of how they are made. "
    return f"`{ENCODING_FILE}` says how they are made: {_KINDS[known['kind']]} "


def _trained(summary: Mapping[str, Any]) -> str:
    setbacks = [Setback.model_validate(each) for each in summary.get("setbacks", ())]
    told = "".join(f"On the way {each.told}. " for each in setbacks)
    epochs = plural(summary["epochs"], "epoch")
    if any(each.is_end for each in setbacks):
        return f"{told}Trained, before it diverged,"
    if summary["interrupted"]:
        return f"{told}Trained until it was stopped, before the end of its {epochs},"
    return f"{told}Trained for {epochs}"


def _growth(summary: Mapping[str, Any], undecided: Sequence[str]) -> list[str]:
    kept = [
        f"{each['blueprint']} at {place(each['site'])}, from epoch {each['states'][1]['epoch'] + 1} on"
        for each in summary["adaptations"]
        if each["outcome"] == "FOSSILIZED"
    ]
    return [f"- {each}" for each in (*kept, *undecided)] or ["Nothing that was tried stayed."]


def _figures(summary: Mapping[str, Any], *, averaged: bool) -> dict[str, Mapping[str, Any]]:
    """Return the figures of this model and of those to compare it with, by what they are."""
    grown, twin = summary["grown"], summary["twin"]
    average = grown.get("averaged")
    rows: dict[str, Mapping[str, Any]] = {"this model": grown}
    if average is not None:
        average = average | {"parameters": grown["parameters"]}
        rows = (
            {"this model": average, "its last weights, not averaged": grown}
            if averaged
            else {"this model": grown, "its weights averaged (`--averaged`)": average}
        )
    if twin is not None:
        rows["the same host, never grown"] = twin
    return rows


def _row(name: str, figures: Mapping[str, Any]) -> str:
    accuracy, loss = figures["accuracy"], figures["loss"]
    shown = "-" if accuracy is None else f"{accuracy:.1%}"
    return f"| {name} | {shown} | {'-' if loss is None else f'{loss:.4f}'} | {figures['parameters']:,} |"
