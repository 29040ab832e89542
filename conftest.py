"""For every suite: what a command line under test did to the log of this process is undone."""

from collections.abc import Iterator

import pytest

from esper.contracts import setup_logging


@pytest.fixture(autouse=True)
def quiet_no_longer() -> Iterator[None]:
    """Set the log back to how a program finds it."""
    yield
    setup_logging("esper")
