"""What a running training looks like in a terminal: a picture of it, drawn anew a few times a second.

Reads what `ui` was told, knows nothing of how it is shown; `Overview` is a rich renderable.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esper.contracts import (
    IN_FLIGHT,
    Action,
    AdaptationSignal,
    SeedState,
    SeedStatus,
    SystemStatePacket,
)
from esper.contracts.words import plural
from esper.tamiyo.summary import Point

BLOCKS, BLOCKS_ASCII = "▁▂▃▄▅▆▇█", "_.-=*#"
NO_NUMBER = "!"
"""Stands in a sparkline where the figure was infinite or no number."""

MAX_SEEDS = 6
"""Rows of the seeds' table; the picture must fit a terminal of 24 lines with room for what scrolls."""

RECENT_EPOCHS = 10
"""Speed and time left come from so many: growth makes later epochs slower than the first ones."""

DECISION_LINES = 2

_ACTIONS = {
    Action.WAIT: ("wait", "dim"),
    Action.GERMINATE: ("grow", "green"),
    Action.ADVANCE: ("advance", "cyan"),
    Action.CULL: ("cull", "yellow"),
}
_KEEP = ("keep", "green")


class Watched:
    """One training as far as it has got, as somebody who watches it sees it."""

    def __init__(
        self,
        label: str,
        epochs: int,
        *,
        num_samples: int | None = None,
        earlier: Sequence[Point] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.epochs = label, epochs
        self.points = list(earlier)
        """Those of a run that goes on come first; they say nothing of today's speed."""
        self.packet: SystemStatePacket | None = None
        self._num_samples = num_samples
        self._clock = clock
        self._begun = clock()
        self._ends: deque[float] = deque([self._begun], maxlen=RECENT_EPOCHS + 1)

    def add(self, point: Point) -> None:
        """Take in the figures of one finished epoch."""
        self.points.append(point)
        self._ends.append(self._clock())

    @property
    def is_done(self) -> bool:
        """Whether the last epoch is over."""
        return len(self.points) >= self.epochs

    @property
    def seconds(self) -> float:
        """How long it has been going on, or took."""
        return (self._ends[-1] if self.is_done else self._clock()) - self._begun

    @property
    def _seconds_per_epoch(self) -> float | None:
        if len(self._ends) < 2:
            return None
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)

    @property
    def seconds_left(self) -> float | None:
        """How long it will still take at the speed of the last epochs, once there is one."""
        each = self._seconds_per_epoch
        if each is None:
            return None
        since = self._clock() - self._ends[-1]
        return max(0.0, (self.epochs - len(self.points)) * each - since)

    @property
    def samples_per_second(self) -> float | None:
        """Training samples per second of the last epochs, measuring and deciding included."""
        each = self._seconds_per_epoch
        return self._num_samples / each if self._num_samples and each else None


class Overview:
    """Every training of a run: finished ones as a line, the last one in full."""

    def __init__(self) -> None:
        self.trainings: list[Watched] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as it stands now, as wide as the terminal and never wider."""
        width, is_ascii = options.max_width, options.ascii_only
        yield Text()  # apart from what scrolls by above
        for training in self.trainings[:-1]:
            yield _line_of(training)
        for training in self.trainings[-1:]:
            yield _bar(training)
            yield _speed(training)
            yield _curves(training, width=width, is_ascii=is_ascii)
            if training.packet is not None:
                yield from _seeds(training.packet.seeds, is_ascii=is_ascii)
                yield from _last_decision(training.packet, width=width)


def _line_of(training: Watched) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{training.label:<6} ", "bold")
    line.append(f"{len(training.points)}/{training.epochs} epochs in {clock(training.seconds)}")
    for point in training.points[-1:]:
        line.append(f", {figures(point)}")
    return line


def _bar(training: Watched) -> Table:
    done, left = len(training.points), training.seconds_left
    row = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, None, 1, None, None):
        row.add_column(ratio=ratio, no_wrap=True, justify="left" if ratio is None else "full")
    row.add_row(
        Text(f"{training.label:<6}", "bold"),
        f"epoch {done}/{training.epochs}",
        ProgressBar(total=training.epochs, completed=done),
        f"{done / training.epochs:>4.0%}",
        f"{clock(left)} left" if left is not None else "",
    )
    return row


def _speed(training: Watched) -> Text:
    parts = [f"{clock(training.seconds)} elapsed"]
    if (speed := training.samples_per_second) is not None:
        parts.append(f"{speed:,.0f} samples/s")
    if training.packet is not None:
        parts.append(f"{plural(training.packet.num_parameters, 'parameter')}")
    elif training.points:
        parts.append(f"{plural(training.points[-1].parameters, 'parameter')}")
    return Text(" " * 7 + "   ".join(parts), "dim", no_wrap=True, overflow="ellipsis")


def _curves(training: Watched, *, width: int, is_ascii: bool) -> Table:
    """Draw the losses, and the accuracy where there is one."""
    points = training.points
    losses = [("train loss", [p.train_loss for p in points])]
    losses.append(("val loss", [p.val_loss for p in points]))
    rows = [(name, values, f"{values[-1]:.4g}" if values else "") for name, values in losses]
    accuracies = [p.val_accuracy for p in points if p.val_accuracy is not None]
    if accuracies:
        rows.append(("accuracy", accuracies, f"{accuracies[-1]:.1%}"))
    table = Table.grid(padding=(0, 1))
    for justify in ("left", "left", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    room = max(1, width - 30)
    for name, values, now in rows:
        line = sparkline(values, width=room, is_ascii=is_ascii)
        table.add_row(" " * 6, Text(name, "dim"), f"{now:>9}", Text(line, "cyan"))
    return table


def _seeds(seeds: Sequence[SeedStatus], *, is_ascii: bool) -> Iterator[Table | Text]:
    """Draw the seeds that are not dormant, those on their way first."""
    awake = [seed for seed in seeds if seed.state is not SeedState.DORMANT]
    awake.sort(key=lambda seed: (seed.state not in IN_FLIGHT, seed.seed_id))
    if not awake:
        yield Text(f"{' ' * 7}{plural(len(seeds), 'seed')}, all dormant", "dim", no_wrap=True)
        return
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", expand=True)
    table.add_column("      ", width=6)
    table.add_column("layer", ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column("state", min_width=13, no_wrap=True)
    table.add_column("a" if is_ascii else "α", justify="right", no_wrap=True)  # noqa: RUF001
    table.add_column("block", ratio=2, no_wrap=True, overflow="ellipsis")
    for seed in awake[:MAX_SEEDS]:
        style = "cyan" if seed.state in IN_FLIGHT else "dim"
        state = Text("unhealthy", "red") if seed.failure else Text(_state(seed.state), style)
        block = Text(seed.blueprint_name or "")
        table.add_row("", Text(seed.site), state, f"{seed.alpha:.2f}", block)
    yield table
    if len(awake) > MAX_SEEDS:
        yield Text(f"{' ' * 7}and {len(awake) - MAX_SEEDS} more", "dim", no_wrap=True)


def _last_decision(packet: SystemStatePacket, *, width: int) -> Iterator[Table]:
    """Draw what was decided last: what grew or went, else what moved, else why nothing did."""
    kept = _keeping(packet)
    weighty = [
        d for d in packet.decisions if d.action in (Action.GERMINATE, Action.CULL) or d in kept
    ]
    moved = [d for d in packet.decisions if d.action is not Action.WAIT]
    for decision in (weighty or moved or packet.decisions)[-1:]:
        verb, style = _KEEP if decision in kept else _ACTIONS[decision.action]
        room = max(10, width - 16)
        reason = Text(decision.reason.replace("\n", " "))
        reason.truncate(room * DECISION_LINES - 8, overflow="ellipsis")  # words break early
        row = Table.grid(padding=(0, 1))
        row.add_column(width=6)
        row.add_column(width=7, no_wrap=True)
        row.add_column(width=room)
        row.add_row(Text("last", "dim"), Text(verb, style), reason)
        yield row


def _keeping(packet: SystemStatePacket) -> list[AdaptationSignal]:
    """Return the decisions by which blocks stayed for good: the last advance of each."""
    kept = {e.seed_id for e in packet.events if e.to_state is SeedState.FOSSILIZED}
    advances = {d.seed_id: d for d in packet.decisions if d.action is Action.ADVANCE}
    return [decision for seed_id, decision in advances.items() if seed_id in kept]


def _state(state: SeedState) -> str:
    """Return a state as a word; what stays for good is called as in the lines that scroll."""
    return "kept" if state is SeedState.FOSSILIZED else state.lower().replace("_", " ")


def sparkline(values: Sequence[float], *, width: int, is_ascii: bool = False) -> str:
    """Return `values` as a row of at most `width` blocks, the lowest one low and the highest one high.

    Of more values than that, the last one of each equal stretch is shown.
    """
    if len(values) > width:
        values = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    blocks = BLOCKS_ASCII if is_ascii else BLOCKS
    finite = [value for value in values if math.isfinite(value)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    if not math.isfinite(span) or span <= 0:
        low, span = -math.inf, math.inf

    def block(value: float) -> str:
        if not math.isfinite(value):
            return NO_NUMBER
        share = (value - low) / span if math.isfinite(span) else 0.0
        return blocks[min(int(share * len(blocks)), len(blocks) - 1)]

    return "".join(map(block, values))


def figures(point: Point) -> str:
    """Return what validation said after one epoch."""
    accuracy = "" if point.val_accuracy is None else f", accuracy {point.val_accuracy:.1%}"
    return f"val loss {point.val_loss:.3f}{accuracy}"


def clock(seconds: float) -> str:
    """Return a duration as `0:07` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
