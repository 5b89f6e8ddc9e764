"""Send gigabytes through pgsluice and watch its memory: python -m tests.bench.big --help."""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from rich.console import Console
from rich.table import Table

from proxy.embedded import bundled_bin_dir
from tests.bench.rigs import Rig, rigs

MEBIBYTE = 2**20
ROW = 1000
STALLED_CLIENTS = 64
STALLED_SECONDS = 10.0


@dataclass
class Peak:
    """The most memory that was seen, in bytes."""

    resident: int = 0


def main() -> None:
    """Run each of the big transfers; exits with 1 if the memory went over the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.big", description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=2048, help="size of each transfer (2048)")
    parser.add_argument("--limit", type=int, default=150, help="resident memory allowed, in MiB (150)")
    options = parser.parse_args()
    rows = options.mebibytes * MEBIBYTE // ROW
    transfers: dict[str, Callable[[Rig], None]] = {
        f"a result of {options.mebibytes:,} MiB": lambda rig: _select(rig, rows),
        f"COPY TO STDOUT of {options.mebibytes:,} MiB": lambda rig: _copy_out(rig, rows),
        f"COPY FROM STDIN of {options.mebibytes:,} MiB": lambda rig: _copy_in(rig, options.mebibytes),
        f"{STALLED_CLIENTS} clients that stop reading": lambda rig: _stall(rig, rows),
    }
    table = Table("transfer", "seconds", "most resident memory, MiB")
    worst = 0
    with rigs(["pgsluice"], pool_size=STALLED_CLIENTS) as ((rig,), superuser):
        with psycopg.connect(superuser, autocommit=True) as admin:
            admin.execute("CREATE TABLE bench_copy (value text)")
            admin.execute("GRANT SELECT, INSERT ON bench_copy TO sluice_readwrite")
        console = Console()
        console.print(f"{rig.version}: {rig.resident_bytes() / MEBIBYTE:.0f} MiB at the start")
        for name, transfer in transfers.items():
            started = time.monotonic()
            with console.status(name), _watched(rig) as peak:
                transfer(rig)
            table.add_row(name, f"{time.monotonic() - started:.1f}", f"{peak.resident / MEBIBYTE:.0f}")
            worst = max(worst, peak.resident)
        console.print(table)
    if worst > options.limit * MEBIBYTE:
        raise SystemExit(f"over the limit of {options.limit} MiB")


def _select(rig: Rig, rows: int) -> None:
    # In chunks, so that psql doesn't hold the whole of it.
    query = f"SELECT repeat('x', {ROW}) FROM generate_series(1, {rows})"
    _psql(rig, "-v", "FETCH_COUNT=1000", "-At", "-o", "/dev/null", "-c", query)


def _copy_out(rig: Rig, rows: int) -> None:
    query = f"COPY (SELECT repeat('x', {ROW - 1}) FROM generate_series(1, {rows})) TO STDOUT"
    _psql(rig, "-o", "/dev/null", "-c", query)


def _copy_in(rig: Rig, mebibytes: int) -> None:
    block = (b"y" * (ROW - 1) + b"\n") * (MEBIBYTE // ROW)
    # The server reads everything and keeps nothing: it is the way that is looked at, not the disk.
    statement = "COPY bench_copy FROM STDIN WHERE value = ''"
    with rig.connect() as connection, connection.cursor() as cursor, cursor.copy(statement) as copy:
        for _ in range(mebibytes):
            copy.write(block)


def _stall(rig: Rig, rows: int) -> None:
    connections = [rig.connect() for _ in range(STALLED_CLIENTS)]
    query = f"SELECT repeat('x', {ROW}) FROM generate_series(1, {rows})".encode()
    for connection in connections:
        connection.pgconn.send_query(query)
        connection.pgconn.flush()
    time.sleep(STALLED_SECONDS)
    for connection in connections:
        connection.close()


def _psql(rig: Rig, *arguments: str) -> None:
    program = str(bundled_bin_dir() / "psql")
    subprocess.run([program, "-X", "-v", "ON_ERROR_STOP=1", *arguments], check=True, env=rig.environment())


@contextmanager
def _watched(rig: Rig) -> Iterator[Peak]:
    """Look at the memory of the process between every 20 ms."""
    peak = Peak(rig.resident_bytes())
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.resident = max(peak.resident, rig.resident_bytes())

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
