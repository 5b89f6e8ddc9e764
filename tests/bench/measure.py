"""Measure: one run of pgbench on one rig, and the memory of idle clients."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from proxy.embedded import bundled_bin_dir
from tests.bench.rigs import ROWS, Rig

ROWS_SCRIPT = "SELECT id, name FROM bench_rows;"


@dataclass(frozen=True)
class Workload:
    """One way to use pgbench; `name` is what --only takes."""

    name: str
    title: str
    mode: str
    clients: int
    arguments: tuple[str, ...]

    def command(self, mode: str, seconds: float, script: Path) -> list[str]:
        """Return pgbench's command line; two threads where there are clients for them."""
        jobs = min(2, self.clients)
        common = [
            "-n",
            "-M",
            mode,
            "-c",
            str(self.clients),
            "-j",
            str(jobs),
            "-T",
            str(max(1, round(seconds))),
        ]
        script.write_text(ROWS_SCRIPT + "\n")
        chosen = [str(script) if argument == "SCRIPT" else argument for argument in self.arguments]
        return [str(bundled_bin_dir() / "pgbench"), *common, *chosen]


def _selects() -> list[Workload]:
    return [
        Workload(
            f"{mode}:{clients}",
            f"-S -M {mode}, {clients} client{'s' if clients > 1 else ''}",
            mode,
            clients,
            ("-S",),
        )
        for mode in ("simple", "extended", "prepared")
        for clients in (1, 16, 64)
    ]


WORKLOADS = [
    *_selects(),
    Workload("rows", f"{ROWS:,} rows, simple, 8 clients", "simple", 8, ("-f", "SCRIPT")),
    Workload("connect", "a connection for each -S, SCRAM, 8 clients", "simple", 8, ("-S", "-C")),
]


@dataclass(frozen=True)
class Run:
    """What one run gave: transactions per second, and µs of the process between for each transaction."""

    tps: float
    cpu_us: float


def run(workload: Workload, rig: Rig, seconds: float, scratch: Path) -> Run:
    """Run `workload` on `rig` for `seconds`; raises SystemExit if a transaction failed.

    Where PgBouncer can't prepare in transaction mode (before 1.21), its extended protocol stands in.
    """
    mode = "extended" if workload.mode == "prepared" and not rig.prepares else workload.mode
    command = workload.command(mode, seconds, scratch / "rows.sql")
    before = rig.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, env=rig.environment())
    used = rig.cpu_seconds() - before
    transactions = re.search(r"actually processed: (\d+)", done.stdout)
    tps = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    failed = re.search(r"failed transactions: (\d+)", done.stdout)
    if done.returncode or not transactions or not tps or (failed and int(failed[1])):
        said = f"{done.stdout}{done.stderr[-4000:]}"
        raise SystemExit(f"pgbench on {rig.name} (too short a run?): {' '.join(command)}\n{said}")
    return Run(float(tps[1]), used / max(1, int(transactions[1])) * 1e6)


def idle_bytes(rig: Rig, clients: int) -> tuple[int, int]:
    """Return the resident bytes before and while `clients` are connected, each idle after one statement."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    before = rig.resident_bytes()
    connections = []
    try:
        for _ in range(clients):
            connections.append(rig.connect())
            connections[-1].execute("SELECT 1")
        return before, rig.resident_bytes()
    finally:
        for connection in connections:
            connection.close()
        _until_gone(rig, clients)


def _until_gone(rig: Rig, clients: int) -> None:
    """Wait until the process between has noticed that the idle clients left, so that nothing else is hurt."""
    deadline = time.monotonic() + 20
    while rig.process is not None and time.monotonic() < deadline:
        sockets = [
            each for each in rig.process.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED
        ]
        if len(sockets) < clients // 2:
            return
        time.sleep(0.1)
