"""The statements that search: which kernels and blueprints match, in which order, from where on.

Pages are found by key: the next begins behind the last row of the one before, whatever was written in
between. `library` executes what is made here.
"""

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from esper.contracts import BlueprintQuery, ConfigError, KernelQuery
from esper.urza.records import OF_A_KERNEL, Row
from esper.urza.schema import (
    blueprints,
    field_reports,
    kernel_tags,
    kernels,
    validation_reports,
)

_MAX_NESTED = 4
"""Statements within statements: SQLite's parser takes few more."""

_LARGEST = 2**63 - 1
"""What fits a BIGINT."""


def select_kernels(*more: sa.Column[Any], source: sa.FromClause = kernels) -> sa.Select[Any]:
    """Return the statement for the kernels in `source` with their latest reports, and `more` columns."""
    latest = sa.and_(
        validation_reports.c.kernel_id == kernels.c.kernel_id,
        validation_reports.c.report_id == kernels.c.report_id,
    )
    columns = [kernels.c[name] for name in OF_A_KERNEL]
    wanted = sa.select(*columns, validation_reports.c.content, *more)
    return wanted.select_from(source.outerjoin(validation_reports, latest))


def select_matching(query: KernelQuery, dialect: sa.Dialect) -> sa.Select[Any]:
    """Return the statement for the kernels that `query` asks for, in its order, and one more.

    Whoever grows models asks the same again and again, so it is built once.

    Raises:
        ConfigError: if `after` is not what a page of such a query ended with.

    """
    return _select_matching(cast("Any", query), dialect)  # frozen, so hashable: pyright cannot tell


@lru_cache(maxsize=1_000)
def _select_matching(query: KernelQuery, dialect: sa.Dialect) -> sa.Select[Any]:
    column = kernels.c
    kernel_id, found = _having_all(sorted(query.required_tags), _of_the_cursor(query), dialect)
    if query.signature is not None:
        found = found.where(
            column.kind == query.signature.kind.value,
            column.features == query.signature.features,
            column.inputs.is_not_distinct_from(query.signature.inputs),
            column.dtype == query.signature.dtype,
            column.device == query.signature.device,
        )
    if query.status is not None:
        found = found.where(column.status == query.status.value)
    if query.blueprint_id is not None:
        found = found.where(column.blueprint_id == query.blueprint_id)
    if query.excluded_tags:
        found = found.where(~_has_any(sorted(query.excluded_tags), dialect))
    if query.max_latency_us is not None:
        found = found.where(column.latency_us <= query.max_latency_us)
    if query.max_memory_bytes is not None:
        found = found.where(column.memory_bytes <= min(query.max_memory_bytes, _LARGEST))
    if query.max_parameters is not None:
        found = found.where(column.num_parameters <= min(query.max_parameters, _LARGEST))
    found = found.where(*_contains(column.search, query.text))
    preferred = _num_preferred(query, dialect)
    if query.preferred_tags:
        found = found.add_columns(preferred.label("num_preferred"))
    if query.after is not None:
        found = found.where(_behind(query, preferred, kernel_id))
    return found.order_by(
        *([preferred.desc()] if query.preferred_tags else []), *_order(query, kernel_id)
    ).limit(query.limit + 1)


def _order(query: KernelQuery, kernel_id: sa.Column[str]) -> list[sa.ColumnElement[Any]]:
    if query.order_by == "kernel_id":
        return [kernel_id.desc() if query.descending else kernel_id.asc()]
    key = kernels.c[query.order_by]
    ordered = key.desc() if query.descending else key.asc()
    # Only where there are any: SQLite uses no index for an order that speaks of NULLs.
    return [ordered.nulls_last() if key.nullable else ordered, kernel_id]


def _of_the_cursor(query: KernelQuery) -> list[sa.Column[Any]]:
    key = kernels.c[query.order_by]
    return [] if key.name in OF_A_KERNEL else [key]


def cursor_behind(query: KernelQuery, row: Row) -> str:
    """Return the `after` of the page behind `row`, which `select_matching` found."""
    key = getattr(row, query.order_by)
    value = key.isoformat() if isinstance(key, datetime) else key
    num_preferred = row.num_preferred if query.preferred_tags else 0
    text = json.dumps([_kind_of(query), num_preferred, value, row.kernel_id])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def select_blueprints(query: BlueprintQuery) -> sa.Select[Any]:
    """Return the statement for the blueprints that `query` asks for, and one more."""
    found = sa.select(blueprints).where(*_contains(blueprints.c.search, query.text))
    if query.status is not None:
        found = found.where(blueprints.c.status == query.status.value)
    if query.kind is not None:
        found = found.where(blueprints.c.kind == query.kind.value)
    if query.after is not None:
        found = found.where(blueprints.c.blueprint_id > query.after)
    return found.order_by(blueprints.c.blueprint_id).limit(query.limit + 1)


def select_field_reports(run_id: str) -> sa.Select[Any]:
    """Return the statement for the outcomes of one run, oldest first."""
    return (
        sa.select(field_reports)
        .where(field_reports.c.run_id == run_id)
        .order_by(field_reports.c.at, field_reports.c.report_id)
    )


def _kind_of(query: KernelQuery) -> str:
    """Name the order of a query: a cursor of another one means nothing to it."""
    return f"{query.order_by} {query.descending:d} {len(query.preferred_tags)}"


def _behind(
    query: KernelQuery, preferred: sa.ColumnElement[int], kernel_id: sa.Column[str]
) -> sa.ColumnElement[bool]:
    """Tell what comes behind the cursor, in the order of the query."""
    num_preferred, value, last = _read_cursor(query)
    key = kernel_id if query.order_by == "kernel_id" else kernels.c[query.order_by]
    last_id = kernel_id > last
    if value is None:
        behind = sa.and_(key.is_(None), last_id)
    else:
        further = key < value if query.descending else key > value
        behind = sa.or_(further, key.is_(None), sa.and_(key == value, last_id))
    if not query.preferred_tags:
        return behind
    return sa.or_(preferred < num_preferred, sa.and_(preferred == num_preferred, behind))


def _read_cursor(query: KernelQuery) -> tuple[int, Any, str]:
    after = query.after or ""
    try:
        text = base64.b64decode(after + "=" * (-len(after) % 4), altchars=b"-_", validate=True)
        kind, num_preferred, value, kernel_id = cast("list[Any]", json.loads(text))
        if kind != _kind_of(query) or type(num_preferred) is not int:
            raise ValueError("of another query")
        if query.order_by == "created_at":
            value = datetime.fromisoformat(value)
        expected = {
            "kernel_id": (str,),
            "created_at": (datetime,),
            "latency_us": (float, int, type(None)),
        }.get(query.order_by, (int, type(None)))
        if not isinstance(value, expected) or not isinstance(kernel_id, str):
            raise TypeError("of another type")
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"after={after[:80]!r} is not where a page of this query ended; give the `next` of the "
            "page before, with the same order and preferred tags, or leave it out"
        ) from error
    return num_preferred, value, kernel_id


def _num_preferred(query: KernelQuery, dialect: sa.Dialect) -> sa.ColumnElement[int]:
    count: sa.ColumnElement[int] = sa.literal(0)
    for tag in sorted(query.preferred_tags):
        count = count + sa.case((_has_any([tag], dialect), 1), else_=0)
    return count


def _contains(column: sa.ColumnElement[str], text: str) -> list[sa.ColumnElement[bool]]:
    return [column.contains(word, autoescape=True) for word in text.lower().split()]


def _having_all(
    tags: Sequence[str], more: Sequence[sa.Column[Any]], dialect: sa.Dialect
) -> tuple[sa.Column[str], sa.Select[Any]]:
    """Return the statement for the kernels with all these tags, and the column to order them by."""
    if not tags or dialect.name == "postgresql":
        found = select_kernels(*more)
        return kernels.c.kernel_id, found.where(_tags_array().contains(tags)) if tags else found
    # From the index of one tag, which is in order, so that SQLite stops at the end of a page; the ids
    # with the other tags are nested, so that it intersects those before it looks at any kernel.
    listed = kernel_tags.alias()
    both = listed.join(kernels, kernels.c.kernel_id == listed.c.kernel_id)
    found = select_kernels(*more, source=both).where(listed.c.tag == tags[0])
    with_others: list[sa.Select[tuple[str]]] = []
    for tag in tags[1:_MAX_NESTED]:
        having = kernel_tags.alias()
        inner = [having.c.kernel_id.in_(each) for each in with_others]
        with_others = [sa.select(having.c.kernel_id).where(having.c.tag == tag, *inner)]
    found = found.where(*(listed.c.kernel_id.in_(each) for each in with_others))
    return listed.c.kernel_id, found.where(
        *(_has_any([each], dialect) for each in tags[_MAX_NESTED:])
    )


def _has_any(tags: Sequence[str], dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    if dialect.name == "postgresql":
        return _tags_array().overlap(tags)
    return (
        sa.select(kernel_tags.c.tag)
        .where(kernel_tags.c.kernel_id == kernels.c.kernel_id, kernel_tags.c.tag.in_(tags))
        .exists()
    )


def _tags_array() -> Any:
    """Return the column of tags as PostgreSQL has it, with its operators `@>` and `&&`."""
    return sa.type_coerce(kernels.c.all_tags, postgresql.ARRAY(sa.Text))
