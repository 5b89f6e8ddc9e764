"""Answer HTTP requests.

    /metrics   Prometheus' text format, or OpenMetrics where it is asked for
    /healthz   alive: the event loop answers
    /readyz    can serve: 200, or 503 while it can't or is draining
    /health    the same with detail, as JSON
    /          the dashboard, and /api/status behind it: see proxy.http.dashboard
    /api/database   handed in from above: see proxy.api

What is shown comes from callables: nothing here knows the proxy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.http.dashboard import Dashboard

# What a browser needs to be told about plain data; a page that needs more sets its own headers.
SECURITY_HEADERS: Final = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}

RenderMetrics = Callable[[str], Awaitable[tuple[bytes, str]]]
Ready = Callable[[], bool]
Health = Callable[[], Mapping[str, object]]
# Brings what these tell up to date, where it comes from other processes too.
Refresh = Callable[[], Awaitable[None]]


def make_app(
    render_metrics: RenderMetrics,
    ready: Ready,
    health: Health,
    dashboard: Dashboard | None = None,
    refresh: Refresh | None = None,
) -> FastAPI:
    """Return the application, for `start` and for tests; without pages of documentation."""
    app = FastAPI(title="pgsluice", docs_url=None, redoc_url=None, openapi_url=None)

    async def fresh() -> None:
        if refresh is not None:
            await refresh()

    async def metrics(request: Request) -> Response:
        await fresh()
        body, content_type = await render_metrics(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def alive() -> Response:
        return PlainTextResponse("ok\n")

    async def readiness() -> Response:
        await fresh()
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("not ready\n", 503)

    async def detail() -> Response:
        await fresh()
        return JSONResponse(dict(health()), 200 if ready() else 503)

    routes: dict[str, Callable[..., Any]] = {
        "/metrics": metrics,
        "/healthz": alive,
        "/readyz": readiness,
        "/health": detail,
    }
    for path, endpoint in routes.items():
        # Load balancers probe with HEAD too.
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_class=Response)
    if dashboard is not None:
        dashboard.add_to(app)
    return app


def beside(app: ASGIApp, other: ASGIApp, serves: Callable[[str], bool]) -> ASGIApp:
    """Return `app` with `other` for those paths that `serves` names."""

    async def chosen(scope: Scope, receive: Receive, send: Send) -> None:
        theirs = scope["type"] == "http" and serves(scope["path"])
        await (other if theirs else app)(scope, receive, send)

    return chosen


def with_security_headers(app: ASGIApp) -> ASGIApp:
    """Return `app` with SECURITY_HEADERS added to each answer, but for those that it sets itself."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                headers += [item for item in SECURITY_HEADERS.items() if item[0] not in present]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_more)

    return wrapped
