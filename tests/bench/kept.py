"""What a kept result costs, beside the same read from a server: python -m tests.bench.kept [--seconds 5].

pgbench asks one hot key in each protocol, with results kept and without. Hits a second on one core are what the
proxy's processor time allows: pgbench and the servers share the machine with it. Then one client asks over a way of
40 ms.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from tests.integration.delayed import Delayed
from tests.integration.support import DATABASE, Installation, Login, Proxy

CLIENTS: Final = 16
ROUND_TRIP: Final = 0.04
TABLES: Final = (
    "CREATE TABLE public.accounts (aid int PRIMARY KEY, abalance int)",
    "INSERT INTO public.accounts SELECT n, n FROM generate_series(1, 100000) n",
    "GRANT SELECT ON public.accounts TO sluice_readwrite, sluice_readonly",
    "ANALYZE public.accounts",
)
TEXT: Final = "SELECT abalance FROM accounts WHERE aid = 4242"
_RATE: Final = re.compile(r"tps = ([0-9.]+)")


@dataclass
class Figures:
    """What came of one run of pgbench."""

    rate: float
    cpu_us: float


def pgbench(proxy: Proxy, login: Login, protocol: str, script: Path, seconds: int) -> Figures:
    """Run it; returns its rate, and the proxy's processor time for each statement."""
    process = psutil.Process(proxy.process.pid)
    before = process.cpu_times()
    done = login.run(
        "pgbench", "-n", "-M", protocol, "-c", str(CLIENTS), "-j", "2", "-T", str(seconds), "-f", str(script),
        timeout=seconds + 60.0,
    )  # fmt: skip
    after = process.cpu_times()
    assert done.returncode == 0, done.stderr
    found = _RATE.search(done.stdout)
    assert found is not None
    rate = float(found[1])
    used = after.user + after.system - before.user - before.system
    return Figures(rate, used / (rate * seconds) * 1e6)


def times(login: Login, count: int = 300) -> list[float]:
    """Return how long one client waited for each answer, in seconds."""
    found = []
    with login.connect() as connection:
        for _ in range(count + 10):
            began = time.perf_counter()
            connection.execute(TEXT, prepare=True)
            found.append(time.perf_counter() - began)
    return found[10:]


def _proxy(installation: Installation, directory: Path, mode: str, **database: Any) -> Proxy:
    directory.mkdir()
    settings = {"cache": {"mode": mode, "ttl": "1h", "max_ttl": "1h"}, **database}
    proxy = Proxy(
        installation, directory, {"databases": {DATABASE: settings}, "access_log": {"sinks": ["table"]}}
    )
    proxy.start()
    return proxy


def main(arguments: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5)
    given = parser.parse_args(arguments)
    data = scratch_directory("pgsluice-kept-")
    with tempfile.TemporaryDirectory() as name, Cluster(data, replicas=0) as cluster:
        directory = Path(name)
        installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
        installation.execute(*TABLES)
        script = directory / "hot.sql"
        script.write_text(TEXT + ";\n")
        key = installation.generate_key("bench", ["read:tasks"])
        tunnel = Delayed(cluster.primary.port, ROUND_TRIP)
        print(
            f"{'protocol':10} {'results':9} {'statements/s':>12} {'µs of CPU each':>14} {'/s on one core':>14}"
        )
        for mode in ("off", "on"):
            proxy = _proxy(installation, directory / mode, mode)
            for protocol in ("simple", "extended", "prepared"):
                found = pgbench(proxy, proxy.login(*key), protocol, script, given.seconds)
                kept = "kept" if mode == "on" else "not kept"
                print(
                    f"{protocol:10} {kept:9} {found.rate:12,.0f} {found.cpu_us:14.1f} {1e6 / found.cpu_us:14,.0f}"
                )
            proxy.stop()
        far = {"name": "far", "host": "127.0.0.1", "port": tunnel.port, "tls": {"mode": "off"}}
        for mode in ("off", "on"):
            proxy = _proxy(installation, directory / f"far-{mode}", mode, hosts=[far])
            waited = sorted(times(proxy.login(*key), 300 if mode == "on" else 50))
            median, p99 = statistics.median(waited) * 1e3, waited[int(len(waited) * 0.99)] * 1e3
            kept = "kept" if mode == "on" else "not kept"
            print(
                f"a way of {ROUND_TRIP * 1e3:.0f} ms, {kept}: median {median:.3f} ms, 99 % within {p99:.3f} ms"
            )
            proxy.stop()
        tunnel.close()
    shutil.rmtree(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
