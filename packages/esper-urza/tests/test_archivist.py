"""The archivist files field reports from the bus, each once, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from esper.contracts import FieldReport, MessageError, TopicNames, ValidationReport, WorkerContext
from esper.contracts.messages import KernelCharacterized
from esper.contracts.registry import worker_factory
from esper.urza import open_file_store, open_library


def test_the_archivist_files_each_outcome_once(
    make_outcome: Callable[..., FieldReport],
    make_report: Callable[..., ValidationReport],
    tmp_path: Path,
) -> None:
    library = open_library("sqlite://", open_file_store((tmp_path / "artifacts").as_uri()))
    library.open()
    worker = worker_factory("urza")(WorkerContext(library=library))
    assert worker.name == "urza"
    assert worker.topics == {TopicNames.INNOVATION_FIELD_REPORTS}
    report = make_outcome(loss_with=0.5)
    for _ in range(2):
        assert worker.handle(report) == []
    assert library.field_reports(report.run_id) == [report]
    other = KernelCharacterized(report=make_report("1" * 64))
    with pytest.raises(MessageError, match="urza got a KernelCharacterized, not a FieldReport"):
        worker.handle(other)
    library.close()
