"""What endpoints work with: the library and its store, handed to each as parameters."""

from typing import Annotated

from fastapi import Depends, Request

from esper.urza.library import SqlLibrary
from esper.urza.tokens import Role
from esper.urza_api.security import allowed, authenticated


async def _library(request: Request) -> SqlLibrary:
    library: SqlLibrary = request.app.state.library
    return library


TheLibrary = Annotated[SqlLibrary, Depends(_library)]

READS = [Depends(authenticated)]
DESIGNS = [Depends(allowed(Role.ARCHITECT, Role.ADMIN))]
FORGES = [Depends(allowed(Role.FORGE, Role.ADMIN))]
JUDGES = [Depends(allowed(Role.VALIDATOR))]
ENROLLS = [Depends(allowed(Role.VALIDATOR, Role.ADMIN))]
WORKS = [Depends(allowed(Role.FORGE, Role.VALIDATOR, Role.ADMIN))]
REPORTS = [Depends(allowed(Role.CONTROLLER, Role.ADMIN))]
RETIRES = [Depends(allowed(Role.CONTROLLER, Role.VALIDATOR, Role.ADMIN))]
ADMINISTERS = [Depends(allowed(Role.ADMIN))]
