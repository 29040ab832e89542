"""What the API says of itself is true: generated requests, valid and not, against its description.

`ESPER_API_EXAMPLES=200` sends so many of each kind to each operation.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import negative_data_rejection, positive_data_acceptance

from esper.urza.tokens import Role
from esper.urza_api import security

RULES = {
    "POST /api/v1/blueprints",  # operators and their inputs
    "GET /api/v1/kernels",  # kind and features belong together
    "POST /api/v1/kernels",  # a report belongs to its kernel
    "POST /api/v1/kernels/{kernel_id}/validations",
    "PUT /api/v1/artifacts/{sha256}",  # the hash of the bytes
    "POST /api/v1/outcomes",  # which states are final
}
"""Operations with rules that no JSON Schema can say: some of what fits their schemas is refused."""

_EXAMPLES = int(os.environ.get("ESPER_API_EXAMPLES", "0"))


def _make_check(
    operation: Any, mode: GenerationMode, authorization: dict[str, str]
) -> Callable[[], None]:
    @settings(
        max_examples=_EXAMPLES or 10,
        deadline=None,
        derandomize=not _EXAMPLES,
        database=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.filter_too_much,
            HealthCheck.data_too_large,
        ],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        beyond: list[Any] = [positive_data_acceptance] if operation.label in RULES else []
        parameters: dict[str, Any] = case.query or {}
        if any(value in ([], {}, None) for value in parameters.values()):
            beyond.append(negative_data_rejection)  # a URL cannot say it, so nothing was wrong
        case.call_and_validate(headers=authorization, excluded_checks=beyond)

    return check


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.usefixtures("client")
def test_the_description_is_true(
    app: FastAPI,
    secret_of: Callable[..., str],
    mode: GenerationMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Valid requests are taken, wrong ones refused, and every answer is one that is described."""
    monkeypatch.setattr(security, "MAX_FAILURES", 10**9)  # wrong tokens are part of it
    authorization = {"Authorization": f"Bearer {secret_of(*Role)}"}
    described: Any = schemathesis.openapi.from_asgi("/openapi.json", app)
    num_operations = 0
    for found in described.include(path_regex="^/api/").get_all_operations():
        operation = found.ok()
        try:
            _make_check(operation, mode, authorization)()
        except BaseException as error:
            error.add_note(operation.label)
            raise
        num_operations += 1
    assert num_operations > 20
