"""For every suite: what a command line under test did to the log of this process is undone."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet_no_longer() -> Iterator[None]:
    """Set the log back to how a program finds it."""
    yield
    if "esper.contracts" in sys.modules:  # the suite of the testkit runs without it
        from esper.contracts import setup_logging

        setup_logging("esper", "warning")
