"""The lines of an exported library: one record each, in canonical JSON, the same from every database.

`exporting` writes what `select_…` finds with `…_line`; `importing` reads the lines with `read_…`. Left out
is what is of the moment (claims), what follows from the rest (columns for searching) and what is a
server's own (its tokens).
"""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from pydantic import Field, ValidationError

from esper.contracts import (
    ArtifactIntegrityError,
    Blueprint,
    ChainedEvent,
    ChainError,
    CompiledKernelArtifact,
    Contract,
    Endorsement,
    FieldReport,
    KernelStatus,
    ValidationReport,
    ValidatorKey,
    canonical_json,
    parse_event,
)
from esper.urza import records
from esper.urza.schema import (
    blueprints,
    field_reports,
    kernels,
    validation_reports,
    validator_keys,
)

MANIFEST = "manifest.json"
BLUEPRINTS = "blueprints.jsonl"
KEYS = "validator_keys.jsonl"
KERNELS = "kernels.jsonl"
REPORTS = "validation_reports.jsonl"
OUTCOMES = "field_reports.jsonl"
LIBRARY_EVENTS = "library.jsonl"
RUN_EVENTS = "runs.jsonl"
LISTS = (BLUEPRINTS, KEYS, KERNELS, REPORTS, OUTCOMES, LIBRARY_EVENTS, RUN_EVENTS)
"""The members between the manifest and the artifacts, in this order."""

_AT_ONCE = 500


class KernelOnFile(Contract):
    """A kernel as it was registered, and what became of it."""

    registered: CompiledKernelArtifact
    """With its own tags, COMPILED, without a report."""
    status: KernelStatus
    report_id: str | None
    """Its latest report."""
    endorsement: Endorsement | None


class RunEvent(Contract):
    """An event of a chain other than the library's."""

    chain: str = Field(min_length=1)
    event: ChainedEvent


def artifact_name(sha256: str) -> str:
    """Return the name of an artifact's member."""
    return f"artifacts/{sha256}"


def line_of(record: Contract) -> bytes:
    """Return the line of a blueprint, a key or a kernel."""
    return canonical_json(record) + b"\n"


def run_line(chain: str, event: ChainedEvent) -> bytes:
    """Return the line of an event of a run: its own line, and which chain it is on."""
    named = json.dumps(chain, ensure_ascii=False).encode()
    return b'{"chain":' + named + b',"event":' + event.line().rstrip(b"\n") + b"}\n"


def blueprint_lines(connection: sa.Connection) -> Iterator[bytes]:
    """Give the lines of all blueprints, in order of their ids."""
    for row in _all(connection, blueprints):
        yield line_of(records.to_blueprint(row))


def key_lines(connection: sa.Connection) -> Iterator[bytes]:
    """Give the lines of all validators' keys, in order of their ids."""
    for row in _all(connection, validator_keys):
        yield line_of(records.to_validator_key(row))


def kernel_lines(connection: sa.Connection) -> Iterator[bytes]:
    """Give the lines of all kernels, in order of their ids."""
    columns = [kernels.c[name] for name in records.OF_A_KERNEL]
    for row in _all(connection, kernels, *columns, kernels.c.report_id):
        yield line_of(
            KernelOnFile(
                registered=records.to_registered(row),
                status=row.status,
                report_id=row.report_id,
                endorsement=records.to_endorsement(row),
            )
        )


def report_lines(connection: sa.Connection) -> Iterator[bytes]:
    """Give the lines of all validation reports, in order of their kernels' ids and their own."""
    for row in _all(connection, validation_reports):
        yield canonical_json(row.content) + b"\n"


def outcome_lines(connection: sa.Connection) -> Iterator[bytes]:
    """Give the lines of all field reports, in order of their ids."""
    for row in _all(connection, field_reports):
        yield canonical_json(row.content) + b"\n"


def _all(
    connection: sa.Connection, table: sa.Table, *columns: sa.Column[Any]
) -> Iterator[records.Row]:
    """Give the rows, or these columns of them, in order of their primary key.

    It is compared byte by byte, the same on every database.
    """
    is_postgresql = connection.dialect.name == "postgresql"
    order = [sa.collate(key, "C") if is_postgresql else key for key in table.primary_key.columns]
    found = sa.select(*(columns or table.columns)).order_by(*order)
    yield from connection.execute(found, execution_options={"yield_per": _AT_ONCE})


def read_blueprint(line: bytes, where: str) -> Blueprint:
    """Return the blueprint of a line. Raises `ArtifactIntegrityError`."""
    return _read(Blueprint, line, where)


def read_key(line: bytes, where: str) -> ValidatorKey:
    """Return the key of a line. Raises `ArtifactIntegrityError`."""
    return _read(ValidatorKey, line, where)


def read_kernel(line: bytes, where: str) -> KernelOnFile:
    """Return the kernel of a line. Raises `ArtifactIntegrityError`."""
    return _read(KernelOnFile, line, where)


def read_report(line: bytes, where: str) -> tuple[ValidationReport, Any]:
    """Return the report of a line, and its content as it was on file."""
    return _read_as_filed(ValidationReport, line, where)


def read_outcome(line: bytes, where: str) -> tuple[FieldReport, Any]:
    """Return the outcome of a line, and its content as it was on file."""
    return _read_as_filed(FieldReport, line, where)


def read_run_event(line: bytes, where: str) -> RunEvent:
    """Return the event of a run of a line. Raises `ArtifactIntegrityError`."""
    found = _validated(RunEvent, line, where)
    if run_line(found.chain, found.event) != line:
        raise _not_written_so(where)
    return found


def read_library_event(line: bytes, where: str) -> ChainedEvent:
    """Return the event of the library of a line. Raises `ArtifactIntegrityError`."""
    try:
        return parse_event(line, where)
    except ChainError as error:
        raise ArtifactIntegrityError(str(error)) from error


def _read[Record: Contract](kind: type[Record], line: bytes, where: str) -> Record:
    found = _validated(kind, line, where)
    if line_of(found) != line:
        raise _not_written_so(where)
    return found


def _read_as_filed[Record: Contract](
    kind: type[Record], line: bytes, where: str
) -> tuple[Record, Any]:
    """Return a record and its content, which may be of a version that had fewer fields."""
    found = _validated(kind, line, where)
    content = json.loads(line)
    if canonical_json(content) + b"\n" != line:
        raise _not_written_so(where)
    return found, content


def _validated[Record: Contract](kind: type[Record], line: bytes, where: str) -> Record:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ArtifactIntegrityError(
            f"{where} is no {kind.__name__} that this version knows: {place}: {problem['msg']}; it was "
            "changed, or exported by a newer esper-urza"
        ) from error


def _not_written_so(where: str) -> ArtifactIntegrityError:
    return ArtifactIntegrityError(f"{where} was changed: it is not written as a library writes it")
