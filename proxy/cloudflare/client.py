"""pgsluice.yaml of the proxy's side: hosts behind the tunnel, and references where secrets stood."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from proxy.cloudflare.answers import Route
from proxy.cloudflare.documents import Indented
from proxy.config import Config, ConfigError, parse
from proxy.config.document import Document
from proxy.config.model import POOLS
from proxy.errors import SluiceError

Tree = dict[str, Any]

# Where nothing else is said: the database and the logins that `pgsluice setup` makes.
USUAL: Final = """\
databases:
  app:
    control: {user: sluice_control, password: "${PGSLUICE_CONTROL_PASSWORD}"}
    pools:
      primary: {user: app_rw, password: "${APP_RW_PASSWORD}"}
      readonly: {user: app_ro, password: "${APP_RO_PASSWORD}"}
      priority: {user: app_rw, password: "${APP_RW_PASSWORD}"}
      background: {user: app_rw, password: "${APP_RW_PASSWORD}"}
      admin: {user: app_admin, password: "${APP_ADMIN_PASSWORD}"}
"""
TOKEN_ID: Final = "CF_ACCESS_CLIENT_ID"
TOKEN_SECRET: Final = "CF_ACCESS_CLIENT_SECRET"
CA_FILE: Final = "ca.crt"
CONTROL_PASSWORD: Final = "PGSLUICE_CONTROL_PASSWORD"

_REFERENCE: Final = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}")
_SECRET_KEYS: Final = ("password", "secret")


# The reader takes scalars for text, but for a plain null, and merges `<<`.
_RESOLVERS: Final = {
    first: kept
    for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
    if (kept := [each for each in known if each[0].endswith((":null", ":merge"))])
}


class _Dumper(Indented):
    """Writes text without quotes wherever the configuration's reader takes it for the same."""

    yaml_implicit_resolvers = _RESOLVERS


class Client(NamedTuple):
    """A configuration without secrets: its tree, the variables that it reads, the files that it names."""

    tree: Tree
    variables: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def http_port(self) -> int:
        """Return the port of metrics and health."""
        http = self.tree.get("http")
        return int(http.get("port") or 9432) if isinstance(http, dict) else 9432


def tunnelled(text: str) -> list[str]:
    """Return the hostnames that the configuration `text` reaches through a tunnel already, in order."""
    hosts = [host for database in _databases(_read(text)) for host in _hosts(database) if _is_tunnelled(host)]
    return list(dict.fromkeys(str(host.get("host")) for host in hosts))


def most_connections(text: str, environ: Mapping[str, str]) -> int:
    """Return how many connections one proxy may hold to a host: all pools, and a few control connections."""
    config = _checked(text, environ)
    return sum(
        sum(pool.max for pool in database.pools.values()) + 4 for database in config.databases.values()
    )


def client(text: str, environ: Mapping[str, str], routes: Sequence[Route], server_tls: str) -> Client:
    """Return the configuration `text` with its hosts behind the tunnel.

    Hosts that are there with `transport: cloudflare` are kept, all others make room for `routes`. Passwords and
    tokens that are written in it become references to variables. Raises ConfigError where it is wrong, and
    SluiceError where the result would be.
    """
    _checked(text, environ)
    tree = copy.deepcopy(_read(text))
    for database in _databases(tree):
        if not any(_is_tunnelled(host) for host in _hosts(database)):
            database["hosts"] = [_host(route, server_tls) for route in routes]
    _refer(tree)
    result = written(tree)
    variables = _variables(tree)
    try:
        _checked(result, {**dict.fromkeys(variables, "1"), **environ})
    except ConfigError as error:
        raise SluiceError(f"the rendered pgsluice.yaml would be wrong: {error.problems[0]}") from None
    return Client(tree, variables, tuple(_files(tree)))


def written(tree: Tree) -> str:
    """Return YAML that reads back as `tree`; raises SluiceError if it doesn't."""
    for readable in (True, False):
        # PyYAML doesn't quote U+0085, which it reads as the end of a line, unless all but ASCII is escaped.
        text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=readable, width=1000)
        try:
            if _read(text) == tree:
                return text
        except ConfigError:
            continue
    raise SluiceError("pgsluice.yaml doesn't read back as it was written")


def in_a_pod(tree: Tree) -> Tree:
    """Return the same for a pod, whose probes and Prometheus reach the HTTP port from outside of it."""
    http = tree.get("http")
    return {**tree, "http": {**(http if isinstance(http, dict) else {}), "host": "0.0.0.0"}}


def _read(text: str) -> Tree:
    """Return what the configuration's own reader makes of `text`, references as they stand."""
    document = Document(text, None)
    if document.problems:
        raise ConfigError(document.problems)
    return document.tree if isinstance(document.tree, dict) else {}


def _checked(text: str, environ: Mapping[str, str]) -> Config:
    """Parse as the proxy does, but don't miss variables and files that are elsewhere."""
    tree = _read(text)
    known = {**dict.fromkeys(_secret_variables(tree), "1"), **environ}
    with tempfile.TemporaryDirectory() as directory:
        for name in _files(tree):
            place = Path(directory, name)
            if not Path(name).is_absolute() and place.resolve().is_relative_to(Path(directory).resolve()):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        try:
            return parse(text, known, Path(directory), new_keys_file=True)
        except ConfigError as error:
            left = [each for each in error.problems if "there is no " not in each.message]
            if left:
                raise ConfigError(left) from None
            # Files by their whole path are on the machine that it is for: it is looked at without them.
            return parse(_without_files(tree), known, Path(directory), new_keys_file=True)


def _without_files(tree: Tree) -> str:
    left = copy.deepcopy(tree)
    for section, key in list(_file_keys(left)):
        del section[key]
        section["mode"] = "require"
    listen = _section(left, "listen")
    listen.pop("unix_socket_dir", None)
    if isinstance(tls := listen.get("tls"), dict):
        tls["mode"] = "off"
    return written(left)


def _section(tree: Tree, name: str) -> Tree:
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _databases(tree: Tree) -> Iterator[Tree]:
    for database in _section(tree, "databases").values():
        if isinstance(database, dict):
            yield database


def _hosts(database: Tree) -> Iterator[Tree]:
    hosts = database.get("hosts")
    for host in hosts if isinstance(hosts, list) else []:
        if isinstance(host, dict):
            yield host


def _is_tunnelled(host: Tree) -> bool:
    return host.get("transport") == "cloudflare"


def _host(route: Route, server_tls: str) -> Tree:
    tls = {"mode": server_tls, **({"ca_file": CA_FILE} if server_tls == "verify-full" else {})}
    return {
        "name": route.hostname.partition(".")[0],
        "host": route.hostname,
        "port": "443",
        "transport": "cloudflare",
        "service_token": {"id": f"${{{TOKEN_ID}}}", "secret": f"${{{TOKEN_SECRET}}}"},
        "tls": tls,
    }


def _refer(tree: Tree) -> None:
    """Put references in the place of secrets; the same secret has the same variable."""
    taken: dict[str, str] = {}

    def reference(section: Tree, key: str, wanted: str) -> None:
        value = section.get(key)
        if not isinstance(value, str):
            return  # none, or something that the model refuses
        if (known := _REFERENCE.fullmatch(value)) is not None:
            section[key] = f"${{{known[1]}}}"  # a default behind :- would be a secret as well
            return
        name, number = wanted, 2
        while taken.setdefault(name, value) != value:
            name, number = f"{wanted}_{number}", number + 1
        section[key] = f"${{{name}}}"

    for database in _databases(tree):
        control = database.get("control")
        if isinstance(control, dict):
            reference(control, "password", CONTROL_PASSWORD)
        pools = _section(database, "pools")
        for name in pools:
            pool = _section(pools, name)
            user = str(pool.get("user") or POOLS.get(name, {}).get("user", "app_rw"))
            reference(pool, "password", f"{_variable(user)}_PASSWORD")
        for host in _hosts(database):
            if isinstance(token := host.get("service_token"), dict):
                reference(token, "id", TOKEN_ID)
                reference(token, "secret", TOKEN_SECRET)


def _variable(user: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]", "_", user).upper()
    return name if not name[:1].isdigit() else f"_{name}"


def _scalars(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _scalars(value, str(name))
    elif isinstance(tree, list):
        for value in tree:
            yield from _scalars(value, key)
    elif isinstance(tree, str):
        yield key, tree


def _variables(tree: Tree) -> tuple[str, ...]:
    """Return the names of variables that `tree` can't do without."""
    names = (found[1] for _, text in _scalars(tree) for found in _REFERENCE.finditer(text) if not found[2])
    return tuple(dict.fromkeys(names))


def _secret_variables(tree: Tree) -> list[str]:
    return [
        found[1]
        for key, text in _scalars(tree)
        if key in (*_SECRET_KEYS, "id")
        for found in _REFERENCE.finditer(text)
    ]


def _file_keys(tree: Any) -> Iterator[tuple[Tree, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("ca_file", "cert_file", "key_file") and isinstance(value, str):
                yield tree, key
        for value in list(tree.values()):
            yield from _file_keys(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _file_keys(value)


def _files(tree: Tree) -> list[str]:
    """Return the files that `tree` names for TLS, and that of the keys where it is in use."""
    names = [section[key] for section, key in list(_file_keys(tree))]
    if _section(tree, "auth").get("keys") == "file":
        names.append(str(_section(tree, "auth").get("keys_file") or "keys.yaml"))
    return list(dict.fromkeys(names))
