"""Show the newest records, then those that come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import asyncpg

from proxy.errors import SluiceError
from proxy.keytool import Place
from proxy.logreader.file import LogFile
from proxy.logreader.show import JsonPrinter, TablePrinter
from proxy.logreader.table import LogTable
from proxy.logreader.wanted import Wanted

_POLL: Final = 1.0
"""Seconds between two looks for new records."""

Printer = JsonPrinter | TablePrinter


def logs(
    source: Place | Path,
    wanted: Wanted,
    *,
    limit: int = 50,
    follow: bool = False,
    wide: bool = False,
    as_json: bool = False,
) -> int:
    """Print the newest `limit` wanted records of a table or file, then, with `follow`, each that comes.

    Returns the exit code. Ctrl-C ends following, and so does a reader that goes away: both are no error.
    """
    if follow and wanted.until is not None:
        raise SluiceError("--until: what is followed has no end")
    printer: Printer = JsonPrinter() if as_json else TablePrinter(wide=wide, follow=follow)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            if isinstance(source, Path):
                with contextlib.closing(LogFile(source)) as log:
                    _file(log, wanted, printer, limit, follow)
            else:
                asyncio.run(_table(LogTable(_with_table(source)), wanted, printer, limit, follow))
        except BrokenPipeError:
            # Python would complain once more while it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _with_table(place: Place) -> Place:
    config = place.config
    if config is not None and "table" not in config.access_log.sinks:
        files = [sink.removeprefix("file:") for sink in config.access_log.sinks if sink.startswith("file:")]
        where = files[0] if files else "what the proxy's standard output goes to"
        raise SluiceError(
            f"this configuration keeps no access log in a table (access_log.sinks): read {where} with --file"
        )
    return place


def _file(
    log: LogFile,
    wanted: Wanted,
    printer: Printer,
    limit: int,
    follow: bool,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    if follow and log.ends:
        for record in log.more(wanted):
            printer.show([record])
        return
    printer.show(log.newest(wanted, limit))
    while follow:
        pause(_POLL)
        printer.show(list(log.more(wanted)))


async def _table(log: LogTable, wanted: Wanted, printer: Printer, limit: int, follow: bool) -> None:
    try:
        if follow:
            # Before the newest are asked for: what comes in between is among them, or among those that come.
            await log.begin(wanted)
        found = await log.newest(wanted, limit) if limit else []
        log.saw(found)
        printer.show(found)
        if not found and not follow and wanted.since is None:
            print("pgsluice: nothing in the last day; --since 30d looks further back", file=sys.stderr)
        away = False
        while follow:
            await asyncio.sleep(_POLL)
            try:
                more = await log.more(wanted)
            except (OSError, SluiceError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.lose()
                if not away:
                    print(f"pgsluice: {error}; trying again", file=sys.stderr, flush=True)
                away = True
                continue
            away = False
            printer.show(more)
    finally:
        await log.close()
