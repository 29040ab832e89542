"""Answers with an entity tag (RFC 9110): who has the same already is only told so."""

import hashlib
from collections.abc import Sequence
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response

from esper.contracts import Contract

JSON = "application/json"


def answer(request: Request, record: Contract, *, status: int = 200) -> Response:
    """Return a record, or 304 for a GET by who has it."""
    return _tagged(request, record.model_dump_json().encode(), status)


def answer_list(request: Request, records: Sequence[Contract], *, status: int = 200) -> Response:
    """Return records as a JSON list, or 304 for a GET by who has them."""
    body = b"[" + b",".join(each.model_dump_json().encode() for each in records) + b"]"
    return _tagged(request, body, status)


def created(request: Request, record: Contract, path: str) -> Response:
    """Return a record that is on file now, and where it is from now on."""
    response = answer(request, record, status=201)
    response.headers["Location"] = quote(path)
    return response


def has_it(request: Request, tag: str) -> bool:
    """Tell whether the client named this entity tag in If-None-Match."""
    if request.method not in ("GET", "HEAD"):
        return False
    named = request.headers.get("if-none-match", "")
    return named.strip() == "*" or tag in [
        each.strip().removeprefix("W/") for each in named.split(",")
    ]


def _tagged(request: Request, body: bytes, status: int) -> Response:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag}
    if has_it(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, status, headers=headers, media_type=JSON)
