"""The description of the API (OpenAPI), where FastAPI's own is not exact.

Problems have a media type of their own, no parameter of a URL can be null, and `security` asks for
tokens by itself, not as a dependency that FastAPI knows.
"""

from typing import Any

from fastapi import FastAPI

from esper.urza_api.problems import MEDIA_TYPE
from esper.urza_api.security import BEARER


def install(app: FastAPI) -> None:
    """Have the application describe itself exactly."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            _correct(describe())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described


def _correct(schema: dict[str, Any]) -> None:
    name = BEARER.scheme_name
    described = BEARER.model.model_dump(mode="json", by_alias=True, exclude_none=True)
    schema["components"]["securitySchemes"] = {name: described}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            if path.startswith("/api/"):
                operation["security"] = [{name: []}]
            for parameter in operation.get("parameters", ()):
                _drop_null(parameter["schema"])
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if int(status) >= 400 and "application/json" in content:
                    content[MEDIA_TYPE] = content.pop("application/json")


def _drop_null(schema: dict[str, Any]) -> None:
    others = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(others) == 1:
        del schema["anyOf"]
        schema.update(others[0])
