"""Reading what a request brings: body, query string, id and headers, each within limits."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from proxy.api.models import UUID_TEXT
from proxy.api.problems import NOT_FOUND, VALIDATION, ApiError

MOST_BODY: Final = 1024 * 1024
"""Bytes of a body: ten times the longest text that a field takes."""

BODY_TIMEOUT: Final = 10.0
"""Seconds until all of a body has to be there."""

IDEMPOTENCY_KEY: Final = r"^[\x21-\x7e]{1,255}$"

_MOST_PROBLEMS: Final = 5

Model = TypeVar("Model", bound=BaseModel)


async def body(request: Request, model: type[Model]) -> Model:
    """Return the JSON body of `request` as `model`. Raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, VALIDATION, "the body has to be application/json")
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            data = await _read(request)
    except TimeoutError:
        raise ApiError(
            408, VALIDATION, "the body didn't come in time", headers={"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, VALIDATION, "the body ended too soon") from None
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _invalid(error) from None


async def _read(request: Request) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and len(length) < 20 and int(length) > MOST_BODY:
        raise _too_large()
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MOST_BODY:
            raise _too_large()
    return bytes(data)


def _too_large() -> ApiError:
    # The rest isn't read, so nothing else can come on this connection.
    return ApiError(413, VALIDATION, f"the body may have {MOST_BODY} bytes", headers={"connection": "close"})


def query(request: Request, model: type[Model]) -> Model:
    """Return the query string of `request` as `model`. Raises ApiError."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise ApiError(422, VALIDATION, "a parameter is given twice", name[:100])
        given[name] = value
    try:
        return model.model_validate_strings(given)
    except ValidationError as error:
        raise _invalid(error) from None


def id_of(request: Request) -> str:
    """Return the id in the path. Raises ApiError: what is no UUID can't be there."""
    text = str(request.path_params["id"])
    if UUID_TEXT.fullmatch(text) is None:
        raise ApiError(404, NOT_FOUND, "an id is a UUID")
    return str(UUID(text))


def idempotency_key(request: Request) -> str | None:
    """Return the header Idempotency-Key. Raises ApiError where it isn't 1 to 255 visible characters."""
    key = request.headers.get("idempotency-key")
    if key is not None and re.fullmatch(IDEMPOTENCY_KEY[1:-1], key) is None:
        raise ApiError(422, VALIDATION, "an Idempotency-Key has 1 to 255 visible ASCII characters")
    return key


def _invalid(error: ValidationError) -> ApiError:
    """Tell which fields are wrong, and how; not what was sent."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems and problems[0]["type"] == "json_invalid":
        return ApiError(400, VALIDATION, "the body is no JSON", problems[0]["msg"])
    shown = [f"{_place(each['loc'])}: {each['msg']}" for each in problems[:_MOST_PROBLEMS]]
    return ApiError(422, VALIDATION, "the request is not valid", "; ".join(shown))


def _place(location: tuple[Any, ...]) -> str:
    return ".".join(str(each)[:100] for each in location) or "body"
