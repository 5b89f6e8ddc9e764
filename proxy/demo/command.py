"""The command `pgsluice demo`: set the stage, then wait for Ctrl-C or give the tour."""

from __future__ import annotations

import json
import shlex
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console

from proxy.demo.stage import DATABASE, HOST, Stage, available, psql_program, stage
from proxy.demo.tour import Tour
from proxy.errors import SluiceError

_SUGGESTIONS = (
    "SELECT pg_is_in_recovery();   -- true: a read is served by the replica",
    "INSERT INTO notes (body) VALUES ('mine') RETURNING *, pg_is_in_recovery();   -- false: the primary",
    "SELECT * FROM notes;   -- alice and bob see their own rows, the admin key all",
    "SET sluice.identity = 'bob';   -- refused; and if it weren't, the signature would be missing",
    "SELECT at, target, intent, statement FROM sluice.access_log ORDER BY at DESC LIMIT 10;",
)


def main(
    once: bool,
    port: int = 6432,
    http_port: int = 9432,
    directory: Path | None = None,
    as_json: bool = False,
) -> int:
    """Show pgsluice on a PostgreSQL of its own; returns the exit code.

    With `once` the tour checks each step, and the code is 0 or 1. Otherwise it waits for Ctrl-C or SIGTERM. `as_json`
    prints one document, the tour's checks or how to connect, and all else on standard error.
    """
    console = Console(highlight=False, markup=False, stderr=as_json)
    # What ends the program has to end it by an exception, or PostgreSQL and the proxy would stay.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            ports = _port("the proxy", port, console), _port("HTTP", http_port, console)
            with console.status("starting PostgreSQL, its replica and the proxy"):
                running = stack.enter_context(stage(*ports, directory))
            console.print(f"up after {time.monotonic() - started:.1f} s", style="dim")
            if once:
                return _tour(running, console, as_json)
            if as_json:
                print(json.dumps(_connections(running), indent=2), flush=True)
            else:
                _invite(running, console)
            return _wait(running, console)
    except SluiceError as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped", style="dim")
        return 1 if once else 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _tour(running: Stage, console: Console, as_json: bool) -> int:
    tour = Tour(running, console)
    passes = tour.passes()
    if as_json:
        checks = [{"step": step, "what": what, "ok": holds} for step, what, holds in tour.checks]
        print(json.dumps({"ok": passes, "checks": checks}, indent=2))
    return 0 if passes else 1


def _connections(running: Stage) -> dict[str, object]:
    return {
        "host": HOST,
        "port": running.port,
        "dbname": DATABASE,
        "http": running.url(""),
        "keys": {
            name: {"id": key.id, "api_key": key.secret, "user_id": key.user}
            for name, key in running.keys.items()
        },
        "log": str(running.log),
        "configuration": str(running.log.with_name("pgsluice.yaml")),
    }


def _invite(running: Stage, console: Console) -> None:
    """Print how to connect, and what to try."""
    psql = psql_program()
    console.print("\nConnect, each line with another key:", style="bold")
    for name, key in running.keys.items():
        console.print(f"  # {name}", style="dim")
        console.print(f"  {shlex.quote(psql)} {shlex.quote(running.conninfo(key))}", soft_wrap=True)
    console.print("\nTry:", style="bold")
    for suggestion in _SUGGESTIONS:
        console.print(f"  {suggestion}", soft_wrap=True)
    console.print("\nLook at:", style="bold")
    console.print(f"  {running.url('/')}  the dashboard: sign in with the admin's password from above")
    for path in ("/metrics", "/health", "/readyz", "/docs"):
        console.print(f"  {running.url(path)}")
    console.print("\nAsk over HTTP, as the admin:", style="bold")
    asked = shlex.quote(json.dumps({"sql": "SELECT owner, count(*) FROM notes GROUP BY owner"}))
    headers = f"-H 'X-API-Key: {running.keys['admin'].secret}' -H 'Content-Type: application/json'"
    console.print(f"  curl {headers} -d {asked} {running.url('/api/database/query')}", soft_wrap=True)
    console.print("\nThe proxy's log and configuration:", style="bold")
    console.print(f"  {running.log}\n  {running.log.with_name('pgsluice.yaml')}", soft_wrap=True)
    console.print("\nCtrl-C ends it all.")


def _wait(running: Stage, console: Console) -> int:
    """Wait for the end; returns 1 if the proxy ended by itself."""
    code = running.process.wait()
    console.print(f"the proxy ended by itself, exit code {code}", style="red")
    console.print(running.log.read_text(errors="replace")[-4000:])
    return 1


def _port(what: str, wanted: int, console: Console) -> int:
    port = available(wanted)
    if port != wanted:
        console.print(f"port {wanted} is taken: {what} listens on {port}", style="yellow")
    return port


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
