from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from proxy.http.app import SECURITY_HEADERS
from proxy.http.server import HttpBindError, HttpServer, start


class Proxy:
    """What the server asks."""

    def __init__(self) -> None:
        self.serving = True
        self.accept = ""

    async def render(self, accept: str) -> tuple[bytes, str]:
        self.accept = accept
        return b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"

    def ready(self) -> bool:
        return self.serving

    def health(self) -> dict[str, object]:
        return {"status": "ok" if self.serving else "draining", "pools": [{"pool": "primary", "idle": 2}]}


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
async def server(proxy: Proxy) -> AsyncIterator[HttpServer]:
    running = await start("127.0.0.1", 0, proxy.render, proxy.ready, proxy.health)
    yield running
    await running.close()


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as opened:
        yield opened


async def test_metrics(client: httpx.AsyncClient, proxy: Proxy) -> None:
    answer = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert (answer.status_code, answer.text) == (200, "up 1\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert proxy.accept == "application/openmetrics-text"


async def test_liveness_does_not_depend_on_the_database(client: httpx.AsyncClient, proxy: Proxy) -> None:
    proxy.serving = False
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")


@pytest.mark.parametrize(("serving", "status", "text"), [(True, 200, "ready\n"), (False, 503, "not ready\n")])
async def test_readiness(
    client: httpx.AsyncClient, proxy: Proxy, serving: bool, status: int, text: str
) -> None:
    proxy.serving = serving
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.text) == (status, text)


@pytest.mark.parametrize(("serving", "status", "told"), [(True, 200, "ok"), (False, 503, "draining")])
async def test_health(client: httpx.AsyncClient, proxy: Proxy, serving: bool, status: int, told: str) -> None:
    proxy.serving = serving
    answer = await client.get("/health")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"status": told, "pools": [{"pool": "primary", "idle": 2}]}


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/health"])
async def test_head_answers_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/redoc", "/openapi.json", "/metrics/x", "/..%2f..%2fetc/passwd"]
)
async def test_there_is_nothing_else(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


async def test_only_reading_is_allowed(client: httpx.AsyncClient) -> None:
    assert (await client.post("/metrics")).status_code == 405


@pytest.mark.parametrize("path", ["/metrics", "/health", "/nothing"])
async def test_security_headers_are_on_every_answer(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    for name, value in SECURITY_HEADERS.items():
        assert headers.get_list(name.decode()) == [value.decode()]
    assert "server" not in headers


async def test_signals_stay_with_the_proxy(proxy: Proxy) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    running = await start("127.0.0.1", 0, proxy.render, proxy.ready, proxy.health)
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"http://127.0.0.1:{running.port}/healthz")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    await running.close()


async def test_a_port_that_is_taken_is_named(server: HttpServer, proxy: Proxy) -> None:
    wanted = f"http: can't listen on 127.0.0.1:{server.port}: Address already in use"
    with pytest.raises(HttpBindError, match=f"{re.escape(wanted)}$"):
        await start("127.0.0.1", server.port, proxy.render, proxy.ready, proxy.health)


async def test_a_host_that_is_not_ours_is_named(proxy: Proxy) -> None:
    with pytest.raises(HttpBindError, match=re.escape("http: can't listen on 192.0.2.1:0: ")):
        await start("192.0.2.1", 0, proxy.render, proxy.ready, proxy.health)


async def test_the_port_is_free_after_close(proxy: Proxy) -> None:
    running = await start("127.0.0.1", 0, proxy.render, proxy.ready, proxy.health)
    # A connection that is open at the end doesn't hold up the close.
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    await running.close()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    with socket.create_server(("127.0.0.1", running.port)):
        pass


async def test_every_address_of_a_name_is_listened_on(proxy: Proxy) -> None:
    running = await start("localhost", 0, proxy.render, proxy.ready, proxy.health)
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{running.port}/healthz")
    assert answer.status_code == 200
    await running.close()


async def test_an_unknown_name_is_named(proxy: Proxy) -> None:
    with pytest.raises(HttpBindError, match=re.escape("http: can't listen on nowhere.invalid:0: ")):
        await start("nowhere.invalid", 0, proxy.render, proxy.ready, proxy.health)


async def test_an_address_that_this_machine_lacks_is_left_out(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        stream = (socket.SOCK_STREAM, 6, "")
        return [
            (socket.AF_INET, *stream, ("192.0.2.1", 0)),
            (socket.AF_INET, *stream, ("127.0.0.1", 0)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    running = await start("both", 0, proxy.render, proxy.ready, proxy.health)
    assert running.host == "127.0.0.1"
    await running.close()
