"""Endpoints for validators' keys, outcomes of runs, and the chains of events."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from fastapi import Path as InPath
from fastapi.responses import Response
from pydantic import Field

from esper.contracts import Contract, FieldReport, ValidatorKey
from esper.urza import audit
from esper.urza.wire import EventPage, PublicKey
from esper.urza_api import examples
from esper.urza_api.answers import answer, answer_list, created
from esper.urza_api.bodies import Id
from esper.urza_api.idempotency import IdempotentRoute
from esper.urza_api.state import ADMINISTERS, ENROLLS, READS, REPORTS, TheLibrary

router = APIRouter(route_class=IdempotentRoute)

_Text = Annotated[str, InPath(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
MAX_EVENTS = 1000


class EventQuery(Contract):
    """From where on, and how many."""

    since: int = Field(default=0, ge=0, le=2**62)
    limit: int = Field(default=MAX_EVENTS, ge=1, le=MAX_EVENTS)


@router.get(
    "/validators",
    tags=["validators"],
    dependencies=READS,
    response_model=list[ValidatorKey],
    responses=examples.of("validators"),
)
def validator_keys(request: Request, library: TheLibrary) -> Response:
    """Return every key that was ever enrolled, oldest first."""
    return answer_list(request, library.validator_keys())


@router.post(
    "/validators",
    tags=["validators"],
    dependencies=ENROLLS,
    response_model=ValidatorKey,
    status_code=201,
    responses=examples.of("validator", 201),
)
def enroll_validator(
    request: Request,
    library: TheLibrary,
    key: Annotated[PublicKey, Body(openapi_examples=examples.named("public key"))],
) -> Response:
    """Accept endorsements that verify with this key; again is harmless."""
    enrolled = library.enroll_validator(bytes.fromhex(key.public_key), name=key.name)
    return created(request, enrolled, "/api/v1/validators")


@router.post(
    "/validators/{key_id}/revoke",
    tags=["validators"],
    dependencies=ADMINISTERS,
    response_model=ValidatorKey,
    responses=examples.of("validator"),
)
def revoke_validator(request: Request, library: TheLibrary, key_id: Id) -> Response:
    """Accept no more endorsements of a key; what it endorsed must be judged anew."""
    return answer(request, library.revoke_validator(key_id))


@router.post(
    "/outcomes",
    tags=["runs"],
    dependencies=REPORTS,
    response_model=FieldReport,
    status_code=201,
    responses=examples.of("outcome", 201),
)
def record_field_report(
    request: Request,
    library: TheLibrary,
    report: Annotated[FieldReport, Body(openapi_examples=examples.named("outcome"))],
) -> Response:
    """File an outcome; the same `report_id` twice is one."""
    library.record_field_report(report)
    return created(request, report, f"/api/v1/runs/{report.run_id}/outcomes")


@router.get(
    "/runs/{run_id}/outcomes",
    tags=["runs"],
    dependencies=READS,
    response_model=list[FieldReport],
    responses=examples.of("outcomes"),
)
def field_reports(request: Request, library: TheLibrary, run_id: _Text) -> Response:
    """Return the outcomes of one run, oldest first."""
    return answer_list(request, library.field_reports(run_id))


@router.get("/chains", tags=["record"], dependencies=READS, response_model=list[str])
def chains(library: TheLibrary) -> list[str]:
    """Return the names of all chains of events."""
    return list(library.chains())


@router.get("/chains/{chain}/events", tags=["record"], dependencies=READS, response_model=EventPage)
def events(
    request: Request, library: TheLibrary, chain: _Text, query: Annotated[EventQuery, Query()]
) -> Response:
    """Return a chain's events as they were filed; whoever doubts them can verify each."""
    with library.snapshot() as connection:
        found = audit.read(connection, chain, query.since, query.limit + 1)
    items = tuple(found[: query.limit])
    after = items[-1].seq + 1 if len(found) > query.limit else None
    return answer(request, EventPage(items=items, next=after))
