"""Lists of client addresses, as in `allowed_addresses` (type cidr[])."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(given: Iterable[object]) -> list[Network]:
    """Return `given` as networks; each may be text (`10.0.0.0/8`, `::1`) or a network already.

    Raises ValueError for anything else, and for host bits behind the mask, as PostgreSQL's cidr does.
    """
    return [ipaddress.ip_network(str(each)) for each in given]


def allowed(address: str, among: list[Network]) -> bool:
    """Tell whether `address` lies in one of the networks; an empty list allows every address.

    An IPv4 address mapped into IPv6 counts as itself. A client on a Unix socket has no address ("") and
    counts as loopback.
    """
    if not among:
        return True
    if not address:
        return any(each.is_loopback for each in among)
    try:
        client = ipaddress.ip_address(address.partition("%")[0])  # without the scope of fe80::1%eth0
    except ValueError:
        return False
    if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped is not None:
        client = client.ipv4_mapped
    return any(client in each for each in among)
