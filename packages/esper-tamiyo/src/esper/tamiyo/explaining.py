"""Says in words why a run grew what it grew, where and when: `tamiyo explain`, and parts of the report.

Everything that is said comes from the run's record: the decisions with their numbers, the states that a seed
went through, the verdicts. Epochs count from 1, as for every person.
"""

from collections.abc import Collection, Iterator, Sequence

from esper.contracts import (
    Action,
    AdaptationSignal,
    Candidate,
    ConfigError,
    NotFoundError,
    SeedId,
    SeedState,
)
from esper.contracts.words import place, plural
from esper.tamiyo.folding import fold
from esper.tamiyo.policies.widths import ACROSS_POSITIONS
from esper.tamiyo.story import Attempt, Story
from esper.tamiyo.summary import has_learned_nothing
from esper.tamiyo.verdict import Figures

MAX_RIVALS = 3
"""Of what else could have been grown, the best are named."""

MAX_REASONS = 3
"""Of why nothing more was grown, the first and the last are named."""

NUMBERS = {
    "gain_share": "the share of the wanted change that new units there could follow; from a "
    f"convolution into a linear layer, less {ACROSS_POSITIONS:g}",
    "position": "how near the place is to the input (1: nearest)",
    "between": "whether the place is between blocks of the model (1) or within one (0)",
    "gap": "the part of the wanted change that the layer's own weights cannot follow",
    "gap_share": "that, as a share of the largest of all layers",
    "size": "the block's parameters, as a multiple of the model's",
    "cost": "what its operations come to, as a multiple of the model's; at least its size",
    "worth": "what so large a block is worth after what has grown, for the steps that are left",
    "worth_so_far": "what all that had grown was worth; below 0, no further block is",
    "plateau": "how little the loss has moved",
}
"""What the numbers of the built-in policies mean."""

_WHAT_HAPPENS = {
    SeedState.TRAINING: "the block learned beside the model, which did not feel it",
    SeedState.GRAFTING: "it was mixed in, a little more with every step",
    SeedState.STABILIZATION: "it was in entirely, and the model settled",
    SeedState.EVALUATING: "it was judged",
    SeedState.FINE_TUNING: "the first verdict let it stay; it trained together with the model",
    SeedState.FOSSILIZED: "it stayed for good",
    SeedState.CULLED: "it was removed without a trace",
    SeedState.CANCELLED: "it was given up before the model had felt it",
    SeedState.ROLLED_BACK: "the model went back to what it was before",
}


def parse_seed(text: str) -> SeedId:
    """Return the seed that `L,S` names: layer id and number within the layer.

    Raises:
        ConfigError: if it names none.

    """
    layer, comma, seed = text.partition(",")
    if not (comma and layer.strip().isdigit() and seed.strip().isdigit()):
        raise ConfigError(
            f"seed {text!r}; expected L,S, the layer's number and the seed's, like 1,0"
        )
    return int(layer), int(seed)


def explain(story: Story, seed_id: SeedId | None = None) -> str:
    """Return why the run grew what it grew, or only what became of one seed.

    Raises:
        NotFoundError: if the model has no such seed.

    """
    if seed_id is not None:
        return "\n".join(_of_seed(story, seed_id)) + "\n"
    lines = [headline(story), "", *_damage(story), *_setting(story)]
    for number, attempt in enumerate(story.attempts, start=1):
        lines += ["", f"{number}. {_title(attempt)}", *_explain_attempt(story, attempt)]
    if not story.attempts and story.damage is None:
        lines += ["", "Nothing was grown.", *(f"  {said}" for said in _waits(story.decisions))]
    lines += ["", *_end(story)]
    return "\n".join(lines).rstrip() + "\n"


def headline(story: Story) -> str:
    """Say in one sentence what growing changed on held-out data."""
    grown = story.grown.held_out
    ends = [f"The run diverged: {each.told}." for each in story.setbacks if each.is_end]
    if ends:
        return ends[-1]
    if not story.grown.curve:
        return "The run was stopped before anything could be measured."
    if grown is None:
        return "The grown model's loss is not finite on the held-out data: it has learned nothing of use."
    twin = story.twin.held_out if story.twin is not None else None
    no_twin = " Its twin's loss is not finite." if story.twin is not None and twin is None else ""
    said = _compared(grown, twin) + no_twin + _slowed(story)
    if has_learned_nothing(grown, story.best_constant):
        said += " It does no better than always giving the same answer."
    return said


def _slowed(story: Story) -> str:
    """Say where the comparison is not between equals."""
    if story.twin is None or not story.setbacks:
        return ""
    share = story.setbacks[-1].rate_share
    return f" After a setback the grown model trained on at {share:g} of the learning rate, its twin did not."


def _compared(grown: Figures, twin: Figures | None) -> str:
    if grown.accuracy is None:
        sentence = f"The grown model's loss on the held-out data is {grown.loss:.4f}"
        if twin is None:
            return sentence + "."
        return f"{sentence}; its twin that never grew has {twin.loss:.4f}."
    sentence = f"The grown model answers {grown.accuracy:.1%} of the held-out data correctly"
    if twin is None or twin.accuracy is None:
        return sentence + "."
    # Of the figures as they are shown: whoever subtracts them comes to the same.
    points = round(100 * grown.accuracy, 1) - round(100 * twin.accuracy, 1)
    if abs(points) < 0.05:
        return sentence + ", just as its twin that never grew."
    comparison = "more" if points > 0 else "fewer"
    return (
        f"{sentence}; its twin that never grew, {twin.accuracy:.1%}: {abs(points):.1f} points "
        f"{comparison}."
    )


def _explain_attempt(story: Story, attempt: Attempt) -> list[str]:
    """Return why a block was grown there and then, and what became of it, in indented lines."""
    lines: list[str] = []
    decision = attempt.decision
    if decision is not None:
        lines += [
            f"   why then   {_sentence(decision.reason.partition(';')[0])}",
            *_where(decision, attempt),
        ]
    else:
        lines.append(f"   why then   {_sentence(attempt.states[0].reason)}")
    for change in attempt.states:
        said = _WHAT_HAPPENS.get(change.to_state)
        if said is not None:
            lines.append(f"   epoch {change.epoch + 1:>4} {said}")
    lines += _verdict(attempt, is_told=story.damage is None)
    return lines


def _where(decision: AdaptationSignal, attempt: Attempt) -> Iterator[str]:
    """Say what spoke for this place and block, and what the next best were."""
    candidates = sorted(decision.candidates, key=lambda each: -each.score)
    chosen = [
        c for c in candidates if (c.seed_id, c.kernel_id) == (attempt.seed_id, attempt.kernel_id)
    ]
    if not chosen:
        return
    yield (
        f"   why there  of {plural(len(candidates), 'possible block')} it had the highest score, "
        f"{chosen[0].score:.3g}{_numbers(chosen[0])}"
    )
    alike = {
        name
        for name, value in chosen[0].numbers.items()
        if all(each.numbers.get(name) == value for each in candidates)
    }  # said once, with the chosen one
    rivals = {each.site: each for each in reversed(candidates) if each.seed_id != attempt.seed_id}
    for best in sorted(rivals.values(), key=lambda each: -each.score)[:MAX_RIVALS]:
        yield (
            f"              rather than {place(best.site)}: {best.blueprint_name} scored {best.score:.3g}"
            f"{_numbers(best, without=alike)}"
        )


def _numbers(candidate: Candidate, without: Collection[str] = ()) -> str:
    """Return what the score was made of, in brackets, if there is anything to say."""
    said = [f"{n} {value:.3g}" for n, value in candidate.numbers.items() if n not in without]
    return f" ({', '.join(said)})" if said else ""


def _verdict(attempt: Attempt, *, is_told: bool) -> Iterator[str]:
    report = attempt.report
    if report is None and not is_told:
        yield "   verdict    not known: the record cannot be read up to its end"
    elif report is None:
        yield "   verdict    none: the run ended before it could be judged"
    else:
        yield f"   verdict    {'kept' if attempt.is_kept else 'removed'}: {report.reason}"


def _title(attempt: Attempt) -> str:
    return (
        f"{attempt.name} at {place(attempt.site)} (seed {attempt.seed_id[0]},{attempt.seed_id[1]}), "
        f"{plural(attempt.parameters, 'parameter')}, {_span(attempt.begun, attempt.ended)}"
    )


def _damage(story: Story) -> Iterator[str]:
    if story.damage is not None:
        yield f"The record is damaged; this is what could be read of it: {story.damage}"


def _setting(story: Story) -> Iterator[str]:
    config = story.config
    yield (
        f"Task {config.task}, host {config.host}, policy {config.policy}, seed {config.seed}; "
        f"{len(story.grown.curve)} of {config.epochs} epochs."
    )
    sizes = (
        f"{story.parameters_before:,} parameters at first, {story.grown.parameters:,} at the end"
    )
    if story.damage is None or story.attempts:
        sizes += f"; blocks tried {len(story.attempts)}, kept {len(story.kept)}, removed {len(story.removed)}"
    yield f"{sizes}."
    yield from (f"On the way {each.told}." for each in story.setbacks if not each.is_end)
    used = {
        name
        for attempt in story.attempts
        if attempt.decision is not None
        for candidate in attempt.decision.candidates
        for name in candidate.numbers
    }
    if meant := [f"  {name}: {said}" for name, said in NUMBERS.items() if name in used]:
        yield "Numbers in brackets:"
        yield from meant


def _end(story: Story) -> Iterator[str]:
    waits = [decision for decision in story.decisions if decision.action is Action.WAIT]
    since = story.attempts[-1].ended if story.attempts else 0
    if story.attempts and (later := list(_waits([d for d in waits if d.epoch >= since]))):
        yield "Why no more:"
        if len(later) > MAX_REASONS + 1:  # one line for one reason would save nothing
            between = plural(len(later) - MAX_REASONS, "reason")
            later[MAX_REASONS - 1 : -1] = [f"… {between} between …"]
        yield from (f"  {said}" for said in later)


def _waits(decisions: Sequence[AdaptationSignal]) -> Iterator[str]:
    """Say why nothing was done, what says the same in a row once."""
    for told in fold(decisions):
        yield f"{_span(told.first, told.last)}: {told.reason}"


def _span(first: int, last: int) -> str:
    """Return epochs, counted from 0, as a person counts them."""
    return f"epoch {first + 1}" if first == last else f"epochs {first + 1} to {last + 1}"


def _of_seed(story: Story, seed_id: SeedId) -> Iterator[str]:
    sites = {site.layer_id: site for site in story.sites}
    site = sites.get(seed_id[0])
    if site is None or seed_id[1] >= site.num_places:
        there = ", ".join(
            f"{each.layer_id},{number}" for each in story.sites for number in range(each.num_places)
        )
        raise NotFoundError(f"there is no seed {seed_id[0]},{seed_id[1]}; there are {there}")
    yield f"Seed {seed_id[0]},{seed_id[1]} at {place(site.label)} ({site.module_type})."
    yield from _damage(story)
    attempts = [attempt for attempt in story.attempts if attempt.seed_id == seed_id]
    for attempt in attempts:
        yield ""
        yield _title(attempt)
        yield from _explain_attempt(story, attempt)
    if not attempts and story.damage is None:
        yield "Nothing was ever grown there."
        yield from _why_not(story, seed_id)


def _why_not(story: Story, seed_id: SeedId) -> Iterator[str]:
    """Say by how much it was behind whatever was grown instead."""
    for attempt in story.attempts:
        decision = attempt.decision
        if decision is None:
            continue
        ranked = sorted(decision.candidates, key=lambda each: -each.score)
        own = [each for each in ranked if each.seed_id == seed_id]
        when = f"In epoch {attempt.begun + 1}"
        if not own:
            yield f"{when} nothing could be grown there ({attempt.name} went to {place(attempt.site)})."
        else:
            yield (
                f"{when} its best was {own[0].blueprint_name} with a score of {own[0].score:.3g}"
                f"{_numbers(own[0])}; {place(attempt.site)} had {ranked[0].score:.3g}."
            )
    if not story.attempts:
        yield from _waits(story.decisions)


def _sentence(text: str) -> str:
    return text.strip().rstrip(".")
