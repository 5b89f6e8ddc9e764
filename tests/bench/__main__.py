"""Compare pgsluice, PgBouncer and PostgreSQL without a proxy: python -m tests.bench --help."""

from __future__ import annotations

import argparse
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from tests.bench import report, roundtrips
from tests.bench.measure import WORKLOADS, Workload, idle_bytes, run
from tests.bench.rigs import UNLOGGED, Rig, access_log_rows, rigs

IDLE = "idle"
ROUND_TRIPS = "roundtrips"
SCRAPE_INTERVAL = 5.0
# Seconds of each workload that are not counted: caches fill, PostgreSQL touches its buffers for the first time.
WARM_UP = 1.0


def main() -> None:
    """Run what the command line asks for, print the table, write the files."""
    options = _arguments()
    console = report.open_console()
    if _asks_for(options.only, ROUND_TRIPS):
        code = roundtrips.run(
            rounds=5 if options.quick else 15,
            json_file=_beside(options.json),
            png=_beside(options.png),
            console=console,
        )
        if options.only and all(name == ROUND_TRIPS for name in options.only):
            raise SystemExit(code)
    wanted = [name for name in ("direct", "pgbouncer", "pgsluice", UNLOGGED) if name in options.rigs]
    chosen = _chosen(options.only)
    with rigs(wanted) as (running, superuser), tempfile.TemporaryDirectory() as scratch:
        results = report.Results(running, options.seconds, options.rounds, idle_clients=options.idle_clients)
        # First of all, before work has grown anybody's heap.
        if _asks_for(options.only, IDLE):
            proxies = [rig for rig in running if rig.process is not None]
            results.idle = {rig.name: idle_bytes(rig, options.idle_clients) for rig in proxies}
        with _scraped(running):
            for workload in chosen:
                _measure(workload, running, results, Path(scratch), console)
        results.resident = {rig.name: rig.resident_bytes() for rig in running if rig.process is not None}
        results.notes += [*_notes(running, superuser), *report.cost_of_the_log(results, chosen)]
    report.print_table(results, chosen, console)
    if options.json:
        report.write_json(results, chosen, options.json)
    if options.png:
        report.write_chart(results, chosen, options.png)


def _measure(
    workload: Workload, running: Sequence[Rig], results: report.Results, scratch: Path, console: Console
) -> None:
    with console.status(workload.title) as status:
        status.update(f"{workload.title}: warming up")
        for rig in running:
            run(workload, rig, WARM_UP, scratch)
        for number in range(results.rounds):
            for rig in running:
                status.update(f"{workload.title}: round {number + 1} of {results.rounds}, {rig.name}")
                results.add(workload, rig, run(workload, rig, results.seconds, scratch))
    told = ", ".join(f"{rig.name} {results.tps(workload.name, rig.name):,.0f}" for rig in running)
    console.print(f"{workload.title}: {told}", style="dim")


def _notes(running: Sequence[Rig], superuser: str) -> list[str]:
    told = [
        f"{rig.version} can't prepare in transaction mode: its extended figure stands in for prepared"
        for rig in running
        if not rig.prepares
    ]
    for rig in running:
        if rig.metrics_url:
            with rig.connect() as connection:
                row = connection.execute("SELECT sluice.current_user_id()").fetchone()
            logged = access_log_rows(rig, superuser)
            told.append(
                f"pgsluice had everything on: a SCRAM key, routing, metrics, the signed identity of"
                f" {row and row[0]}, and the access log in its table ({logged:,} statements)"
            )
    return told


@contextmanager
def _scraped(running: Sequence[Rig]) -> Iterator[None]:
    """Read /metrics every few seconds meanwhile, as a Prometheus would."""
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(SCRAPE_INTERVAL):
            for rig in running:
                if rig.metrics_url:
                    with urllib.request.urlopen(rig.metrics_url, timeout=30) as answer:
                        answer.read()

    thread = threading.Thread(target=scrape, name="scrape", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _asks_for(only: Sequence[str], name: str) -> bool:
    """Tell whether --only (empty: everything) asks for `name` or its family, `simple` for `simple:64`."""
    return not only or name in only or name.partition(":")[0] in only


def _chosen(only: Sequence[str]) -> list[Workload]:
    known = {
        IDLE,
        ROUND_TRIPS,
        *(each.name for each in WORKLOADS),
        *(each.name.partition(":")[0] for each in WORKLOADS),
    }
    if unknown := set(only) - known:
        raise SystemExit(f"--only {', '.join(sorted(unknown))}: choose of {', '.join(sorted(known))}")
    return [workload for workload in WORKLOADS if _asks_for(only, workload.name)]


def _beside(path: Path | None) -> Path | None:
    """Return where the round trips go, beside `path`: bench.json, bench-roundtrips.json."""
    return path.with_name(f"{path.stem}-{ROUND_TRIPS}{path.suffix}") if path is not None else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds: for a look, not for publishing")
    parser.add_argument("--rounds", type=int, help="rounds of each workload (10)")
    parser.add_argument("--seconds", type=float, help="seconds of each run (2)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="simple, simple:64, rows, idle, roundtrips…",
    )
    parser.add_argument(
        "--rigs",
        default="direct,pgbouncer,pgsluice",
        help="which of them, all three by default; unlogged is pgsluice without access log and metrics",
    )
    parser.add_argument(
        "--idle-clients", type=int, default=1000, help="clients whose memory is measured (1000)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw a chart there")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 10)
    options.seconds = options.seconds or 2
    options.rigs = options.rigs.split(",")
    return options


if __name__ == "__main__":
    main()
