"""The library's own worker: files what adaptations did, so that outcomes feed later decisions.

Reads `innovation.field_reports` from the bus and publishes nothing.
"""

from collections.abc import Sequence

from esper.contracts import FieldReport, Library, MessageError, Payload, TopicNames, WorkerContext
from esper.contracts.words import type_of


class Archivist:
    """Records every field report in the library; implements the port `Worker`."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @property
    def name(self) -> str:
        """Sender and group on the bus."""
        return "urza"

    @property
    def topics(self) -> frozenset[TopicNames]:
        """Field reports only."""
        return frozenset({TopicNames.INNOVATION_FIELD_REPORTS})

    def handle(self, payload: Payload) -> Sequence[Payload]:
        """File one report; filing it twice is once.

        Raises:
            MessageError: if `payload` is something else.

        """
        if not isinstance(payload, FieldReport):
            raise MessageError(f"urza got {type_of(payload)}, not a FieldReport")
        self._library.record_field_report(payload)
        return []


def make_archivist(context: WorkerContext) -> Archivist:
    """Make the archivist; the entry point `urza` in the group `esper.workers`."""
    return Archivist(context.library)
