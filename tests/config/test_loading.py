from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import ConfigError, load, parse

SOUND = "databases: {app: {control: {user: sluice_control, password: '${CONTROL}'}}}\n"


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ or {})
    return [str(problem) for problem in caught.value.problems]


def test_loads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "pgsluice.yaml"
    file.write_text(f"{SOUND}listen: {{port: '${{PORT:-7000}}', tls: {{mode: off}}}}\nhttp: off\n")
    config = load(file, {"CONTROL": "0123"})
    assert config.listen.port == 7000
    assert config.listen.tls.cert_file == tmp_path / "server.crt"
    assert config.http is None
    assert config.databases["app"].control is not None
    assert config.databases["app"].control.password.get_secret_value() == "0123"


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        load(tmp_path / "missing.yaml", {})
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "binary.yaml", {})


def test_all_problems_are_reported_at_once_each_with_path_and_line() -> None:
    text = """\
listen:
  port: 99999
  prot: 1
  tls:
    mode: require
http: {port: x}
workers: some
auth: {methods: [scram-sha-256, md5]}
databases:
  app:
    control: {user: c, password: "${NOT_SET}"}
    hosts:
      - {host: a, port: x, transport: carrier}
      - b
    pools:
      primary: {min: 5, max: 2, balance: best}
      Bad: {}
    routing:
      max_parse_bytes: 64KiB
    timeouts: {query: 5}
  app: {}
acess_log: {}
"""
    assert problems(text) == [
        "listen.port (line 2): at most 65535 is possible",
        "listen.prot (line 3): unknown key; did you mean port?",
        "listen.tls.cert_file (line 4): there is no file server.crt",
        "listen.tls.key_file (line 4): there is no file server.key",
        "http.port (line 6): a whole number is needed",
        "workers (line 7): a whole number is needed",
        "auth.methods[1] (line 8): one of scram-sha-256 or password is needed",
        "databases.app.control.password (line 11): environment variable NOT_SET is not set",
        "databases.app.hosts[0].port (line 13): a whole number is needed",
        "databases.app.hosts[0].transport (line 13): one of tcp or cloudflare is needed",
        "databases.app.hosts[1] (line 14): keys and values are needed",
        "databases.app.pools.primary.max (line 16): max (2) is below min (5)",
        "databases.app.pools.primary.balance (line 16):"
        " one of round_robin, least_connections or random is needed",
        "databases.app.pools.Bad (line 17): lower-case letters, digits, - and _ are needed, a letter first",
        "databases.app.routing.max_parse_bytes (line 19): at most 32KiB: PostgreSQL's parser may crash"
        " the process on longer statements",
        "databases.app.timeouts.query (line 20): a duration is needed: a number with ms, s, m, h or d,"
        " as in 250ms, 5s or 10m",
        "databases.app (line 21): written twice, first in line 10",
        "acess_log (line 22): unknown key; did you mean access_log?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["databases: is required"]),
        ("listen: {}\n", ["databases (line 1): is required"]),
        ("databases:\n", ["databases (line 1): is required"]),
        ("[]", ["line 1: keys and values are needed"]),
        ("word", ["line 1: keys and values are needed"]),
        ("databases: {}", ["databases (line 1): at least 1 is needed"]),
        ("databases: [app]", ["databases (line 1): keys and values are needed"]),
        ("databases: {app: x}", ["databases.app (line 1): keys and values are needed"]),
        ("databases: ${NONE}", ["databases (line 1): environment variable NONE is not set"]),
        ("a: [", ["line 1: not valid YAML: expected the node content, but found '<stream end>'"]),
        (SOUND + "logging: {colour: on}", [
            "databases.app.control.password (line 1): environment variable CONTROL is not set",
            "logging.colour (line 2): unknown key; known are level, format",
        ]),
        ("databases: {app: {pools: {primary: {usr: x}, readonly: {}}, control: {user: x}}}", [
            "databases.app.pools.primary.usr (line 1): unknown key; did you mean user?"
        ]),
        ("databases: {app: {control: {user: x}, hosts: [{service_token: {id: x}}]}}", [
            "databases.app.hosts[0].service_token.secret (line 1): is required"
        ]),
    ],
)  # fmt: skip
def test_problems(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_what_is_wrong_is_not_reported_again_for_what_depends_on_it() -> None:
    # With the misspelled mode's default, signed, the control login would be missing.
    text = f"""\
identity: {{mode: sigend}}
auth: {{keys: file, keys_file: "{__file__}"}}
access_log: {{sinks: [stdout]}}
databases: {{app: {{}}}}
"""
    assert problems(text) == ["identity.mode (line 1): one of signed or off is needed"]


def test_problems_never_show_a_secret() -> None:
    shown = problems(
        "databases: {app: {control: {user: x, password: [s3cr3t]}, pools: {primary: {max: '${S}'}}}}",
        {"S": "s3cr3t"},
    )
    assert shown and not any("s3cr3t" in line for line in shown)
