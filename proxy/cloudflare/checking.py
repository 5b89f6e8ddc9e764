"""`pgsluice cloudflare check`: the way to PostgreSQL through a tunnel, one step after the other.

DNS          the hostname has addresses
TLS          Cloudflare's certificate is accepted
token        Access lets us in
upgrade      cloudflared is connected, and has dialled PostgreSQL
PostgreSQL   it answers, with TLS inside the tunnel as the host's settings say
round trip   there and back, PostgreSQL's answer included
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Final

from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from proxy.config import Config, Database, Host
from proxy.preflight.hosts import TOPIC
from proxy.transport.tls import explain
from proxy.tunnel import Tunnel, TunnelError, way_to
from proxy.tunnel.answers import DNS, STEPS, TLS, TOKEN, UPGRADE
from proxy.tunnel.websocket import explained, outer_context
from proxy.wire.codes import BE_AUTHENTICATION, BE_ERROR, PROTOCOL_3_0, SSL_REQUEST
from proxy.wire.messages import error_fields

OK: Final = "ok"
FAILED: Final = "failed"
NOT_TRIED: Final = "not tried"

POSTGRESQL: Final = "PostgreSQL"
ROUND_TRIP: Final = "round trip"

_TIMEOUT: Final = 10.0
"""Seconds for each step."""

_SAMPLES: Final = 3
"""Round trips that are measured; the shortest counts."""


@dataclass
class Step:
    """One step: how it went, what was found, and what mends it where it failed."""

    step: str
    status: str
    what: str = ""
    remedy: str = ""


@dataclass
class Walked:
    """The way to one host."""

    database: str
    host: str
    address: str
    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Tell whether each step went well."""
        return all(step.status == OK for step in self.steps)


def run(config: Config, as_json: bool) -> int:
    """Look at each tunnel of `config` and print what was found; returns the exit code."""
    found = asyncio.run(_look(config))
    if as_json:
        hosts = [{**asdict(each), "ok": each.ok} for each in found]
        print(json.dumps({"ok": all(each.ok for each in found), "problems": [], "hosts": hosts}, indent=2))
    elif not found:
        print("no host has transport: cloudflare")
    else:
        print("\n\n".join("\n".join(_lines(each)) for each in found))
    return 0 if all(each.ok for each in found) else 1


async def _look(config: Config) -> list[Walked]:
    tunnels = [
        (name, database, host)
        for name, database in config.databases.items()
        for host in database.hosts
        if host.transport == "cloudflare"
    ]
    return list(await asyncio.gather(*(_walk(*each) for each in tunnels)))


async def _walk(name: str, database: Database, host: Host) -> Walked:
    walked = Walked(name, host.name, f"{host.host}:{host.port}")
    way = way_to(host)
    assert isinstance(way, Tunnel)
    steps = walked.steps
    try:
        steps += [await _dns(host), await _tls(host)]
        opened = await _dial(way)
        steps += [_token(host), Step(UPGRADE, OK, f"101 after {_ms(opened)}")]
        steps.append(await _postgres(way, database))
        steps.append(await _round_trip(way))
    except TunnelError as error:
        _ends(steps, error, host)
    for step in (*STEPS, POSTGRESQL, ROUND_TRIP)[len(steps) :]:
        steps.append(Step(step, NOT_TRIED))
    return walked


def _ends(steps: list[Step], error: TunnelError, host: Host) -> None:
    """Note where the way ended; Access has let in whoever gets an answer from behind it."""
    if error.step == UPGRADE and len(steps) == STEPS.index(TOKEN):
        steps.append(_token(host))
    steps.append(Step(error.step, FAILED, error.what, error.remedy))


async def _dns(host: Host) -> Step:
    if _by_proxy(host):
        return Step(DNS, OK, "looked up by the proxy of HTTPS_PROXY")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise explained(error, False) from None
    return Step(DNS, OK, ", ".join(dict.fromkeys(str(address[0]) for *_, address in found)))


async def _tls(host: Host) -> Step:
    if _by_proxy(host):
        return Step(TLS, OK, "seen with the upgrade, through the proxy")
    try:
        async with asyncio.timeout(_TIMEOUT):
            _, writer = await asyncio.open_connection(
                host.host, host.port, ssl=outer_context(), server_hostname=host.host
            )
    except OSError as error:
        raise explained(error, False) from None
    channel: ssl.SSLObject = writer.get_extra_info("ssl_object")
    certificate = channel.getpeercert() or {}
    writer.transport.abort()
    names = ", ".join(str(name) for _, name in certificate.get("subjectAltName", ()))  # type: ignore[str-unpack]
    return Step(TLS, OK, f"{channel.version()}, for {names}, until {certificate.get('notAfter')}")


def _by_proxy(host: Host) -> bool:
    return get_proxy(parse_uri(f"wss://{host.host}:{host.port}/")) is not None


def _token(host: Host) -> Step:
    if host.service_token is not None:
        return Step(TOKEN, OK, "Access lets it in")
    return Step(TOKEN, OK, "there is none, and it is let in: so is everybody who knows the hostname")


async def _dial(way: Tunnel) -> float:
    """Open a WebSocket and close it; returns the seconds that it took."""
    began = time.monotonic()
    (await way.dial()).close()
    return time.monotonic() - began


async def _postgres(way: Tunnel, database: Database) -> Step:
    """Ask PostgreSQL for TLS, then for a login, up to its first answer."""
    pool = database.pools["primary"]
    user = database.control.user if database.control is not None else pool.user
    hello = _Hello(user, database.database or user)
    try:
        async with asyncio.timeout(_TIMEOUT):
            await way.open(lambda _: hello)
            answer = await hello.answer
    except TunnelError:
        raise
    except (OSError, TimeoutError) as error:
        what = explain(error) if isinstance(error, OSError) and str(error) else "no answer in time"
        remedy = "look at the host's tls settings, and that the certificate is for the tunnel's hostname"
        return Step(POSTGRESQL, FAILED, what, remedy)
    finally:
        hello.close()
    inside = f"{hello.version} inside the tunnel" if hello.version else "in clear inside the tunnel"
    kind = answer[0] if answer else 0
    if kind == BE_AUTHENTICATION:
        return Step(POSTGRESQL, OK, f"answers {inside}")
    if kind == BE_ERROR:
        said = error_fields(answer, 0, len(answer))
        what = f"refuses {user}, {inside}: {said.get('M')} ({said.get('C')})"
        return Step(POSTGRESQL, FAILED, what, "look at pg_hba.conf: cloudflared comes from its own address")
    what = "what answers is not PostgreSQL" if answer else "the connection ends without an answer"
    return Step(POSTGRESQL, FAILED, what, "look at the service of the ingress rule, and at PostgreSQL's log")


class _Hello(asyncio.Protocol):
    """Begins to log in, and keeps the first answer: enough to know who is there."""

    def __init__(self, user: str, database: str) -> None:
        self._user, self._database = user, database
        self._transport: asyncio.Transport | None = None
        self._came = b""
        self.version = ""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        channel = transport.get_extra_info("ssl_object")
        self.version = str(channel.version()) if channel is not None else ""
        body = f"user\0{self._user}\0database\0{self._database}\0\0".encode()
        transport.write((len(body) + 8).to_bytes(4, "big") + PROTOCOL_3_0.to_bytes(4, "big") + body)

    def data_received(self, data: bytes) -> None:
        self._came += data
        whole = len(self._came) > 4 and len(self._came) > int.from_bytes(self._came[1:5], "big")
        if (whole or len(self._came) > 1024) and not self.answer.done():
            self.answer.set_result(self._came)

    def connection_lost(self, failure: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(self._came)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()


async def _round_trip(way: Tunnel) -> Step:
    """Measure how long PostgreSQL's answer to a request of eight bytes takes."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    for _ in range(_SAMPLES):
        sock = await way.dial()
        try:
            began = time.monotonic()
            async with asyncio.timeout(_TIMEOUT):
                await loop.sock_sendall(sock, (8).to_bytes(4, "big") + SSL_REQUEST.to_bytes(4, "big"))
                await loop.sock_recv(sock, 1)
            times.append(time.monotonic() - began)
        except OSError:
            return Step(ROUND_TRIP, FAILED, "no answer", "look whether the tunnel is overloaded")
        finally:
            sock.close()
    return Step(ROUND_TRIP, OK, _ms(min(times)))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _lines(walked: Walked) -> Iterator[str]:
    yield f"{TOPIC} {walked.host}, {walked.address}, of database {walked.database}"
    for step in walked.steps:
        yield f"  {step.step:<10}  {step.status:<9}  {step.what}".rstrip()
        if step.remedy:
            yield f"  {'':<10}  {'':<9}  {step.remedy}"
