"""The description of the API (OpenAPI), where FastAPI's own is not exact.

Problems have a media type of their own, and no parameter of a URL can be null.
"""

from typing import Any

from fastapi import FastAPI

from esper.urza_api.problems import MEDIA_TYPE


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
    for methods in schema["paths"].values():
        for operation in methods.values():
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
