"""The servers themselves: reached or not, how, which of them is the primary, and how far the others are behind."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from proxy.config import Database, Host
from proxy.preflight.facts import Facts
from proxy.preflight.finding import ERROR, WARNING, Finding, name

TOPIC: Final = "host"

OLDEST: Final = 150000
MAX_OFFSET: Final = 5.0
"""Seconds that a server's clock may differ from ours: keys expire by ours."""
MAX_SKEW: Final = 1.0
"""Seconds that a replica's clock may differ from the primary's, by which claims are dated."""


@dataclass
class Looked:
    """What came of looking at one host: `error` where it wasn't reached, else `facts`; `refused` logins with why."""

    host: Host
    error: str = ""
    facts: Facts | None = None
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """Return primary or replica, as the server says it; "" where it wasn't reached."""
        if self.facts is None:
            return ""
        return "replica" if self.facts.host["in_recovery"] else "primary"


def check(looked: Looked, settings: Database) -> Iterator[Finding]:
    """Yield what is wrong with one host."""
    if looked.error:
        yield Finding(ERROR, TOPIC, looked.error)
    for login, why in looked.refused.items():
        mend = f"\\password {name(login)}" if "password" in why else ""
        yield Finding(ERROR, TOPIC, f"{login} can't log in: {why}", mend)
    facts = looked.facts
    if facts is None:
        return
    if facts.host["version"] < OLDEST:
        yield Finding(ERROR, TOPIC, f"PostgreSQL {facts.host['release']}: 15 or newer is needed")
    yield from _tls(looked.host, facts)
    if looked.host.role not in ("auto", looked.role):
        advice = "put role: auto, which finds out"
        what = f"the configuration says {looked.host.role}, and it is a {looked.role}"
        yield Finding(ERROR, TOPIC, what, advice=advice)
    if abs(facts.offset) > MAX_OFFSET + facts.uncertain:
        advice = "let both synchronize with the same source (chrony, systemd-timesyncd)"
        what = f"its clock is {abs(facts.offset):.1f} s {'ahead of' if facts.offset > 0 else 'behind'} ours"
        yield Finding(WARNING, TOPIC, what, advice=advice)
    if facts.host["paused"]:
        yield Finding(ERROR, TOPIC, "its replay is paused", "SELECT pg_wal_replay_resume();")
    if facts.host["in_recovery"] and not facts.host["streaming"]:
        advice = "look at its primary_conninfo, and for a missing slot or WAL in its log"
        yield Finding(ERROR, TOPIC, "it doesn't stream from a primary", advice=advice)


def compare(hosts: Sequence[Looked], settings: Database) -> Iterator[tuple[Looked, Finding]]:
    """Yield what doesn't fit between the hosts of one database."""
    reached = [each for each in hosts if each.facts is not None]
    primaries = [each for each in reached if each.role == "primary"]
    if reached and not primaries:
        yield (
            reached[0],
            Finding(ERROR, TOPIC, "there is no primary among the hosts that answer: nothing can be written"),
        )
    for each in primaries[1:]:
        what = f"{primaries[0].host.name} is a primary too"
        yield each, Finding(ERROR, TOPIC, what, advice="take one of them out of the configuration")
    if not primaries or primaries[0].facts is None:
        return
    first = primaries[0].facts
    for each in reached:
        if each.facts is not None and each.facts is not first:
            for finding in _against(each.facts, first, primaries[0].host.name, settings):
                yield each, finding


def _against(facts: Facts, first: Facts, primary: str, settings: Database) -> Iterator[Finding]:
    if facts.host["system"] != first.host["system"]:
        yield Finding(ERROR, TOPIC, f"it is no copy of {primary}, but another installation")
        return
    skew = facts.offset - first.offset
    if abs(skew) > MAX_SKEW + facts.uncertain + first.uncertain:
        advice = "let both synchronize with the same source (chrony, systemd-timesyncd)"
        what = f"its clock and that of {primary}, by which claims are dated, differ by {abs(skew):.1f} s"
        yield Finding(ERROR, TOPIC, what, advice=advice)
    age = facts.host["replay_age"] or 0.0
    behind = int(first.host["position"] or 0) - int(facts.host["position"] or 0)
    if behind > 0 and age > settings.health.max_lag:
        what = f"it is {behind} bytes and {age:.0f} s behind {primary}: no reads until it has caught up"
        yield Finding(WARNING, TOPIC, what)
    missing = set(first.signing_keys or ()) - set(facts.signing_keys or ())
    if missing and facts.signing_keys is not None:
        # One that was just made may be on its way; proxies sign with another until it is here.
        severity = WARNING if facts.signing_keys else ERROR
        what = f"signing keys of {primary} haven't arrived: {', '.join(sorted(missing))}"
        yield Finding(severity, TOPIC, what)


def _tls(host: Host, facts: Facts) -> Iterator[Finding]:
    if host.transport == "cloudflare" and host.service_token is None:
        advice = "put Access in front of it, with a Service Auth policy, and set service_token"
        what = "its tunnel is open to who knows the hostname: there is no service_token"
        yield Finding(WARNING, TOPIC, what, advice=advice)
    if host.transport == "tcp" and _near(host.host):
        return
    if facts.host["tls"] is None:
        advice = "set tls.mode of the host to verify-full, and ssl = on there"
        yield Finding(
            WARNING, TOPIC, "it is reached in clear: rows and claims can be read on the way", advice=advice
        )
    elif host.tls.mode in ("prefer", "require") and host.tls.ca_file is None:
        advice = "set tls.mode of the host to verify-full"
        what = f"tls.mode {host.tls.mode} takes any certificate: who answers may be somebody else"
        yield Finding(WARNING, TOPIC, what, advice=advice)


def _near(host: str) -> bool:
    """Tell whether nobody stands between us and `host`: a Unix socket, or loopback."""
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
