from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from proxy.config import Host
from proxy.tunnel import Tunnel, way_to
from tests.certificates import Authority, Pair
from tests.edge.edge import Edge
from tests.edge.wire import Wire

TOKEN = ("0123.access", "s3cr3t-of-the-token")


@pytest.fixture(scope="session")
def edge_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("edge"), "edge-ca")


@pytest.fixture(scope="session")
def edge_pair(edge_authority: Authority) -> Pair:
    return edge_authority.issue("edge", "localhost")


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch, edge_authority: Authority) -> None:
    """Let OpenSSL trust the edge's authority, and nobody go by a proxy of the machine's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(edge_authority.file))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


Begin = Callable[..., Any]


@pytest.fixture
async def begin(edge_pair: Pair) -> AsyncIterator[Begin]:
    """Give a function that starts an edge in front of a port; returns it, and the way through it."""
    async with AsyncExitStack() as stack:

        async def start(
            target: int,
            token: tuple[str, str] | None = TOKEN,
            round_trip: float = 0.0,
            host: dict[str, Any] | None = None,
            **how: Any,
        ) -> tuple[Edge, Tunnel]:
            edge = Edge(target, edge_pair, token=token, **how)
            port = await edge.listen()
            stack.push_async_callback(edge.close)
            if round_trip:
                wire = Wire(port, round_trip)
                port = await wire.listen()
                stack.push_async_callback(wire.close)
            settings = {"host": "localhost", "port": port, "transport": "cloudflare", "tls": {"mode": "off"}}
            if token is not None:
                settings["service_token"] = {"id": token[0], "secret": token[1]}
            way = way_to(Host.model_validate({**settings, **(host or {})}))
            assert isinstance(way, Tunnel)
            return edge, way

        yield start
    # What is at the other ends has to end as well, and a relay that closes in good order.
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5.0)
