"""What has to hold between the keys of a configuration, beyond each key's own type and range."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

from proxy.config.model import Config, Database, Host
from proxy.config.problems import Path

# Names of databases that the proxy answers itself: its admin console.
RESERVED = ("pgsluice",)

_HOSTNAME = re.compile(r"[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*")


class Finding(NamedTuple):
    """A problem at `path`, which was found by also looking at `because`."""

    path: Path
    message: str
    because: tuple[Path, ...] = ()


def findings(config: Config, *, new_keys_file: bool = False) -> Iterator[Finding]:
    """Yield what is wrong between the keys of `config`; files that it names are looked for.

    With `new_keys_file` that of the keys may be missing, for who is about to make it.
    """
    yield from _listening(config)
    yield from _auth(config, new_keys_file)
    for name, database in config.databases.items():
        yield from _database(config, name, database)
        yield from _shares(config, name, database)


def _listening(config: Config) -> Iterator[Finding]:
    listen, http = config.listen, config.http
    if listen.tls.mode != "off":
        for key, file in (("cert_file", listen.tls.cert_file), ("key_file", listen.tls.key_file)):
            if not file.is_file():
                yield Finding(
                    ("listen", "tls", key), f"there is no file {file}", (("listen", "tls", "mode"),)
                )
    directory = listen.unix_socket_dir
    if directory is not None and not directory.is_dir():
        yield Finding(("listen", "unix_socket_dir"), f"there is no directory {directory}")
    if http is not None and http.port == listen.port != 0 and http.host == listen.host:
        yield Finding(("http", "port"), "the same as listen.port", (("listen", "port"), ("listen", "host")))
    if config.workers > 1 and listen.port == 0:
        message = "with more than one worker the port can't be left open: they have to share it"
        yield Finding(("listen", "port"), message, (("workers",),))
    if listen.max_clients < config.workers:
        message = f"less than one for each of {config.workers} workers"
        yield Finding(("listen", "max_clients"), message, (("workers",),))


def _auth(config: Config, new_keys_file: bool) -> Iterator[Finding]:
    auth, listen = config.auth, config.listen
    if auth.keys == "file" and not new_keys_file and not auth.keys_file.is_file():
        message = f"there is no file {auth.keys_file}; `pgsluice keys create` makes it"
        yield Finding(("auth", "keys_file"), message, (("auth", "keys"),))
    elsewhere = listen.tls.mode != "off" or listen.unix_socket_dir is not None or _is_loopback(listen.host)
    if auth.methods == ["password"] and not elsewhere:
        message = "nobody could log in: passwords are taken over TLS, a Unix socket or loopback only"
        because = (("listen", "tls", "mode"), ("listen", "host"), ("listen", "unix_socket_dir"))
        yield Finding(("auth", "methods"), message, because)


def _database(config: Config, name: str, database: Database) -> Iterator[Finding]:
    path: Path = ("databases", name)
    if name in RESERVED:
        yield Finding(path, f"{name} is the admin console's name: choose another")
    if database.control is None:
        reasons = {
            ("identity", "mode"): config.identity.mode == "signed",
            ("auth", "keys"): config.auth.keys == "database",
            ("access_log", "sinks"): "table" in config.access_log.sinks,
        }
        wanted = [f"{section}.{key}" for (section, key), holds in reasons.items() if holds]
        if wanted:
            message = f"needed for {', '.join(wanted)}: the login (sluice_control) that reads keys"
            yield Finding((*path, "control"), f"{message} and writes the log", tuple(reasons))
    for pool in ("primary", "readonly"):
        if pool not in database.pools:
            yield Finding((*path, "pools"), f"the pool {pool} is missing")
    if database.cache.mode != "off" and database.pool_mode == "session":
        message = "sessions that keep their connection get no kept results: cache needs pool_mode transaction"
        yield Finding((*path, "cache", "mode"), message, ((*path, "pool_mode"),))
    yield from _hosts(path, database.hosts)


def _shares(config: Config, name: str, database: Database) -> Iterator[Finding]:
    """Yield pools that can't be shared out: a worker without a connection could serve nobody."""
    for pool, settings in database.pools.items():
        if settings.max < config.workers:
            message = (
                f"less than one connection for each of {config.workers} workers: raise it, or lower workers"
            )
            yield Finding(("databases", name, "pools", pool, "max"), message, (("workers",),))


def _hosts(path: Path, hosts: list[Host]) -> Iterator[Finding]:
    names: set[str] = set()
    primary = ""
    for index, host in enumerate(hosts):
        place = (*path, "hosts", index)
        if host.name in names:
            yield Finding((*place, "name"), f"two hosts are called {host.name}", ((*path, "hosts"),))
        names.add(host.name)
        if host.role == "primary":
            if primary:
                yield Finding((*place, "role"), f"{primary} is the primary already; role: auto finds out")
            primary = primary or host.name
        if host.service_token is not None and host.transport != "cloudflare":
            message = "a service token is for transport: cloudflare"
            yield Finding((*place, "service_token"), message, ((*place, "transport"),))
        if host.transport == "cloudflare":
            yield from _tunnel(place, host)
        yield from _host_tls((*place, "tls"), host)


def _tunnel(path: Path, host: Host) -> Iterator[Finding]:
    if _HOSTNAME.fullmatch(host.host) is None or _is_address(host.host):
        message = "the tunnel's hostname is needed, as in db.example.com: without https://, port or path"
        yield Finding((*path, "host"), message, ((*path, "transport"),))
    token = host.service_token
    if token is not None:
        for key, value in (("id", token.id), ("secret", token.secret.get_secret_value())):
            if not value or not value.isascii() or not value.isprintable() or " " in value:
                message = "letters and digits without blanks are needed, as Cloudflare shows them once"
                yield Finding((*path, "service_token", key), message)


def _host_tls(path: Path, host: Host) -> Iterator[Finding]:
    tls = host.tls
    for key in ("ca_file", "cert_file", "key_file"):
        file = getattr(tls, key)
        if file is not None and not file.is_file():
            yield Finding((*path, key), f"there is no file {file}")
            return
    because = ((*path, "mode"),)
    if host.host.startswith("/") and tls.mode not in ("disable", "prefer"):
        yield Finding((*path, "mode"), "a Unix socket has no TLS")
    if tls.mode == "verify-ca" and tls.ca_file is None:
        message = "verify-ca needs the CA's certificate here: any site has one by a public CA"
        yield Finding((*path, "ca_file"), message, because)
    for key in ("ca_file", "cert_file"):
        if getattr(tls, key) is not None and tls.mode in ("disable", "prefer"):
            yield Finding((*path, key), f"of no use with mode {tls.mode}: take require or stricter", because)
    if tls.key_file is not None and tls.cert_file is None:
        yield Finding((*path, "key_file"), "a key without its certificate", ((*path, "cert_file"),))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
