"""A client from its accepted socket to its ClientLogin, through the TLS handshake where it asks for one."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace

from proxy.errors import ClientError, PoolExhausted
from proxy.session.client import ClientLogin
from proxy.session.gate import Gate
from proxy.transport import tls
from proxy.transport.asking import SHUTDOWN_TIMEOUT
from proxy.transport.greeting import Greeting, greet

log = logging.getLogger(__name__)

_LOCAL = ("127.0.0.1", "::1")


async def admit(gate: Gate, sock: socket.socket, listener: tls.ListenerTls | None) -> None:
    """Begin the login of the client at `sock`; `listener` is None where TLS is off.

    What it has not said or done at the end of the time for logins closes it, as do bytes behind its SSLRequest.
    """
    if listener is None or sock.family == socket.AF_UNIX:
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: ClientLogin(gate, sock), sock)
        return
    await _Arrival(gate, sock, listener).run()


class _Arrival:
    """A client that hasn't said yet whether it wants TLS, or is about to begin it."""

    def __init__(self, gate: Gate, sock: socket.socket, listener: tls.ListenerTls) -> None:
        self._gate = gate
        self._sock = sock
        self._listener = listener
        self._task = asyncio.current_task()
        self._address = ""

    def end(self, error: ClientError) -> None:
        """Close the connection: nothing could be told to a client in this state."""
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Bring the client to its login, or close it."""
        gate = self._gate
        deadline = asyncio.get_running_loop().time() + gate.auth_timeout
        gate.logins.add(self)
        try:
            async with asyncio.timeout_at(deadline):
                self._address = str(self._sock.getpeername()[0])
                self._make_room()
                await self._go_on(await greet(self._sock, self._listener.end_point, deadline))
        except (OSError, TimeoutError, ClientError) as error:
            why = tls.explain(error) if isinstance(error, OSError) else str(error)
            log.info("connection from %s ended before its login: %s", self._address, why or "no time left")
            gate.stats.logins_refused.add("tls")
            self._sock.close()
        except BaseException:
            self._sock.close()
            raise
        finally:
            gate.logins.discard(self)
            gate.unproven.discard(self)

    def _make_room(self) -> None:
        gate = self._gate
        if (oldest := gate.unproven.add(self, self._address, self._address in _LOCAL)) is not None:
            gate.stats.connections_refused += 1
            oldest.end(PoolExhausted("too many connections that have not logged in"))

    async def _go_on(self, greeting: Greeting) -> None:
        loop = asyncio.get_running_loop()
        gate, sock, listener = self._gate, self._sock, self._listener
        if greeting.encrypted:
            await loop.connect_accepted_socket(
                lambda: ClientLogin(gate, None, greeting),
                sock,
                ssl=listener.context,
                ssl_handshake_timeout=gate.auth_timeout,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )
        else:
            plain = replace(greeting, refused=listener.required)
            await loop.connect_accepted_socket(lambda: ClientLogin(gate, sock, plain), sock)
