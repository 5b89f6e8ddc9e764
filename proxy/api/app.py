"""The HTTP API as an ASGI application.

    /api/database/…   the operations: see proxy.api.operations
    /openapi.json     what they take and answer
    /docs             the same to read

Keys come as `X-API-Key` or `Authorization: Bearer`. Every error is `{"error": {"code", "message", "detail"}}`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

import proxy
from proxy.api.describing import of_resource, others, schemas
from proxy.api.entrance import Entrance
from proxy.api.operations import Operations, State
from proxy.api.problems import INTERNAL, NOT_FOUND, VALIDATION, ApiError
from proxy.api.resources import RESOURCES, Resource
from proxy.http.access import Access
from proxy.http.dashboard import PAGE_POLICY
from proxy.session.gate import Gate

log = logging.getLogger(__name__)

PREFIX: Final = "/api/database"

_FILES: Final = Path(__file__).parent / "static"
_PAGES: Final = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
_EXPOSED: Final = (
    "etag", "idempotency-replayed", "link", "location", "ratelimit-limit", "ratelimit-remaining",
    "ratelimit-reset", "retry-after",
)  # fmt: skip
_SENT: Final = (
    "authorization", "content-type", "idempotency-key", "if-match", "if-none-match", "x-api-key",
)  # fmt: skip

Handler = Callable[[Request], Awaitable[Response]]


def make_api(gate: Gate, access: Access, state: State, origins: Sequence[str] = ()) -> FastAPI:
    """Return the application. `state(database)` gives pools and hosts; pages of `origins` may ask it (CORS)."""
    app = FastAPI(
        title="pgsluice",
        version=proxy.__version__,
        description="Tasks, executions, validations, workflows and SQL. A key sees what its user may see.",
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            ApiError: _refused,
            HTTPException: _unrouted,
            Exception: _failed,
        },
    )
    operations = Operations(Entrance(gate, access), state)
    for resource in RESOURCES:
        for (path, method), (name, description) in of_resource(resource).items():
            handler = _on(getattr(operations, name), resource)
            _add(app, path, method, handler, f"{name}_{resource.name}", resource.name, description)
    for (path, method), (name, description) in others().items():
        _add(app, path, method, getattr(operations, name), name, path.split("/")[1], description)
    for path, (file, kind) in _PAGES.items():
        app.add_route(path, _page((_FILES / file).read_bytes(), kind), methods=["GET"])
    _describe(app)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=_SENT,
            expose_headers=_EXPOSED,
            max_age=600,
        )
    return app


def serves(path: str) -> bool:
    """Tell whether a path is the API's."""
    return path == PREFIX or path.startswith(PREFIX + "/") or path == "/openapi.json" or path in _PAGES


def _on(method: Callable[[Request, Resource], Awaitable[Response]], resource: Resource) -> Handler:
    async def handler(request: Request) -> Response:
        return await method(request, resource)

    return handler


def _add(
    app: FastAPI, path: str, method: str, handler: Handler, name: str, tag: str, description: dict[str, Any]
) -> None:
    app.add_api_route(
        PREFIX + path,
        handler,
        methods=[method],
        response_class=Response,
        operation_id=name,
        tags=[tag],
        openapi_extra=description,
    )


def _describe(app: FastAPI) -> None:
    """Put together what /openapi.json answers: what the routes say, and nothing that FastAPI would add."""
    whole = app.openapi()
    components = whole.setdefault("components", {})
    components["schemas"] = schemas()
    components["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }
    told = {**dict(_descriptions())}
    for path, methods in whole["paths"].items():
        for method, description in methods.items():
            description["responses"] = told[path, method.upper()]["responses"]


def _descriptions() -> list[tuple[tuple[str, str], dict[str, Any]]]:
    every = [*(each for resource in RESOURCES for each in of_resource(resource).items()), *others().items()]
    return [((PREFIX + path, method), description) for (path, method), (_, description) in every]


def _page(content: bytes, kind: str) -> Handler:
    async def page(request: Request) -> Response:
        headers = {"content-type": kind, "content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        return Response(content, headers=headers)

    return page


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _unrouted(request: Request, error: Exception) -> Response:
    """Answer for a path or method that isn't there."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        methods = ", ".join(sorted(_methods(request)))
        problem = ApiError(405, "METHOD_NOT_ALLOWED", f"here one can {methods}", headers={"allow": methods})
    elif error.status_code == 404:
        problem = ApiError(404, NOT_FOUND, "there is nothing at this path: see /openapi.json")
    else:
        problem = ApiError(error.status_code, VALIDATION, "the request is not valid")
    return await _refused(request, problem)


def _methods(request: Request) -> set[str]:
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    found: set[str] = set()
    for route in routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= route.methods or set()
    return found


async def _failed(request: Request, error: Exception) -> Response:
    """Answer for a mistake of our own; the log has the rest."""
    return await _refused(request, ApiError(500, INTERNAL, "internal error"))
