"""Endpoints for kernels: register, search, judge, archive, claim for validation; their bytes."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response

from esper.contracts import CompiledKernelArtifact, ConfigError, KernelPage
from esper.urza.wire import Claim, KernelSearch, KernelsFiled, KernelsGiven, Verdict
from esper.urza_api import examples
from esper.urza_api.answers import answer
from esper.urza_api.bodies import Id
from esper.urza_api.idempotency import IdempotentRoute
from esper.urza_api.state import FORGES, JUDGES, READS, RETIRES, TheLibrary

router = APIRouter(prefix="/kernels", tags=["kernels"], route_class=IdempotentRoute)


@router.get(
    "", dependencies=READS, response_model=KernelPage, responses=examples.of("page of kernels")
)
def find_kernels(
    request: Request, library: TheLibrary, search: Annotated[KernelSearch, Query()]
) -> Response:
    """Search kernels, a page at a time; pages neither skip nor repeat, whatever is written meanwhile."""
    return answer(request, library.find_kernels(search.query()))


@router.post(
    "",
    dependencies=FORGES,
    response_model=KernelsFiled,
    status_code=201,
    responses=examples.of("kernels", 201),
)
def register_kernels(
    request: Request,
    library: TheLibrary,
    given: Annotated[KernelsGiven, Body(openapi_examples=examples.named("kernels"))],
) -> Response:
    """Register kernels whose bytes were uploaded before: all of them or, if one is refused, none."""
    filed = library.register_stored(given.kernels)
    return answer(request, KernelsFiled(kernels=tuple(filed)), status=201)


@router.post(
    "/claims",
    dependencies=JUDGES,
    response_model=CompiledKernelArtifact,
    responses=examples.of("kernel") | {204: {"description": "Nothing to claim"}},
)
def claim_kernel(
    request: Request,
    library: TheLibrary,
    claim: Annotated[Claim, Body(openapi_examples=examples.named("claim"))],
) -> Response:
    """Claim the oldest COMPILED kernel that nobody holds; 204 if there is none."""
    found = library.claim_kernel(claim.holder, lease_seconds=claim.lease_seconds)
    return Response(status_code=204) if found is None else answer(request, found)


@router.get(
    "/{kernel_id}",
    dependencies=READS,
    response_model=CompiledKernelArtifact,
    responses=examples.of("kernel"),
)
def get_kernel(request: Request, library: TheLibrary, kernel_id: Id) -> Response:
    """Return one kernel with its latest report."""
    return answer(request, library.get_kernel(kernel_id))


@router.post(
    "/{kernel_id}/archive",
    dependencies=RETIRES,
    response_model=CompiledKernelArtifact,
    responses=examples.of("kernel"),
)
def archive_kernel(request: Request, library: TheLibrary, kernel_id: Id) -> Response:
    """Let nobody run a kernel any more; again is harmless."""
    return answer(request, library.archive_kernel(kernel_id))


@router.post(
    "/{kernel_id}/validations",
    dependencies=JUDGES,
    response_model=CompiledKernelArtifact,
    responses=examples.of("kernel"),
)
def record_validation(
    request: Request,
    library: TheLibrary,
    kernel_id: Id,
    verdict: Annotated[Verdict, Body(openapi_examples=examples.named("verdict"))],
) -> Response:
    """Record a verdict: VALIDATED with an endorsement by an enrolled key, else REJECTED."""
    if verdict.report.kernel_id != kernel_id:
        raise ConfigError(f"the report is about kernel {verdict.report.kernel_id}, not {kernel_id}")
    return answer(request, library.record_validation(verdict.report, verdict.endorsement))
