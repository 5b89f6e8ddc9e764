"""The dashboard: one page, its files, and the JSON that it asks for again and again.

    /               the page; it asks for a key, and shows nothing without one
    /static/…       its scripts and styles, each named here
    /api/status     the JSON, for `Authorization: Bearer <key>` or `X-API-Key: <key>`
                    ?database=NAME   of those that the key may see; else the first
                    ?since=NUMBER    of the history only what came behind that sample

The page loads nothing from elsewhere and runs no script but its own files: its Content-Security-Policy says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from proxy.errors import (
    AddressNotAllowed,
    ClientError,
    InsufficientPermissions,
    RateLimitExceeded,
    UnknownDatabase,
    UpstreamUnavailable,
)
from proxy.http.access import Access

Tell = Callable[[str, Sequence[str], int], Mapping[str, object]]

FILES: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_BEARER: Final = "bearer "
_STATUS: Final[dict[type[ClientError], int]] = {
    AddressNotAllowed: 403,
    InsufficientPermissions: 403,
    UnknownDatabase: 404,
    RateLimitExceeded: 429,
    UpstreamUnavailable: 503,
}


class Dashboard:
    """The routes; `tell(database, databases, since)` gives what `/api/status` answers."""

    def __init__(self, access: Access, tell: Tell) -> None:
        self._access = access
        self._tell = tell
        self._files = {
            path.name: path.read_bytes() for path in sorted(FILES.iterdir()) if path.suffix in _TYPES
        }

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""

        async def page() -> Response:
            return self._file("dashboard.html")

        async def static(name: str) -> Response:
            return self._file(name)

        async def status(request: Request) -> Response:
            try:
                return JSONResponse(await self._status(request))
            except ClientError as error:
                return _refusal(error)

        app.add_api_route("/", page, methods=["GET", "HEAD"], response_class=Response)
        app.add_api_route("/static/{name}", static, methods=["GET", "HEAD"], response_class=Response)
        app.add_api_route("/api/status", status, methods=["GET"], response_class=Response)

    def _file(self, name: str) -> Response:
        body = self._files.get(name)
        if body is None:
            return Response("not found\n", 404, media_type="text/plain")
        headers = {
            "content-type": _TYPES[Path(name).suffix],
            "content-security-policy": PAGE_POLICY,
            # A new version's files never meet an old page.
            "cache-control": "no-cache",
        }
        return Response(body, headers=headers)

    async def _status(self, request: Request) -> dict[str, object]:
        address = request.client.host if request.client is not None else ""
        known = await self._access.databases(key_of(request), address)
        database = request.query_params.get("database") or known[0]
        if database not in known:
            raise UnknownDatabase("this key may see no database of that name", hint=", ".join(known))
        since = request.query_params.get("since", "")
        return dict(self._tell(database, known, int(since) if since.isdecimal() and len(since) < 16 else 0))


def key_of(request: Request) -> str:
    """Return the key that a request carries; "" for none. A key in the URL would get into logs: it isn't taken."""
    header = request.headers.get("authorization", "")
    if header[: len(_BEARER)].lower() == _BEARER:
        return header[len(_BEARER) :].strip()
    return request.headers.get("x-api-key", "").strip()


def _refusal(error: ClientError) -> JSONResponse:
    status = _STATUS.get(type(error), 401)
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if status == 429:
        headers["retry-after"] = error.extra.removeprefix("retry_after=").removesuffix("s")
    # Who isn't known yet isn't told which host fails, and how.
    detail = "" if isinstance(error, UpstreamUnavailable) else error.extra or error.hint
    told = {"code": error.code, "message": error.message, "detail": detail}
    return JSONResponse({"error": told}, status, headers)
