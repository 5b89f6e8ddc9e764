"""From the configuration's `access_log` to an AccessLog with its files open."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

from proxy import config
from proxy.errors import SluiceError, reason
from proxy.observe.access_log import AccessLog
from proxy.observe.lines import LineWriter
from proxy.observe.spool import Spool, SpoolError

log = logging.getLogger(__name__)

_FILE: Final = "file:"


def open_access_log(
    settings: config.AccessLog, copy: Callable[[Iterable[memoryview], bool], Awaitable[None]]
) -> AccessLog:
    """Return the access log that `settings` asks for; `copy` brings rows to the table.

    Raises SluiceError where a file of lines can't be written. A spool that can't be used is told of, and records wait
    in memory: what is logged now counts more than what a later outage may cost.
    """
    lines: dict[str, LineWriter] = {}
    for name in dict.fromkeys(settings.sinks):
        if name == "stdout":
            lines[name] = LineWriter(sys.stdout.fileno())
        elif name.startswith(_FILE):
            try:
                lines["file"] = LineWriter.at(Path(name.removeprefix(_FILE)))
            except OSError as error:
                raise SluiceError(f"access_log: {name.removeprefix(_FILE)}: {reason(error)}") from None
    to_table = "table" in settings.sinks
    spool = _spool(settings.spool_dir) if to_table else None
    return AccessLog(copy if to_table else None, lines, settings.statements, settings.flush_interval, spool)


def _spool(directory: Path) -> Spool | None:
    try:
        spool = Spool(directory)
    except SpoolError as error:
        log.warning(
            "access log: the spool can't be used, so that records which the table can't take wait in memory, and are"
            " lost with the process (%s)",
            error,
        )
        return None
    if spool.rows:
        log.info("access log: %d records of an earlier run wait in %s", spool.rows, directory)
    return spool
