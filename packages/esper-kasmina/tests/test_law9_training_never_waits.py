"""Law 9, the seed layer's part: no training step opens a file, a socket or a process, or sleeps."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import sys
from collections.abc import Iterator

import pytest
import torch
from kasmina_factory import QUICK, TO_FOSSILIZED, cnn, grow, train

from esper.contracts import SeedState
from esper.kasmina import wrap

WAITING = ("open", "socket.", "subprocess.", "os.system", "os.exec", "time.sleep", "urllib.")


class Listener:
    """Writes down what Python's audit events (PEP 578) say while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.heard: list[str] = []

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if self.on and event.startswith(WAITING):
            self.heard.append(f"{event} {args}")


@pytest.fixture(scope="module")
def hook() -> Listener:
    listener = Listener()
    sys.addaudithook(listener)  # cannot be removed again
    return listener


@pytest.fixture
def listener(hook: Listener) -> Iterator[Listener]:
    hook.heard.clear()
    yield hook
    hook.on = False


def test_no_step_in_any_state_touches_the_world(listener: Listener) -> None:
    model = cnn()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    bed = wrap(model, stages=QUICK, sample_every_steps=1)
    bed.attach(optimizer)
    train(model, optimizer, 2)  # what torch loads on its first step is not ours

    def steps(_: SeedState) -> None:
        train(model, optimizer, 1)
        listener.on = True
        train(model, optimizer, 3)
        listener.on = False

    grow(bed, TO_FOSSILIZED, between=steps)
    assert listener.heard == []


def test_the_listener_hears(listener: Listener) -> None:
    listener.on = True
    with open(__file__):  # noqa: PTH123
        pass
    listener.on = False
    assert any("test_law9" in event for event in listener.heard)
