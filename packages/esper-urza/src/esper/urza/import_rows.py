"""Writes the rows of an imported library, in one transaction and in an order that the guards allow.

`importing` calls `insert_rows` when every line was verified. A kernel begins COMPILED and a blueprint
SUBMITTED here too; what became of them is set afterwards, so that the database checks it as always.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import batched, groupby
from typing import Any

import sqlalchemy as sa

from esper.contracts import (
    LIBRARY_CHAIN,
    BlueprintIR,
    BlueprintStatus,
    KernelStatus,
    ValidationReport,
)
from esper.urza import audit, contents, records, tables
from esper.urza.contents import KernelOnFile
from esper.urza.exporting import Tell
from esper.urza.lists import Lists
from esper.urza.schema import (
    blueprints,
    field_reports,
    kernel_tags,
    kernels,
    validation_reports,
    validator_keys,
)

_AT_ONCE = 500

_SET_STATUS = (
    sa.update(blueprints)
    .where(blueprints.c.blueprint_id == sa.bindparam("of"))
    .values(status=sa.bindparam("set_status"))
)
_VERDICT = (
    "status",
    "report_id",
    "latency_us",
    "memory_bytes",
    "flops",
    "endorsement_key_id",
    "endorsement_signature",
    "all_tags",
    "search",
)
_SET_VERDICT = (
    sa.update(kernels)
    .where(kernels.c.kernel_id == sa.bindparam("of"))
    .values({name: sa.bindparam(f"set_{name}") for name in _VERDICT})
)


def insert_rows(connection: sa.Connection, lists: Lists, tell: Tell) -> None:
    """Insert everything that the lists hold into an empty database; the caller commits."""
    totals = {member.name: member.num_records for member in lists.manifest.members}
    designs, statuses = _insert_blueprints(connection, lists)
    for _, keys in _batches(lists, contents.KEYS):
        rows = [contents.read_key(line, where).model_dump() for where, line in keys]
        connection.execute(sa.insert(validator_keys), rows)
    for done, some in _batches(lists, contents.KERNELS):
        _insert_kernels(connection, some, designs)
        tell("write kernels", done, totals[contents.KERNELS])
    for done, some in _batches(lists, contents.REPORTS):
        read = [contents.read_report(line, where) for where, line in some]
        rows = [records.validation_row(report) | {"content": filed} for report, filed in read]
        connection.execute(sa.insert(validation_reports), rows)
        tell("write reports", done, totals[contents.REPORTS])
    for done, some in _batches(lists, contents.KERNELS):
        _set_verdicts(connection, some, designs)
        tell("write verdicts", done, totals[contents.KERNELS])
    for _, some in _batches(lists, contents.OUTCOMES):
        read = [contents.read_outcome(line, where) for where, line in some]
        rows = [records.field_report_row(report) | {"content": filed} for report, filed in read]
        connection.execute(sa.insert(field_reports), rows)
    if statuses:
        connection.execute(_SET_STATUS, statuses)
    _insert_events(connection, lists, totals, tell)


def _batches(lists: Lists, name: str) -> Iterator[tuple[int, tuple[tuple[str, bytes], ...]]]:
    """Give some lines at a time, and how many there were by then."""
    done = 0
    for some in batched(lists.lines(name), _AT_ONCE):
        done += len(some)
        yield done, some


def _insert_blueprints(
    connection: sa.Connection, lists: Lists
) -> tuple[dict[str, BlueprintIR], list[dict[str, str]]]:
    """Return the designs by their ids, and which status is to be set when the kernels are there."""
    designs: dict[str, BlueprintIR] = {}
    statuses: list[dict[str, str]] = []
    for _, some in _batches(lists, contents.BLUEPRINTS):
        found = [contents.read_blueprint(line, where) for where, line in some]
        begins = {"status": BlueprintStatus.SUBMITTED.value}
        connection.execute(
            sa.insert(blueprints), [records.blueprint_row(each) | begins for each in found]
        )
        for each in found:
            designs[each.blueprint_id] = each.ir
            if each.status is not BlueprintStatus.SUBMITTED:
                statuses.append({"of": each.blueprint_id, "set_status": each.status.value})
    return designs, statuses


def _insert_kernels(
    connection: sa.Connection,
    some: Sequence[tuple[str, bytes]],
    designs: dict[str, BlueprintIR],
) -> None:
    found = [contents.read_kernel(line, where).registered for where, line in some]
    rows = {each.kernel_id: records.kernel_row(each, designs[each.blueprint_id]) for each in found}
    tables.register(connection, rows, ())


def _set_verdicts(
    connection: sa.Connection,
    some: Sequence[tuple[str, bytes]],
    designs: dict[str, BlueprintIR],
) -> None:
    found = [contents.read_kernel(line, where) for where, line in some]
    judged = [
        each
        for each in found
        if each.report_id is not None or each.status is not KernelStatus.COMPILED
    ]
    if not judged:
        return
    reports = _reports(connection, judged)
    rows = [
        _verdict(
            each, reports.get(each.registered.kernel_id), designs[each.registered.blueprint_id]
        )
        for each in judged
    ]
    connection.execute(_SET_VERDICT, rows)
    if connection.dialect.name == "sqlite":
        _set_tags(connection, rows)


def _reports(
    connection: sa.Connection, judged: Sequence[KernelOnFile]
) -> dict[str, ValidationReport]:
    """Return the latest report of each kernel, by the kernel's id."""
    latest = {each.registered.kernel_id: each.report_id for each in judged}
    column = validation_reports.c
    found = sa.select(column.kernel_id, column.report_id, column.content).where(
        column.kernel_id.in_(list(latest))
    )
    return {
        row.kernel_id: ValidationReport.model_validate(row.content)
        for row in connection.execute(found)
        if latest[row.kernel_id] == row.report_id
    }


def _verdict(
    kernel: KernelOnFile, report: ValidationReport | None, ir: BlueprintIR
) -> dict[str, Any]:
    tags = records.all_tags(kernel.registered.tags, () if report is None else report.tags)
    values: dict[str, Any] = dict.fromkeys(_VERDICT)
    if report is not None:
        values |= records.verdict(report, kernel.endorsement)
    values |= records.tag_columns(tags, ir) | {"status": kernel.status.value}
    return {"of": kernel.registered.kernel_id} | {f"set_{name}": values[name] for name in _VERDICT}


def _set_tags(connection: sa.Connection, verdicts: Sequence[dict[str, Any]]) -> None:
    """Let the kernels be found by the tags of their reports too."""
    theirs = kernel_tags.c.kernel_id.in_([each["of"] for each in verdicts])
    connection.execute(sa.delete(kernel_tags).where(theirs))
    rows = [
        {"kernel_id": each["of"], "tag": tag} for each in verdicts for tag in each["set_all_tags"]
    ]
    if rows:
        connection.execute(sa.insert(kernel_tags), rows)


def _insert_events(
    connection: sa.Connection, lists: Lists, totals: Mapping[str, int], tell: Tell
) -> None:
    for done, some in _batches(lists, contents.LIBRARY_EVENTS):
        happened = [contents.read_library_event(line, where) for where, line in some]
        audit.restore(connection, LIBRARY_CHAIN, happened)
        tell("write the record", done, totals[contents.LIBRARY_EVENTS])
    for done, some in _batches(lists, contents.RUN_EVENTS):
        found = [contents.read_run_event(line, where) for where, line in some]
        for chain, of_run in groupby(found, key=lambda each: each.chain):
            audit.restore(connection, chain, [each.event for each in of_run])
        tell("write the runs' records", done, totals[contents.RUN_EVENTS])
