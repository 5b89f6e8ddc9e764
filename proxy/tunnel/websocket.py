"""The client's side of a WebSocket (RFC 6455) to a tunnel's hostname, as Cloudflare wants it."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidProxy, InvalidStatus, ProxyError

import proxy
from proxy.config import ServiceToken
from proxy.errors import reason
from proxy.transport import tcp
from proxy.tunnel.answers import DNS, TLS, TunnelError, refusal

OPEN_TIMEOUT: Final = 10.0
"""Seconds from the name's lookup to the answer: a pool gives up earlier, after its connect_timeout."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the other side gets to answer our Close; what stands before it is sent by then."""

LARGEST_MESSAGE: Final = 1024 * 1024
"""Bytes of a message that comes in: cloudflared's hold 16 KiB at most, a larger one is somebody else's."""

_FRAMES_WAITING: Final = 4
"""Frames that are taken before their reader wants them; then the socket is read no more: 64 KiB at cloudflared's
sizes."""

# The library tells each header at level debug, the token's among them: it is not let down to that.
_log = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)


class WebSocket(ClientConnection):
    """A connection that knows when something came last, pings and pongs too (monotonic seconds)."""

    heard_at: float = 0.0

    def data_received(self, data: bytes) -> None:
        """Take bytes from the network."""
        self.heard_at = time.monotonic()
        super().data_received(data)


class _Connect(connect):
    """The library follows redirects; Access's leads to a login page, and others take the token elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Follow none."""
        return exc


def outer_context() -> ssl.SSLContext:
    """Return how Cloudflare's certificate is verified: by the system's authorities, or those of SSL_CERT_FILE."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nothing that would upgrade over HTTP/2 (RFC 8441).
    context.set_alpn_protocols(["http/1.1"])
    return context


async def open_websocket(
    host: str, port: int, token: ServiceToken | None, context: ssl.SSLContext
) -> WebSocket:
    """Return a WebSocket at whose other end PostgreSQL's TCP connection is open: cloudflared dials before it answers.

    HTTPS_PROXY and NO_PROXY count, as for cloudflared. Raises TunnelError with what the operator has to do.
    """
    headers = {}
    if token is not None:
        headers = {
            "Cf-Access-Client-Id": token.id,
            "Cf-Access-Client-Secret": token.secret.get_secret_value(),
        }
    try:
        websocket = await _Connect(
            f"wss://{host}:{port}/",
            additional_headers=headers,
            user_agent_header=f"pgsluice/{proxy.__version__}",
            compression=None,
            ssl=context,
            open_timeout=OPEN_TIMEOUT,
            close_timeout=CLOSE_TIMEOUT,
            ping_interval=None,
            max_size=LARGEST_MESSAGE,
            max_queue=_FRAMES_WAITING,
            logger=_log,
            create_connection=WebSocket,
        )
    except (InvalidHandshake, InvalidProxy, OSError) as error:
        # Without what it came from: an answer might repeat what was asked.
        raise explained(error, token is not None) from None
    assert isinstance(websocket, WebSocket)
    _keep_alive(websocket)
    return websocket


def explained(error: Exception, token: bool) -> TunnelError:
    """Return what went wrong on the way to the answer 101."""
    if isinstance(error, InvalidStatus):
        response = error.response
        location = response.headers.get_all("Location")
        return refusal(response.status_code, location[0] if location else "", bytes(response.body), token)
    if isinstance(error, ProxyError | InvalidProxy):
        return TunnelError(f"the proxy of HTTPS_PROXY fails ({type(error).__name__})", "look at its log")
    if isinstance(error, InvalidHandshake):
        return TunnelError(
            f"what answers is no WebSocket server ({type(error).__name__})",
            "look whether the hostname is a tunnel's, and WebSockets are on for its zone",
        )
    if isinstance(error, TimeoutError):
        return TunnelError("Cloudflare doesn't answer in time", "look whether a firewall lets us out", TLS)
    if isinstance(error, socket.gaierror):
        return TunnelError(
            f"the hostname can't be looked up ({error.strerror})",
            "its DNS record is a CNAME to <tunnel id>.cfargotunnel.com, proxied",
            DNS,
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return TunnelError(
            f"Cloudflare's certificate is not accepted ({error.verify_message})",
            "a firewall that ends TLS needs its authority in the system's, or in SSL_CERT_FILE",
            TLS,
        )
    if isinstance(error, ssl.SSLError):
        return TunnelError(
            f"no TLS with Cloudflare ({(error.reason or str(error)).lower().replace('_', ' ')})",
            "the zone needs an edge certificate that covers the hostname",
            TLS,
        )
    assert isinstance(error, OSError)
    return TunnelError(
        f"Cloudflare can't be reached ({reason(error)})", "look at `port`, and at firewalls", TLS
    )


def _keep_alive(websocket: WebSocket) -> None:
    sock: Any = websocket.transport.get_extra_info("socket")
    if sock is not None:
        tcp.keep_alive(sock)
