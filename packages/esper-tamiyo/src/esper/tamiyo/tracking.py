"""Lets other tools follow a run: TensorBoard, MLflow, or whatever else implements `Tracker`.

Reads what the trainer tells of each epoch, hands it to every tracker of `RunConfig.track` in a thread of
its own. Training never waits for one, and none can end it: a tracker that fails is said once and left out.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol
from urllib.parse import urlsplit

from esper.contracts import Action, ConfigError, SeedState, SystemStatePacket
from esper.contracts.threads import in_thread
from esper.contracts.words import install_hint, place, plural
from esper.tamiyo.config import RunConfig, parse_tracker
from esper.tamiyo.folder import RunFolder
from esper.tamiyo.summary import Point, RunRecord, Training

START_SECONDS = 30.0
"""How long a run waits before its first step for its trackers to begin."""

END_SECONDS = 15.0
"""How long a run that is otherwise done waits for its trackers to take in what they were told."""

MAX_WAITING = 10_000
"""Epochs that a slow tracker may lag behind before it misses some: memory has an end."""

MAX_REASON = 300
"""Characters of an error that a person is shown; servers answer with whole pages."""


class Tracker(Protocol):
    """Follows one run somewhere else. Its methods may block, and may raise anything."""

    def begin(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Begin a run that is told by `config`, which holds no passwords."""
        ...

    def epoch(self, label: str, point: Point, packet: SystemStatePacket | None) -> None:
        """Take in one epoch of the training `label`, and what was decided at its end, if anything was."""
        ...

    def end(self, record: RunRecord) -> None:
        """Take in the final figures; the run folder holds the report by now."""
        ...

    def close(self) -> None:
        """Let everything go; without `end` before it, the run has failed."""
        ...


type OpenTracker = Callable[[Path, str | None], Tracker]
"""Makes a tracker from the run folder and from where to track to, None for the default."""

type Warn = Callable[[str], None]


def tracker_factory(kind: str) -> OpenTracker:
    """Return what opens a tracker of this kind.

    Raises:
        ConfigError: if the packages that it needs are not installed.

    """
    try:
        return import_module(f"esper.tamiyo.tracking_{kind}").open_tracker
    except ImportError as error:
        raise ConfigError(
            f"--track {kind} needs packages that are not installed ({error}); "
            f"{install_hint('esper-tamiyo', kind)}"
        ) from error


@contextmanager
def tracking(config: RunConfig, folder: RunFolder, warn: Warn) -> Generator[Tracker]:
    """Begin to track the run in `folder`, and wait at the end until all is told, for a limited time.

    Raises:
        ConfigError: if the packages of a tracker are not installed.

    """
    parsed = [parse_tracker(text) for text in config.track]
    factories = [(kind, tracker_factory(kind), target) for kind, target in parsed]
    followers = Followers(
        [
            Follower(kind, opened(folder.path, target), warn, target)
            for kind, opened, target in factories
        ]
    )
    try:
        followers.begin(folder.run_id, config.public())
        yield followers
    finally:
        followers.close()


class Followers:
    """Every tracker of a run, as one that neither blocks nor fails."""

    def __init__(self, followers: Sequence["Follower"]) -> None:
        self._followers = followers

    def begin(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Have all begin, and wait for that within `START_SECONDS`: nothing trains yet."""
        begun = [
            item.tell(lambda tracker: tracker.begin(run_id, config)) for item in self._followers
        ]
        deadline = time.monotonic() + START_SECONDS
        for done in begun:
            _wait(done, deadline)

    def epoch(self, label: str, point: Point, packet: SystemStatePacket | None) -> None:
        """Tell all of one epoch, without waiting."""
        for follower in self._followers:
            follower.tell(lambda tracker: tracker.epoch(label, point, packet))

    def end(self, record: RunRecord) -> None:
        """Tell all of the end, without waiting."""
        for follower in self._followers:
            follower.tell(lambda tracker: tracker.end(record))

    def close(self) -> None:
        """Wait for all within `END_SECONDS`, and leave the others to themselves."""
        for follower in self._followers:
            follower.finish()
        deadline = time.monotonic() + END_SECONDS
        for follower in self._followers:
            follower.join(deadline)


class Follower:
    """One tracker, told in a thread of its own; the first failure is said, and is the last thing done."""

    def __init__(self, kind: str, tracker: Tracker, warn: Warn, target: str | None = None) -> None:
        self._kind, self._tracker, self._warn = kind, tracker, warn
        self._password = urlsplit(target or "").password
        self._waiting: SimpleQueue[tuple[Callable[[Tracker], None], Future[None]] | None]
        self._waiting = SimpleQueue()
        self._missed = 0
        self._is_over = False
        self._ended = in_thread(self._follow, name=f"track-{kind}")

    def tell(self, what: Callable[[Tracker], None]) -> "Future[None]":
        """Have `what` done after everything before it; the future never holds an error."""
        done: Future[None] = Future()
        if self._waiting.qsize() >= MAX_WAITING:
            self._missed += 1
            done.set_result(None)
        else:
            self._waiting.put((what, done))
        return done

    def finish(self) -> None:
        """Say that nothing more comes."""
        self._waiting.put(None)

    def join(self, deadline: float) -> None:
        """Wait until everything was told, or the time is up."""
        if not _wait(self._ended, deadline):
            self._stop(f"it did not take in everything within {END_SECONDS:.0f} s")
        elif self._missed:
            self._stop(f"it was too slow and missed {plural(self._missed, 'epoch')}")

    def _follow(self) -> None:
        while (item := self._waiting.get()) is not None:
            what, done = item
            self._attempt(what)
            done.set_result(None)
        self._attempt(lambda tracker: tracker.close(), always=True)

    def _attempt(self, what: Callable[[Tracker], None], *, always: bool = False) -> None:
        if self._is_over and not always:
            return
        try:
            what(self._tracker)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it is others' code, and must not matter
            self._stop(f"{type(error).__name__}: {error}")

    def _stop(self, reason: str) -> None:
        """Say why this tracker is left out from now on, once."""
        if not self._is_over:
            self._is_over = True
            if self._password:
                reason = reason.replace(self._password, "***")
            reason = " ".join(reason.split())[:MAX_REASON]
            self._warn(
                f"tracking with {self._kind} stopped ({reason}); the training is not affected"
            )


def _wait(future: "Future[None]", deadline: float) -> bool:
    """Wait for `future` until `deadline`, and tell whether it is done."""
    try:
        future.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        return False
    return True


def decided(packet: SystemStatePacket) -> list[str]:
    """Return what was decided to grow, to keep and to remove, with the reasons, in words."""
    kept = [
        f"keep {place(event.site)}: {event.reason}"
        for event in packet.events
        if event.to_state is SeedState.FOSSILIZED
    ]
    verbs = {Action.GERMINATE: "grow", Action.CULL: "cull"}
    sites = {seed.seed_id: f" {place(seed.site)}" for seed in packet.seeds}
    return kept + [
        f"{verbs[decision.action]}{sites.get(decision.seed_id or (-1, -1), '')}: {decision.reason}"
        for decision in packet.decisions
        if decision.action in verbs
    ]


def curve_figures(point: Point) -> dict[str, float]:
    """Return the figures of one epoch by name; an accuracy only where there is one."""
    found: dict[str, float] = {
        "train_loss": point.train_loss,
        "validation_loss": point.val_loss,
        "parameters": point.parameters,
    }
    if point.val_accuracy is not None:
        found["validation_accuracy"] = point.val_accuracy
    return found


def final_figures(training: Training) -> dict[str, float]:
    """Return what a training came to on held-out data, by name."""
    found: dict[str, float] = {"final_parameters": training.parameters}
    if training.held_out is not None:
        found["held_out_loss"] = training.held_out.loss
        if training.held_out.accuracy is not None:
            found["held_out_accuracy"] = training.held_out.accuracy
    return found


def trainings(record: RunRecord) -> dict[str, Training]:
    """Return the trainings of a run by their labels."""
    twin = {"twin": record.twin} if record.twin is not None else {}
    return {"grown": record.grown} | twin
