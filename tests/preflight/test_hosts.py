"""What doesn't fit between hosts, judged from rows alone: clocks, roles and copies can't be had wrong on demand."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from proxy.config import Database, Host, HostTls, ServiceToken
from proxy.preflight import hosts
from proxy.preflight.facts import Facts
from proxy.preflight.finding import ERROR, WARNING, Finding
from proxy.preflight.hosts import Looked

PRIMARY: dict[str, Any] = {
    "version": 160003,
    "release": "16.3",
    "in_recovery": False,
    "system": 1,
    "position": 1000,
    "paused": None,
    "streaming": False,
    "replay_age": None,
    "tls": None,
}
REPLICA = {**PRIMARY, "in_recovery": True, "paused": False, "streaming": True, "replay_age": 0.1}


def looked(name: str, row: dict[str, Any], *, offset: float = 0.0, **host: Any) -> Looked:
    facts = Facts(row, offset, 0.01, signing_keys=["aaaa"])
    return Looked(Host(name=name, **host), facts=facts)


def of_one(each: Looked) -> list[Finding]:
    return list(hosts.check(each, Database()))


def between(*found: Looked) -> list[tuple[str, str, str]]:
    return [
        (each.host.name, finding.severity, finding.what) for each, finding in hosts.compare(found, Database())
    ]


def test_a_primary_and_its_copy_are_nothing_to_tell() -> None:
    pair = looked("a", PRIMARY), looked("b", REPLICA)
    assert [of_one(each) for each in pair] == [[], []]
    assert between(*pair) == []
    assert between(looked("b", REPLICA), looked("a", PRIMARY)) == []


def test_a_host_that_is_not_what_it_should_be() -> None:
    assert [each.what for each in of_one(Looked(Host(), error="refused"))] == ["refused"]
    (old,) = of_one(looked("a", {**PRIMARY, "version": 140012, "release": "14.12"}))
    assert (old.severity, old.what) == (ERROR, "PostgreSQL 14.12: 15 or newer is needed")
    (role,) = of_one(looked("a", PRIMARY, role="replica"))
    assert role.what == "the configuration says replica, and it is a primary"
    (paused,) = of_one(looked("b", {**REPLICA, "paused": True}))
    assert paused.mend == "SELECT pg_wal_replay_resume();"
    (alone,) = of_one(looked("b", {**REPLICA, "streaming": False}))
    assert (alone.severity, alone.what) == (ERROR, "it doesn't stream from a primary")


def test_a_clock_that_is_off() -> None:
    assert of_one(looked("a", PRIMARY, offset=hosts.MAX_OFFSET)) == []
    (ahead,) = of_one(looked("a", PRIMARY, offset=7.25))
    assert (ahead.severity, ahead.what) == (WARNING, "its clock is 7.2 s ahead of ours")
    (behind,) = of_one(looked("a", PRIMARY, offset=-60.0))
    assert behind.what == "its clock is 60.0 s behind ours"
    # Claims are dated by the primary's clock, whatever ours says.
    assert between(looked("a", PRIMARY, offset=30.0), looked("b", REPLICA, offset=30.5)) == []
    ((host, severity, what),) = between(looked("a", PRIMARY), looked("b", REPLICA, offset=-1.5))
    assert (host, severity) == ("b", ERROR)
    assert what == "its clock and that of a, by which claims are dated, differ by 1.5 s"


def test_hosts_that_don_t_belong_together() -> None:
    assert between(looked("a", PRIMARY), looked("b", PRIMARY)) == [("b", ERROR, "a is a primary too")]
    assert between(looked("a", PRIMARY), looked("b", {**REPLICA, "system": 2})) == [
        ("b", ERROR, "it is no copy of a, but another installation")
    ]
    ((host, severity, _),) = between(looked("b", REPLICA))
    assert (host, severity) == ("b", ERROR)
    assert between(Looked(Host(), error="refused")) == []


def test_a_replica_that_is_behind() -> None:
    late = {**REPLICA, "position": 400, "replay_age": 11.0}
    ((host, severity, what),) = between(looked("a", PRIMARY), looked("b", late))
    assert (host, severity) == ("b", WARNING)
    assert what == "it is 600 bytes and 11 s behind a: no reads until it has caught up"
    # Where nothing was written for long, nothing was replayed for long.
    assert between(looked("a", PRIMARY), looked("b", {**REPLICA, "replay_age": 9000.0})) == []


def test_a_replica_without_the_signing_keys() -> None:
    first, second = looked("a", PRIMARY), looked("b", REPLICA)
    assert first.facts is not None and second.facts is not None
    first.facts.signing_keys = ["bbbb", "aaaa"]
    assert between(first, second) == [("b", WARNING, "signing keys of a haven't arrived: bbbb")]
    second.facts.signing_keys = []
    assert between(first, second) == [("b", ERROR, "signing keys of a haven't arrived: aaaa, bbbb")]


def test_the_way_to_a_host() -> None:
    (clear,) = of_one(looked("a", PRIMARY, host="db.example.com"))
    assert clear.what == "it is reached in clear: rows and claims can be read on the way"
    encrypted = {**PRIMARY, "tls": "TLSv1.3"}
    (anyone,) = of_one(looked("a", encrypted, host="10.0.0.7"))
    assert anyone.what == "tls.mode prefer takes any certificate: who answers may be somebody else"
    assert of_one(looked("a", encrypted, host="10.0.0.7", tls=HostTls(mode="verify-full"))) == []
    for near in ("localhost", "::1", "/run/postgresql"):
        assert of_one(looked("a", PRIMARY, host=near)) == []


def test_the_way_through_a_tunnel() -> None:
    tunnel: dict[str, Any] = {
        "host": "localhost",
        "transport": "cloudflare",
        "tls": HostTls(mode="verify-full"),
    }
    (open_to_all,) = of_one(looked("a", {**PRIMARY, "tls": "TLSv1.3"}, **tunnel))
    assert open_to_all.severity == WARNING and "there is no service_token" in open_to_all.what
    token = ServiceToken(id="i", secret=SecretStr("s"))
    assert of_one(looked("a", {**PRIMARY, "tls": "TLSv1.3"}, service_token=token, **tunnel)) == []
    # Cloudflare stands between, however near the name looks.
    (clear,) = of_one(looked("a", PRIMARY, service_token=token, **tunnel))
    assert "in clear" in clear.what
