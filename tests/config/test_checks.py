from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.config.checks import findings
from proxy.config.model import Config
from proxy.config.problems import dotted

CONTROL = {"control": {"user": "sluice_control"}}


def found(tree: dict[str, Any], directory: Path = Path("/nowhere")) -> dict[str, str]:
    config = Config.model_validate({"databases": {"app": CONTROL}, **tree}, context={"directory": directory})
    return {dotted(finding.path): finding.message for finding in findings(config)}


def in_database(**keys: Any) -> dict[str, Any]:
    return {"databases": {"app": {**CONTROL, **keys}}}


def test_the_defaults_are_sound() -> None:
    assert found({}) == {}


@pytest.mark.parametrize(
    ("tree", "path", "message"),
    [
        ({"listen": {"tls": {"mode": "require"}}}, "listen.tls.cert_file", "no file /nowhere/server.crt"),
        ({"listen": {"tls": {"mode": "prefer"}}}, "listen.tls.key_file", "no file /nowhere/server.key"),
        ({"listen": {"unix_socket_dir": "run"}}, "listen.unix_socket_dir", "no directory /nowhere/run"),
        ({"listen": {"port": "9432"}}, "http.port", "the same as listen.port"),
        ({"listen": {"port": "0"}, "workers": "2"}, "listen.port", "can't be left open"),
        ({"workers": "3"}, "databases.app.pools.background.max", "less than one connection for each of 3"),
        ({"workers": "2", "listen": {"max_clients": "1"}}, "listen.max_clients", "one for each of 2 workers"),
        ({"auth": {"keys": "file"}}, "auth.keys_file", "no file /nowhere/keys.yaml"),
        (
            {"auth": {"methods": ["password"]}, "listen": {"host": "0.0.0.0"}},
            "auth.methods",
            "nobody could log in",
        ),
        ({"databases": {"pgsluice": CONTROL}}, "databases.pgsluice", "admin console"),
        (in_database(pools={"primary": {}}), "databases.app.pools", "the pool readonly is missing"),
        (in_database(pools={"readonly": {}}), "databases.app.pools", "the pool primary is missing"),
        (in_database(hosts=[{}, {}]), "databases.app.hosts[1].name", "two hosts are called 127.0.0.1:5432"),
        (
            in_database(hosts=[{"name": "a", "role": "primary"}, {"name": "b", "role": "primary"}]),
            "databases.app.hosts[1].role",
            "a is the primary already",
        ),
        (
            in_database(hosts=[{"service_token": {"id": "i", "secret": "s"}}]),
            "databases.app.hosts[0].service_token",
            "transport: cloudflare",
        ),
        *(
            (
                in_database(hosts=[{"host": host, "transport": "cloudflare"}]),
                "databases.app.hosts[0].host",
                "the tunnel's hostname is needed",
            )
            for host in ("https://db.example.com", "db.example.com/", "10.0.0.7", "/run/postgresql", "::1")
        ),
        *(
            (
                in_database(hosts=[{"host": "a.example", "transport": "cloudflare", "service_token": token}]),
                f"databases.app.hosts[0].service_token.{key}",
                "letters and digits without blanks",
            )
            for token, key in (
                ({"id": "i", "secret": ""}, "secret"),
                ({"id": "i", "secret": "a\r\nX: y"}, "secret"),
                ({"id": "i d", "secret": "s"}, "id"),
            )
        ),
        (
            in_database(hosts=[{"tls": {"ca_file": "ca.crt"}}]),
            "databases.app.hosts[0].tls.ca_file",
            "no file /nowhere/ca.crt",
        ),
        (
            in_database(hosts=[{"tls": {"mode": "verify-ca"}}]),
            "databases.app.hosts[0].tls.ca_file",
            "verify-ca needs the CA's certificate",
        ),
        (
            in_database(hosts=[{"tls": {"ca_file": __file__}}]),
            "databases.app.hosts[0].tls.ca_file",
            "of no use with mode prefer",
        ),
        (
            in_database(hosts=[{"tls": {"mode": "off", "cert_file": __file__}}]),
            "databases.app.hosts[0].tls.cert_file",
            "of no use with mode disable",
        ),
        (
            in_database(hosts=[{"tls": {"mode": "require", "key_file": __file__}}]),
            "databases.app.hosts[0].tls.key_file",
            "a key without its certificate",
        ),
        (
            in_database(hosts=[{"host": "/run/postgresql", "tls": {"mode": "require"}}]),
            "databases.app.hosts[0].tls.mode",
            "a Unix socket has no TLS",
        ),
    ],
)
def test_finds(tree: dict[str, Any], path: str, message: str) -> None:
    assert message in found(tree).get(path, "nothing")


@pytest.mark.parametrize(
    "tree",
    [
        {"listen": {"port": "0"}, "http": {"port": "0"}},
        {"listen": {"port": "9432", "host": "127.0.0.2"}},
        {"listen": {"port": "9432"}, "http": "off"},
        {"auth": {"methods": ["password"]}, "listen": {"host": "localhost"}},
        {"auth": {"methods": ["password"]}, "listen": {"host": "::1"}},
        in_database(hosts=[{"name": "a", "role": "primary"}, {"name": "b", "role": "replica"}]),
        in_database(
            hosts=[{"tls": {"mode": "verify-full", "ca_file": __file__, "cert_file": __file__}}],
        ),
        in_database(hosts=[{"host": "/run/postgresql"}]),
        in_database(
            hosts=[
                {
                    "host": "db.example.com",
                    "transport": "cloudflare",
                    "service_token": {"id": "i", "secret": "s"},
                }
            ],
        ),
        in_database(hosts=[{"host": "localhost", "transport": "cloudflare", "tls": {"mode": "verify-full"}}]),
    ],
)
def test_has_nothing_against(tree: dict[str, Any]) -> None:
    assert found(tree) == {}


def test_files_that_exist_are_fine(tmp_path: Path) -> None:
    for name in ("server.crt", "server.key", "keys.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "run").mkdir()
    tree = {
        "listen": {"tls": {"mode": "require"}, "unix_socket_dir": "run"},
        "auth": {"keys": "file", "methods": ["password"]},
    }
    assert found(tree, tmp_path) == {}


@pytest.mark.parametrize(
    ("identity", "keys", "sinks", "wanted"),
    [
        ("signed", "database", ["table"], "identity.mode, auth.keys, access_log.sinks"),
        ("signed", "file", ["stdout"], "identity.mode"),
        ("off", "database", [], "auth.keys"),
        ("off", "file", ["table"], "access_log.sinks"),
        ("off", "file", ["stdout"], ""),
    ],
)
def test_the_control_login_is_needed_for(
    identity: str, keys: str, sinks: list[str], wanted: str, tmp_path: Path
) -> None:
    (tmp_path / "keys.yaml").touch()
    tree = {
        "identity": {"mode": identity},
        "auth": {"keys": keys},
        "access_log": {"sinks": sinks},
        "databases": {"app": {}},
    }
    messages = found(tree, tmp_path)
    if wanted:
        assert f"needed for {wanted}: " in messages["databases.app.control"]
    else:
        assert messages == {}


def test_a_tunnels_port_is_https() -> None:
    database = Config.model_validate(
        in_database(
            hosts=[
                {"host": "a.example", "transport": "cloudflare"},
                {"host": "a.example", "transport": "cloudflare", "port": 8443},
                {"host": "a.example"},
            ]
        )
    ).databases["app"]
    assert [host.name for host in database.hosts] == ["a.example:443", "a.example:8443", "a.example:5432"]
