"""Print what a preflight found: tables for people, JSON for programs, statements to paste."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.preflight.finding import ERROR, WARNING
from proxy.preflight.hosts import Looked
from proxy.preflight.live import Report, Told


def as_json(report: Report) -> str:
    """Return the report as a JSON document; its keys are part of the interface."""
    hosts = [
        {"database": database, "host": looked.host.name, **_facts(looked)}
        for database, each in report.looked.items()
        for looked in each
    ]
    findings = [
        {
            "severity": told.finding.severity,
            "database": told.database,
            "hosts": list(told.hosts),
            "topic": told.finding.topic,
            "what": told.finding.what,
            "mend": told.finding.mend,
            "advice": told.finding.advice,
        }
        for told in report.found
    ]
    return json.dumps({"ok": report.sound, "problems": [], "hosts": hosts, "findings": findings}, indent=2)


def show(report: Report) -> None:
    """Print the hosts, what was found, and a script that mends what SQL can mend."""
    # A pipe has no width: nothing is folded there.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    console.print(_hosts(report))
    if report.found:
        console.print()
        console.print(_findings(report))
    mends = list(_mends(report))
    if mends:
        console.print("\nAs a superuser, in psql:\n")
        print(*mends, sep="\n")
    console.print()
    console.print(_summary(report), style="bold red" if not report.sound else "bold")


def _hosts(report: Report) -> Table:
    table = Table(
        "database",
        "host",
        "address",
        "role",
        "PostgreSQL",
        "TLS",
        "clock",
        "logins",
        box=None,
        pad_edge=False,
    )
    for database, hosts in report.looked.items():
        for looked in hosts:
            facts = _facts(looked)
            offset = facts["clock_offset"]
            table.add_row(
                Text(database),
                Text(looked.host.name),
                Text(f"{looked.host.host}:{looked.host.port}"),
                str(facts["role"] or "not reached"),
                str(facts["version"] or ""),
                str(facts["tls"] or "no") if facts["reached"] else "",
                f"{offset:+.3f} s" if isinstance(offset, float) else "",
                ""
                if not facts["reached"]
                else f"{len(looked.refused)} refused"
                if looked.refused
                else "all let in",
            )
    return table


def _facts(looked: Looked) -> dict[str, object]:
    facts = looked.facts
    if facts is None:
        return {"reached": False, "role": None, "version": None, "tls": None, "clock_offset": None}
    return {
        "reached": True,
        "role": looked.role,
        "version": facts.host["release"].partition(" ")[0],
        "tls": facts.host["tls"],
        "clock_offset": round(facts.offset, 3),
    }


def _findings(report: Report) -> Table:
    table = Table("severity", "host", "topic", box=None, pad_edge=False)
    table.add_column("finding", overflow="fold")
    styles = {ERROR: "bold red", WARNING: "yellow"}
    for told in report.found:
        finding = told.finding
        what = f"{finding.what}: {finding.advice}" if finding.advice else finding.what
        severity = Text(finding.severity, style=styles[finding.severity])
        table.add_row(severity, Text(_place(report, told)), finding.topic, Text(what))
    return table


def _mends(report: Report) -> Iterator[str]:
    said: set[str] = set()
    for told in report.found:
        finding = told.finding
        if finding.mend and finding.mend not in said:
            said.add(finding.mend)
            yield f"-- {finding.severity}, {_place(report, told)}: {' '.join(finding.what.split())}"
            yield finding.mend


def _place(report: Report, told: Told) -> str:
    hosts = ", ".join(told.hosts)
    return f"{told.database}: {hosts}" if len(report.looked) > 1 else hosts


def _summary(report: Report) -> str:
    errors = sum(told.finding.severity == ERROR for told in report.found)
    warnings = len(report.found) - errors
    counts = ", ".join(
        f"{number} {word}{'' if number == 1 else 's'}"
        for number, word in ((errors, "error"), (warnings, "warning"))
        if number
    )
    return f"sound, {counts}" if report.sound and counts else counts or "sound"
