"""What a tunnel costs, in round trips: python -m tests.bench.roundtrips --help.

The edge's double stands 40 ms away (tests/edge/wire.py says how), and PostgreSQL right behind it. `direct` is a driver
through a plain local relay to the same edge, as with `cloudflared access tcp`; `pgsluice` is the same driver through a
proxy with `transport: cloudflare` and warm pools. TLS is spoken inside the tunnel where PostgreSQL has it (Debian's;
the wheel's is built without), and pgsluice signs identities, routes and logs as ever.

What is held to a limit is what the client waits for: its own processor time, mostly SCRAM's 4,096 rounds in libpq, is
shown beside that, for it is the same through anything and depends on the machine alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from proxy.config import Host
from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from proxy.transport import tcp
from proxy.tunnel import Tunnel, way_to
from proxy.tunnel.relay import Relay
from proxy.tunnel.websocket import open_websocket
from tests.bench.report import machine, open_console
from tests.certificates import Authority
from tests.integration.encrypted import Rig
from tests.integration.support import DATABASE, DEBIAN, Installation, Login, Proxy

TOKEN = ("bench.access", "secret-of-the-bench")
BATCH = 20

Connection = psycopg.Connection[Any]
Connect = Callable[[], Connection]


@dataclass(frozen=True)
class Spent:
    """Seconds: those that passed, and those for which the client's own thread was at work meanwhile."""

    passed: float
    worked: float


@dataclass(frozen=True)
class Case:
    """One thing that a client does: `work` returns what it took; `limit` is in round trips that the client waits."""

    name: str
    title: str
    work: Callable[[Connect], Spent]
    limit: float | None = None


def _timed(work: Callable[[], object]) -> Spent:
    began, worked = time.perf_counter(), time.thread_time()
    work()
    return Spent(time.perf_counter() - began, time.thread_time() - worked)


def _first_row(connect: Connect) -> Spent:
    opened: list[Connection] = []

    def work() -> None:
        opened.append(connect())
        opened[0].execute("SELECT 1").fetchone()

    spent = _timed(work)
    opened[0].close()
    return spent


def _on_one(work: Callable[[Connection], object]) -> Callable[[Connect], Spent]:
    def measured(connect: Connect) -> Spent:
        with connect() as connection:
            connection.execute("SELECT 1")
            return _timed(lambda: work(connection))

    return measured


def _transaction(connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("SELECT 1").fetchone()
    connection.execute("COMMIT")


def _batch(connection: Connection) -> None:
    with connection.pipeline():
        results = [connection.execute("SELECT %s::int", (number,)) for number in range(BATCH)]
    assert [result.fetchone() for result in results] == [(number,) for number in range(BATCH)]


def _prepared_first(connect: Connect) -> Spent:
    # A text that no server has seen.
    text = f"SELECT %s::int AS c{time.monotonic_ns()}"
    return _on_one(lambda connection: connection.execute(text, (1,), prepare=True))(connect)


def _prepared_again(connect: Connect) -> Spent:
    with connect() as connection:
        connection.execute("SELECT %s::int AS again", (1,), prepare=True)
        return _timed(lambda: connection.execute("SELECT %s::int AS again", (2,), prepare=True))


def _behind_another(connect: Connect) -> Spent:
    """Use the one connection of a pool right behind a session of the same user with other settings."""
    with connect() as one, connect() as other:
        for connection, zone in ((one, "Asia/Tokyo"), (other, "America/Lima")):
            connection.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
            connection.execute("SELECT 1")
        shown: list[Any] = []
        spent = _timed(lambda: shown.append(one.execute("SHOW TimeZone").fetchone()))
        assert shown == [("Asia/Tokyo",)]
        return spent


CASES = (
    Case("connect", "connect and first row", _first_row, 1.2),
    Case("statement", "single statement", _on_one(lambda each: each.execute("SELECT 1").fetchone()), 1.2),
    Case("transaction", "BEGIN, SELECT, COMMIT", _on_one(_transaction), 2.2),
    Case("batch", f"pipelined batch of {BATCH}", _on_one(_batch), 1.2),
    Case("prepared-first", "prepared statement, first use", _prepared_first),
    Case("prepared-again", "prepared statement, again", _prepared_again, 1.2),
    Case("settings", "statement behind another session's settings", _behind_another, 1.2),
)
LEAST_DIRECT = 6.0
"""Round trips that `direct` needs for a connection: where it needs fewer, the double's way is too short."""


@dataclass
class Results:
    """What each case took by way, every run of it; its numbers are medians in round trips."""

    round_trip: float
    tls: bool
    rounds: int
    runs: dict[str, dict[str, list[Spent]]] = field(default_factory=dict)

    def waits(self, case: str, way: str) -> float:
        """Return for how long the client waits."""
        return statistics.median(each.passed - each.worked for each in self.runs[case][way]) / self.round_trip

    def whole(self, case: str, way: str) -> float:
        """Return how long it takes, with the client's own work."""
        return statistics.median(each.passed for each in self.runs[case][way]) / self.round_trip

    def missed(self) -> list[str]:
        """Return what is not as it has to be."""
        found = [
            f"{case.title}: waits {self.waits(case.name, 'pgsluice'):.2f} round trips, and not {case.limit}"
            for case in CASES
            if case.limit is not None and self.waits(case.name, "pgsluice") > case.limit
        ]
        if self.waits("connect", "direct") < LEAST_DIRECT:
            found.append(f"direct connects in less than {LEAST_DIRECT} round trips: the double is too near")
        return found


def measure(round_trip: float, rounds: int, console: Console) -> Results:
    """Run all cases both ways, in turns; `round_trip` in seconds."""
    with _stage(round_trip) as (ways, tls):
        results = Results(round_trip, tls, rounds)
        for case in CASES:
            runs: dict[str, list[Spent]] = {name: [] for name in ways}
            results.runs[case.name] = runs
            for number in range(rounds + 1):
                for name, connect in ways.items():
                    spent = case.work(connect)
                    # The first round warms up.
                    if number > 0:
                        runs[name].append(spent)
            told = ", ".join(f"{name} {results.waits(case.name, name):.2f}" for name in ways)
            console.print(f"{case.title}: {told}", style="dim")
    return results


@contextmanager
def _stage(round_trip: float) -> Iterator[tuple[Mapping[str, Connect], bool]]:
    directory = scratch_directory("pgsluice-trips-")
    scratch = Path(tempfile.mkdtemp(prefix="pgsluice-trips-"))
    tls = bool(DEBIAN)
    try:
        with Cluster(directory, replicas=0, bin_dir=list(DEBIAN.values())[-1] if tls else None) as cluster:
            yield from _through(cluster, scratch, round_trip, tls)
    finally:
        shutil.rmtree(directory)
        shutil.rmtree(scratch)


def _through(
    cluster: Cluster, scratch: Path, round_trip: float, tls: bool
) -> Iterator[tuple[Mapping[str, Connect], bool]]:
    authority = Authority(scratch, "server-ca")
    if tls:
        rig = Rig(cluster, authority)
        rig.present(authority.issue("postgres", "localhost"))
        installation = rig.installation
    else:
        installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
    with _edge(cluster.primary.port, round_trip, scratch / "edge") as port:
        yield from _beyond(port, installation, scratch, authority if tls else None)


@contextmanager
def _edge(target: int, round_trip: float, directory: Path) -> Iterator[int]:
    """Start the edge in a process of its own, as in ours it would wait for the client's Python; gives its port."""
    directory.mkdir()
    command = [sys.executable, "-m", "tests.edge", "--postgres", str(target)]
    command += [
        "--round-trip",
        f"{round_trip * 1000:g}",
        "--token",
        ":".join(TOKEN),
        "--directory",
        str(directory),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            os.environ["SSL_CERT_FILE"] = process.stdout.readline().strip().partition("=")[2]
            found = re.search(r"port: (\d+)", process.stdout.readline())
            assert found is not None, "the edge doesn't start"
            yield int(found[1])
        finally:
            process.terminate()


def _beyond(
    port: int, installation: Installation, scratch: Path, authority: Authority | None
) -> Iterator[tuple[Mapping[str, Connect], bool]]:
    tls = authority is not None
    inner = {"mode": "verify-full", "ca_file": str(authority.file)} if authority else {"mode": "off"}
    host = {
        "name": "tunnel",
        "host": "localhost",
        "port": port,
        "transport": "cloudflare",
        "service_token": dict(zip(("id", "secret"), TOKEN, strict=True)),
        "tls": inner,
    }
    # One connection, so that sessions get it one after the other.
    pools = {"readonly": {"min": 1, "max": 1}, "primary": {"min": 2, "max": 2}}
    proxy = Proxy(installation, scratch, {"databases": {DATABASE: {"hosts": [host], "pools": pools}}})
    proxy.start()
    relay = _LocalRelay(Host.model_validate(host))
    try:
        key = proxy.login(*installation.generate_key("bench@example.com", ["read:tasks", "write:tasks"]))
        role = installation.role("app_ro")
        direct = Login("localhost", relay.port, role.user, role.password)
        options: dict[str, Any] = {"hostaddr": "127.0.0.1", "sslmode": "disable"}
        if authority is not None:
            options.update(sslmode="verify-full", sslrootcert=str(authority.file))
        yield (
            {
                "pgsluice": lambda: key.connect(),
                "direct": lambda: direct.connect(**options),
            },
            tls,
        )
    finally:
        relay.close()
        proxy.stop()


class _LocalRelay:
    """A port of this machine that leads through the tunnel: `cloudflared access tcp --url 127.0.0.1:PORT`."""

    def __init__(self, host: Host) -> None:
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(host)), daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(5.0)

    async def _main(self, host: Host) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        way = way_to(host)
        assert isinstance(way, Tunnel)
        (listening,) = await tcp.bound("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self._ready.set()
        tasks: set[asyncio.Task[None]] = set()

        async def serve(sock: Any) -> None:
            websocket = await open_websocket(way.host, way.port, way.token, way.context)
            await Relay(websocket, sock, way.address).run()

        async def accept() -> None:
            while True:
                sock, _ = await self._loop.sock_accept(listening)
                tcp.tune(sock)
                tasks.add(self._loop.create_task(serve(sock)))

        accepting = self._loop.create_task(accept())
        await self._closing.wait()
        for task in (accepting, *tasks):
            task.cancel()
        await asyncio.gather(accepting, *tasks, return_exceptions=True)
        listening.close()


def print_table(results: Results, console: Console) -> None:
    """Print medians, with what pgsluice is held to."""
    console.print(_conditions(results))
    table = Table(title="round trips for which the client waits, and with its own work; medians")
    table.add_column("what the client does")
    for name in ("pgsluice", "with work", "direct", "with work", "at most"):
        table.add_column(name, justify="right")
    for case in CASES:
        limit = "-" if case.limit is None else f"{case.limit:.1f}"
        values = (
            f"{of(case.name, name):.2f}"
            for name in ("pgsluice", "direct")
            for of in (results.waits, results.whole)
        )
        table.add_row(case.title, *values, limit)
    console.print(table)
    for missed in results.missed():
        console.print(missed, style="bold red")


def write_json(results: Results, path: Path) -> None:
    """Write every run and the medians."""
    cases = [
        {
            "name": case.name,
            "title": case.title,
            "at_most": case.limit,
            "waits": {way: results.waits(case.name, way) for way in runs},
            "with_work": {way: results.whole(case.name, way) for way in runs},
            "seconds": {way: [asdict(spent) for spent in spents] for way, spents in runs.items()},
        }
        for case in CASES
        for runs in (results.runs[case.name],)
    ]
    content = {"machine": machine(), "conditions": _conditions(results), "cases": cases}
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_chart(results: Results, path: Path) -> None:
    """Draw the medians as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.6 * len(CASES) + 1.6))
    places = range(len(CASES))
    for offset, name, colour in ((-0.2, "pgsluice", "#336791"), (0.2, "direct", "#b0b0b0")):
        values = [results.waits(case.name, name) for case in CASES]
        drawn = axes.barh([place + offset for place in places], values, height=0.4, color=colour, label=name)
        axes.bar_label(drawn, [f"{value:.1f}" for value in values], padding=3)
    axes.set_yticks(places, [case.title for case in CASES])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    milliseconds = f"{results.round_trip * 1000:.0f}"
    axes.set_title(f"round trips for which a client waits, through a Cloudflare tunnel of {milliseconds} ms")
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _conditions(results: Results) -> str:
    inner = "TLS verify-full inside the tunnel" if results.tls else "no TLS inside the tunnel"
    return (
        f"The edge's double at {results.round_trip * 1000:.0f} ms, {inner}; psycopg {psycopg.__version__};"
        f" {results.rounds} rounds, in turns. A round trip includes no bandwidth and no slow start."
    )


def run(
    round_trip: float = 0.04,
    rounds: int = 15,
    json_file: Path | None = None,
    png: Path | None = None,
    console: Console | None = None,
) -> int:
    """Measure, print, write the files; returns 1 where something is not as it has to be."""
    console = console or open_console()
    results = measure(round_trip, rounds, console)
    print_table(results, console)
    if json_file is not None:
        write_json(results, json_file)
    if png is not None:
        write_chart(results, png)
    return 1 if results.missed() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.roundtrips",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--round-trip", type=float, default=40.0, metavar="MS", help="to the edge (40)")
    parser.add_argument("--rounds", type=int, default=15, help="of each case (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw a chart there")
    options = parser.parse_args(arguments)
    return run(options.round_trip / 1000, options.rounds, options.json, options.png)


if __name__ == "__main__":
    raise SystemExit(main())
