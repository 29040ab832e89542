"""Endpoints for claims that are held: renew them, or let others have them."""

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from esper.urza.wire import Claim, Held, Holder
from esper.urza_api import examples
from esper.urza_api.answers import answer
from esper.urza_api.bodies import Id
from esper.urza_api.idempotency import IdempotentRoute
from esper.urza_api.state import WORKS, TheLibrary

router = APIRouter(prefix="/claims", tags=["claims"], route_class=IdempotentRoute)


@router.post(
    "/{subject_id}/renew", dependencies=WORKS, response_model=Held, responses=examples.of("held")
)
def renew_claim(
    request: Request,
    library: TheLibrary,
    subject_id: Id,
    claim: Annotated[Claim, Body(openapi_examples=examples.named("claim"))],
) -> Response:
    """Hold a claimed blueprint or kernel for longer."""
    held = library.renew_claim(subject_id, claim.holder, lease_seconds=claim.lease_seconds)
    return answer(request, Held(held=held))


@router.post(
    "/{subject_id}/release", dependencies=WORKS, response_model=Held, responses=examples.of("held")
)
def release_claim(
    request: Request,
    library: TheLibrary,
    subject_id: Id,
    holder: Annotated[Holder, Body(openapi_examples=examples.named("holder"))],
) -> Response:
    """Let others claim it at once."""
    return answer(request, Held(held=library.release_claim(subject_id, holder.holder)))
