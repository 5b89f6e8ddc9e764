"""PostgreSQL behind a Cloudflare tunnel: `transport: cloudflare`.

Each connection is a WebSocket to the tunnel's hostname, as `cloudflared access tcp` opens them, and a pair of
sockets; what goes in at one end comes out at PostgreSQL. Cloudflare ends the outer TLS, so PostgreSQL's own is
spoken inside. Decided from cloudflared's sources; design and limits stand in README, "Cloudflare".
"""

from proxy.tunnel.answers import TunnelError
from proxy.tunnel.way import Tunnel, way_to

__all__ = ["Tunnel", "TunnelError", "way_to"]
