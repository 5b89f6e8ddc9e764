"""The rendered pgsluice.yaml: hosts behind the tunnel, no secret, and nothing else changed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxy.cloudflare.answers import Route
from proxy.cloudflare.client import USUAL, client, in_a_pod, most_connections, tunnelled, written
from proxy.config import ConfigError
from proxy.config.document import Document

ROUTES = (Route("db.example.com", "localhost", 5432),)

SETUP = """\
# a comment with hunter2 in it
listen: {port: 7432, tls: {mode: off}}
http: off
databases:
  app: &app
    control: {user: sluice_control, password: hunter2}
    hosts:
      - {name: main, host: 127.0.0.1, port: 5432, role: auto}
      - {name: replica1, host: 127.0.0.1, port: 5433}
    pools:
      primary: {user: app_rw, password: "hunter2-rw", min: 2, max: 010}
      readonly: {user: app_ro, password: "${RO:-hunter2-default}"}
      background: {user: app_rw, password: "hunter2-rw"}
      admin: {password: "hunter2-$${x}"}
    timeouts: {query: 5m}
  other:
    <<: *app
    control: {user: sluice_control, password: "hunter2-other"}
    pools: {primary: {user: app_rw, password: "hunter2-other"}, readonly: {password: "pre${RO}hunter2"}}
identity: {mode: signed}
"""


def rendered(text: str, **environ: str) -> Any:
    return client(text, environ, ROUTES, "verify-full")


def test_secrets_become_references() -> None:
    found = rendered(SETUP)
    text = written(found.tree)
    assert "hunter2" not in text
    app, other = found.tree["databases"]["app"], found.tree["databases"]["other"]
    assert app["control"]["password"] == "${PGSLUICE_CONTROL_PASSWORD}"
    assert [app["pools"][name]["password"] for name in ("primary", "readonly", "background", "admin")] == [
        "${APP_RW_PASSWORD}",
        "${RO}",
        "${APP_RW_PASSWORD}",
        "${APP_ADMIN_PASSWORD}",
    ]
    # Another secret of the same login has a variable of its own.
    assert other["control"]["password"] == "${PGSLUICE_CONTROL_PASSWORD_2}"
    assert other["pools"]["primary"]["password"] == "${APP_RW_PASSWORD_2}"
    assert other["pools"]["readonly"]["password"] == "${APP_RO_PASSWORD}"
    assert set(found.variables) == set(re.findall(r"\$\{(\w+)\}", text))


def test_the_rest_stays_as_it_was() -> None:
    found = rendered(SETUP)
    variables = dict.fromkeys(found.variables, "x")
    before: Any = Document(SETUP, {"RO": "x"}).tree
    after: Any = Document(written(found.tree), variables).tree
    for tree in (before, after):
        for database in tree["databases"].values():
            del database["hosts"], database["control"], database["pools"]
    assert before == after


def test_hosts_are_behind_the_tunnel() -> None:
    (host,) = rendered(SETUP).tree["databases"]["app"]["hosts"]
    assert host == {
        "name": "db",
        "host": "db.example.com",
        "port": "443",
        "transport": "cloudflare",
        "service_token": {"id": "${CF_ACCESS_CLIENT_ID}", "secret": "${CF_ACCESS_CLIENT_SECRET}"},
        "tls": {"mode": "verify-full", "ca_file": "ca.crt"},
    }


def test_hosts_that_are_behind_a_tunnel_already_are_kept() -> None:
    text = """\
databases:
  app:
    control: {user: sluice_control, password: x}
    hosts:
      - {host: db.example.org, port: 443, transport: cloudflare, service_token: {id: abc.access, secret: hunter2}}
      - {host: 10.0.0.5}
"""
    assert tunnelled(text) == ["db.example.org"]
    hosts = rendered(text).tree["databases"]["app"]["hosts"]
    assert [host["host"] for host in hosts] == ["db.example.org", "10.0.0.5"]
    assert hosts[0]["service_token"] == {
        "id": "${CF_ACCESS_CLIENT_ID}",
        "secret": "${CF_ACCESS_CLIENT_SECRET}",
    }


def test_the_usual_configuration_is_sound() -> None:
    found = rendered(USUAL)
    assert found.variables == (
        "PGSLUICE_CONTROL_PASSWORD",
        "APP_RW_PASSWORD",
        "APP_RO_PASSWORD",
        "APP_ADMIN_PASSWORD",
        "CF_ACCESS_CLIENT_ID",
        "CF_ACCESS_CLIENT_SECRET",
    )
    assert found.files == ("ca.crt",)
    assert most_connections(USUAL, {}) == 10 + 5 + 3 + 2 + 2 + 4


@pytest.mark.parametrize(
    "text",
    [
        "databases: {app: {colour: blue}}",
        "databases: [",
        "databases: &a {app: *a}",
        "databases: {app: {control: {user: u}, hosts: [{port: 99999}]}}",
        "",
        "- 1",
        "databases: !!python/object/apply:os.system ['true']",
    ],
)
def test_a_wrong_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        rendered(text)


def test_a_variable_that_is_no_secret_has_to_be_known() -> None:
    text = USUAL + "listen: {port: '${PORT}'}\n"
    with pytest.raises(ConfigError, match="PORT"):
        rendered(text)
    found = rendered(text, PORT="7000")
    assert found.tree["listen"] == {"port": "${PORT}"}
    assert "PORT" in found.variables


def test_files_are_those_of_another_machine() -> None:
    text = (
        USUAL
        + "listen: {unix_socket_dir: /nowhere/run, tls: {mode: require, cert_file: a/b.crt, key_file: /nowhere/k}}\n"
    )
    assert rendered(text).files == ("ca.crt", "a/b.crt", "/nowhere/k")


def test_a_pod_is_probed_from_outside() -> None:
    assert in_a_pod({"http": "off"})["http"] == {"host": "0.0.0.0"}
    assert in_a_pod({"http": {"host": "127.0.0.1", "port": "9"}})["http"] == {"host": "0.0.0.0", "port": "9"}


# What a scalar of YAML may hold: no lone surrogates.
texts = st.text(st.characters(codec="utf-8"))


@settings(deadline=None, max_examples=60)
@given(texts, texts, texts)
@example("hunter2: ${x}", "app\n- x: *y", "off")
@example("null", "~", "<<")
@example("0x1F", "1e3", "=")
@example("\x85\u2028", "#!x", "---")
def test_any_secret_name_and_text_comes_out_right(secret: str, name: str, sink: str) -> None:
    secret = f"hunter2{secret}"
    assume(0 < len(name) <= 63 and name not in ("pgsluice", "<<") and "$" not in name + sink)
    tree = {
        "databases": {
            name: {
                "control": {"user": "sluice_control", "password": secret},
                "pools": {"primary": {"password": secret}, "readonly": {"user": name, "password": secret}},
            }
        },
        "access_log": {"sinks": [f"file:/{sink}"]},
    }
    found = rendered(yaml.safe_dump(tree))
    text = written(found.tree)
    assert "hunter2" not in text
    after: Any = Document(text, dict.fromkeys(found.variables, "x")).tree
    assert list(after["databases"]) == [name]
    assert after["databases"][name]["pools"]["readonly"] == {"user": name, "password": "x"}
    assert after["access_log"]["sinks"] == [f"file:/{sink}"]
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) for variable in found.variables)


@settings(deadline=None)
@given(
    st.recursive(
        texts | st.none(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=12
    )
)
@example({"a": "${X}", "b": "x: y", "c": " ", "": "", "e": "null", "f": ["", "~", "<<", "="]})
def test_whatever_is_written_reads_back(value: Any) -> None:
    tree = {"x": value}
    assert Document(written(tree), None).tree == tree
