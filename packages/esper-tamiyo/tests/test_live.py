"""What a person sees of a run: the picture in a terminal, plain lines elsewhere."""

import io
import math
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from esper.contracts import (
    Action,
    AdaptationSignal,
    SeedEvent,
    SeedState,
    SeedStatus,
    SystemStatePacket,
)
from esper.tamiyo import live
from esper.tamiyo.live import Overview, Watched, clock, sparkline
from esper.tamiyo.summary import Point
from esper.tamiyo.ui import Ui

REASON = "fc2 has the largest gap: " + "the gradient asks for what its weights cannot follow, " * 5


def point(epoch: int, *, loss: float = 0.5, accuracy: float | None = 0.9) -> Point:
    return Point(
        epoch=epoch, train_loss=loss, val_loss=loss, val_accuracy=accuracy, parameters=1234
    )


def seed(index: int, state: SeedState, *, alpha: float = 0.0, site: str = "fc") -> SeedStatus:
    return SeedStatus(
        seed_id=(index, 0),
        site=f"{site}{index}",
        state=state,
        alpha=alpha,
        blueprint_name=None if state is SeedState.DORMANT else "residual_mlp",
    )


def decision(action: Action, reason: str) -> AdaptationSignal:
    return AdaptationSignal(epoch=0, policy="gap", action=action, reason=reason)


def packet(
    *seeds: SeedStatus,
    decisions: tuple[AdaptationSignal, ...] = (),
    events: tuple[SeedEvent, ...] = (),
) -> SystemStatePacket:
    return SystemStatePacket(
        run_id="run",
        epoch=0,
        step=1,
        val_loss=0.5,
        learning_rate=0.1,
        num_parameters=2345,
        seeds=seeds,
        decisions=decisions,
        events=events,
    )


def terminal(width: int = 80) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        force_interactive=True,
        legacy_windows=False,
        width=width,
        height=24,
        record=True,
        color_system=None,
        highlight=False,
    )


def drawn(overview: Overview, width: int = 80) -> list[str]:
    """Return the picture's lines, after checking that none is wider than the terminal."""
    console = terminal(width)
    console.print(overview)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    return lines


@pytest.fixture
def watch() -> Callable[..., tuple[Overview, Watched]]:
    """Return a training of 60 epochs, one second each, of which the given points are over."""

    def make(*points: Point) -> tuple[Overview, Watched]:
        now = [0.0]
        watched = Watched("grown", 60, num_samples=1000, clock=lambda: now[0])
        for item in points:
            now[0] += 1.0
            watched.add(item)
        overview = Overview()
        overview.trainings.append(watched)
        return overview, watched

    return make


def test_it_shows_progress_speed_curves_and_the_time_left(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, _ = watch(*(point(e, loss=1 / (e + 1), accuracy=e / 20) for e in range(15)))
    text = "\n".join(drawn(overview))
    assert "epoch 15/60" in text
    assert "25% 0:45 left" in text
    assert "0:15 elapsed   1,000 samples/s   1,234 parameters" in text
    assert "train loss   0.06667 █" in text
    assert "accuracy       70.0% ▁" in text


def test_before_the_first_epoch_there_is_nothing_to_know(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, _ = watch()
    text = "\n".join(drawn(overview))
    assert "epoch 0/60" in text
    assert "left" not in text
    assert "accuracy" not in text


def test_without_accuracy_there_is_no_row_for_it(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, _ = watch(point(0, accuracy=None), point(1, accuracy=None))
    text = "\n".join(drawn(overview))
    assert "val loss" in text
    assert "accuracy" not in text


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_marked(
    watch: Callable[..., tuple[Overview, Watched]], loss: float
) -> None:
    overview, _ = watch(point(0, loss=2.0), point(1, loss=loss), point(2, loss=1.0))
    (line,) = (line for line in drawn(overview) if "val loss" in line)
    assert line.rstrip().endswith("1 █!▁")


def test_seeds_on_their_way_come_first_and_dormant_ones_are_left_out(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, watched = watch(point(0))
    watched.packet = packet(
        seed(0, SeedState.FOSSILIZED, alpha=1.0),
        seed(1, SeedState.DORMANT),
        seed(2, SeedState.GRAFTING, alpha=0.25),
    )
    lines = drawn(overview)
    (header,) = (i for i, line in enumerate(lines) if "layer" in line)
    assert "α" in lines[header]  # noqa: RUF001
    assert lines[header + 1].split() == ["fc2", "grafting", "0.25", "residual_mlp"]
    assert lines[header + 2].split() == ["fc0", "kept", "1.00", "residual_mlp"]
    assert "fc1" not in "\n".join(lines)
    assert "2,345 parameters" in "\n".join(lines)


def test_many_seeds_with_long_names_fit_a_terminal_of_24_lines(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, watched = watch(point(0))
    seeds = (seed(i, SeedState.TRAINING, site="encoder.layers.attention" * 3) for i in range(50))
    watched.packet = packet(*seeds, decisions=(decision(Action.GERMINATE, REASON),))
    lines = drawn(overview)
    assert len(lines) <= 20
    assert f"and {50 - live.MAX_SEEDS} more" in "\n".join(lines)
    assert len(drawn(overview, width=50)) <= 24


def test_a_seed_that_cannot_go_on_says_so(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, watched = watch(point(0))
    ill = seed(0, SeedState.TRAINING).model_copy(update={"failure": "its loss is not finite"})
    watched.packet = packet(ill)
    assert "unhealthy" in "\n".join(drawn(overview))


def test_the_last_decision_is_what_grew_and_not_what_followed_from_it(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, watched = watch(point(0))
    decisions = (
        decision(Action.GERMINATE, REASON),
        decision(Action.ADVANCE, "verified"),
        decision(Action.WAIT, "one block at a time"),
    )
    watched.packet = packet(seed(0, SeedState.DORMANT), decisions=decisions)
    lines = drawn(overview)
    (first,) = (i for i, line in enumerate(lines) if line.startswith("last"))
    assert lines[first].split()[:3] == ["last", "grow", "fc2"]
    assert len(lines) - first == live.DECISION_LINES
    assert "1 seed, all dormant" in "\n".join(lines)
    watched.packet = packet(decisions=decisions[1:])
    assert "advance verified" in "\n".join(drawn(overview))
    watched.packet = packet(decisions=decisions[2:])
    assert "wait    one block at a time" in "\n".join(drawn(overview))


def test_a_block_that_stays_is_kept_as_in_the_plain_lines(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, watched = watch(point(0))
    stays = decision(Action.ADVANCE, "it helps").model_copy(update={"seed_id": (0, 0)})
    other = decision(Action.ADVANCE, "verified").model_copy(update={"seed_id": (1, 0)})
    change = SeedEvent(
        seed_id=(0, 0),
        site="fc0",
        from_state=SeedState.FINE_TUNING,
        to_state=SeedState.FOSSILIZED,
        epoch=0,
        step=1,
        command_id="c",
        reason="it helps",
    )
    watched.packet = packet(
        seed(0, SeedState.FOSSILIZED), decisions=(stays, other), events=(change,)
    )
    text = "\n".join(drawn(overview))
    assert "last   keep    it helps" in text
    assert "fossilized" not in text


def test_progress_in_making_kernels_is_said_once_there_is_some() -> None:
    stream = io.StringIO()
    with Ui(console=Console(file=stream, width=80, highlight=False)) as ui:
        ui._last_said -= 60  # pyright: ignore[reportPrivateUsage]
        ui.forged(0, 15)
        assert stream.getvalue() == ""
        ui.forged(1, 15)
    assert stream.getvalue() == "forging and judging kernels: 1 of 15 ready\n"


def test_a_finished_training_becomes_one_line() -> None:
    now = [0.0]
    overview = Overview()
    for label in ("grown", "twin"):
        watched = Watched(label, 2, clock=lambda: now[0])
        overview.trainings.append(watched)
        for epoch in range(2):
            now[0] += 40.0
            watched.add(point(epoch))
    assert overview.trainings[0].seconds == 80.0
    text = "\n".join(drawn(overview))
    assert "grown  2/2 epochs in 1:20, val loss 0.500, accuracy 90.0%" in text
    assert "twin   epoch 2/2" in text


def test_a_terminal_without_unicode_gets_plain_letters(
    watch: Callable[..., tuple[Overview, Watched]],
) -> None:
    overview, watched = watch(point(0, loss=2.0), point(1, loss=math.nan), point(2, loss=1.0))
    watched.packet = packet(seed(0, SeedState.GRAFTING, alpha=0.5))
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding="ascii")
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    console.print(overview)
    stream.flush()
    assert b"#!_" in data.getvalue()


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 5, ""),
        ([1.0], 5, "▁"),
        ([3.0, 3.0], 5, "▁▁"),
        ([0.0, 7.0], 5, "▁█"),
        ([math.nan], 5, "!"),
        ([-1e308, 1e308], 5, "▁▁"),
        ([float(v) for v in range(1000)], 8, "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_sparkline_is_as_wide_as_there_is_room(
    values: list[float], width: int, line: str
) -> None:
    assert sparkline(values, width=width) == line


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (67, "1:07"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def play(ui: Ui, epochs: int = 12) -> None:
    ui.begin("grown", epochs, num_samples=100)
    for epoch in range(epochs):
        ui.epoch("grown", point(epoch), epochs)
        grows = (decision(Action.GERMINATE, REASON),) if epoch == 3 else ()
        ui.decisions("grown", packet(seed(0, SeedState.DORMANT), decisions=grows))


def test_without_a_terminal_there_are_plain_whole_lines() -> None:
    stream = io.StringIO()
    with Ui(console=Console(file=stream, width=80, highlight=False)) as ui:
        play(ui)
    assert stream.getvalue().splitlines() == [
        "grown  epoch   1/12  val loss 0.500, accuracy 90.0%",
        f"grown  epoch   1  grow  {REASON}",
        "grown  epoch  11/12  val loss 0.500, accuracy 90.0%",
        "grown  epoch  12/12  val loss 0.500, accuracy 90.0%",
    ]


def test_in_a_terminal_decisions_stay_and_the_picture_goes() -> None:
    console = terminal()
    with Ui(console=console) as ui:
        play(ui)
        ui.say("done")
    assert isinstance(console.file, io.StringIO)
    raw = console.file.getvalue()
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h") == 1, "the cursor is hidden, and back"
    assert "epoch   1/12" not in raw
    after = raw[raw.rindex("\x1b[?25h") :]
    assert "epoch" not in after
    assert raw.count("grown  epoch   1  grow") == 1


def test_quiet_says_nothing_but_what_went_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with Ui(quiet=True) as ui:
        play(ui)
        ui.warn("the server is gone")
    assert capsys.readouterr() == ("", "train: the server is gone\n")


def test_an_epoch_costs_no_drawing() -> None:
    console = terminal()
    epochs = 2000
    with Ui(console=console) as ui:
        ui.begin("grown", epochs)
        begun = time.perf_counter()
        for epoch in range(epochs):
            ui.epoch("grown", point(epoch), epochs)
        seconds = time.perf_counter() - begun
    drawings = console.export_text().count("elapsed")
    # One at the start, one at the end, and what the clock asks for between them.
    assert drawings <= 3 + seconds * 5
