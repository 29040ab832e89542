"""Endpoints for designs: submit, find, archive, claim for compilation."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response

from esper.contracts import Blueprint, BlueprintIR, BlueprintPage, BlueprintQuery
from esper.urza.wire import Claim
from esper.urza_api import examples
from esper.urza_api.answers import answer, created
from esper.urza_api.bodies import Id
from esper.urza_api.idempotency import IdempotentRoute
from esper.urza_api.state import DESIGNS, FORGES, READS, TheLibrary

router = APIRouter(prefix="/blueprints", tags=["blueprints"], route_class=IdempotentRoute)


@router.get(
    "",
    dependencies=READS,
    response_model=BlueprintPage,
    responses=examples.of("page of blueprints"),
)
def find_blueprints(
    request: Request, library: TheLibrary, query: Annotated[BlueprintQuery, Query()]
) -> Response:
    """Find designs, ordered by id, a page at a time: the next begins with `after=` this one's `next`."""
    return answer(request, library.find_blueprints(query))


@router.post(
    "",
    dependencies=DESIGNS,
    response_model=Blueprint,
    status_code=201,
    responses=examples.of("blueprint", 201),
)
def submit_blueprint(
    request: Request,
    library: TheLibrary,
    ir: Annotated[BlueprintIR, Body(openapi_examples=examples.named("design"))],
) -> Response:
    """File a design under its content hash; the same design twice is one."""
    blueprint = library.submit_blueprint(ir)
    return created(request, blueprint, f"/api/v1/blueprints/{blueprint.blueprint_id}")


@router.post(
    "/claims",
    dependencies=FORGES,
    response_model=Blueprint,
    responses=examples.of("blueprint") | {204: {"description": "Nothing to claim"}},
)
def claim_blueprint(
    request: Request,
    library: TheLibrary,
    claim: Annotated[Claim, Body(openapi_examples=examples.named("claim"))],
) -> Response:
    """Claim the oldest SUBMITTED design that nobody holds; 204 if there is none."""
    found = library.claim_blueprint(claim.holder, lease_seconds=claim.lease_seconds)
    return Response(status_code=204) if found is None else answer(request, found)


@router.get(
    "/{blueprint_id}",
    dependencies=READS,
    response_model=Blueprint,
    responses=examples.of("blueprint"),
)
def get_blueprint(request: Request, library: TheLibrary, blueprint_id: Id) -> Response:
    """Return one design."""
    return answer(request, library.get_blueprint(blueprint_id))


@router.post(
    "/{blueprint_id}/archive",
    dependencies=DESIGNS,
    response_model=Blueprint,
    responses=examples.of("blueprint"),
)
def archive_blueprint(request: Request, library: TheLibrary, blueprint_id: Id) -> Response:
    """Take no more kernels of a design; again is harmless."""
    return answer(request, library.archive_blueprint(blueprint_id))
