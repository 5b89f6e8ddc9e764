"""`pgsluice top`: what the dashboard shows, in a terminal. It asks the HTTP port for /api/status, as the page does."""

from __future__ import annotations

import getpass
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxy.config import Config
from proxy.errors import SluiceError, reason
from proxy.observe.text import escape

DEFAULT_URL: Final = "http://127.0.0.1:9432"
KEY_VARIABLE: Final = "PGSLUICE_API_KEY"
_TIMEOUT: Final = 10.0
_MAX_BYTES: Final = 16 * 1024 * 1024
_BARS: Final = "▁▂▃▄▅▆▇█"
_SPARKS: Final = 60
# Characters that columns need; other numbers 6.
_LEAST: Final = {
    **dict.fromkeys(("total", "mean", "longest", "p50", "p95", "p99", "lag", "last"), 7),
    "pool": 8,
    "what": 12,
    "from": 9,
    "user": 12,
    "key": 16,
}
_ANYWHERE: Final = {"", "*", "0.0.0.0", "::"}


class TopError(SluiceError):
    """There is no status to show; the message says why."""


def url_of(config: Config) -> str:
    """Return where the HTTP port of a configuration is, seen from this machine. Raises TopError where it's off."""
    if config.http is None:
        raise TopError("http is off in this configuration: there is nothing to ask")
    host = "127.0.0.1" if config.http.host in _ANYWHERE else config.http.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.http.port}"


def read_key(path: Path | None) -> str:
    """Return the API key: a file's first line, else the variable PGSLUICE_API_KEY, else what a person types.

    Raises TopError without any.
    """
    if path is not None:
        text = path.read_text(encoding="utf-8", errors="replace")
    elif KEY_VARIABLE in os.environ:
        text = os.environ[KEY_VARIABLE]
    elif sys.stdin.isatty():
        text = getpass.getpass("API key: ")
    else:
        raise TopError(f"an API key is needed: name a file with --key-file, or set {KEY_VARIABLE}")
    key = text.strip().partition("\n")[0].strip()
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise TopError("this is no API key: one looks like ctm_ab12cd34ef56_…")
    return key


class Source:
    """Asks for the status of one database, the first that the key may see where none is named."""

    def __init__(self, url: str, key: str, database: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TopError(f"{url} is no URL of an HTTP port: it looks like {DEFAULT_URL}")
        self._url = url
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host = parts.hostname
        try:
            self._port = parts.port
        except ValueError:
            raise TopError(f"{url} has no port that could be") from None
        self._key = key
        self._query = {"database": database} if database else {}
        self._path = f"{quote(parts.path.rstrip('/'), safe='/%')}/api/status"

    def fetch(self, since: int = 0) -> dict[str, Any]:
        """Return the status, of its history what came behind the sample `since`.

        Raises TopError. It follows no redirect, because the key would go along.
        """
        path = f"{self._path}?{urlencode({**self._query, 'since': since})}"
        connection = self._kind(self._host, self._port, timeout=_TIMEOUT)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._key}"})
            answer = connection.getresponse()
            body = answer.read(_MAX_BYTES)
        except OSError as error:
            raise TopError(f"cannot reach {self._url}: {reason(error)}") from None
        except HTTPException as error:
            raise TopError(f"{self._url} doesn't speak HTTP: {type(error).__name__}") from None
        finally:
            connection.close()
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if answer.status == 200 and isinstance(found, dict):
            return found
        told = found.get("error") if isinstance(found, dict) else None
        if isinstance(told, dict) and "message" in told:
            raise TopError(f"{escape(str(told['message']))} ({escape(str(told.get('code', answer.status)))})")
        raise TopError(f"{self._url} is no pgsluice: it answered {answer.status}")


def run(source: Source, interval: float, once: bool, as_json: bool) -> int:
    """Show the status each `interval` seconds until Ctrl-C, or once; returns the exit code."""
    status = source.fetch()
    if as_json:
        print(json.dumps(status), flush=True)
        while not once:
            time.sleep(interval)
            print(json.dumps(source.fetch()), flush=True)
        return 0
    console = Console(width=None if sys.stdout.isatty() else 140)
    if once or not console.is_terminal:
        console.print(frame(status))
        return 0
    try:
        with Live(frame(status), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                try:
                    # No more of the history than is shown.
                    status = source.fetch(max(status["history"]["last"] - _SPARKS, 0))
                    live.update(frame(status, height=console.height), refresh=True)
                except TopError as error:
                    live.update(frame(status, str(error), console.height), refresh=True)
    except KeyboardInterrupt:
        return 0


def frame(status: Mapping[str, Any], trouble: str = "", height: int = 0) -> RenderableType:
    """Return all that is shown at once; with a `height` in lines, less of the lists."""
    pools, hosts, recent = status["pools"], status["hosts"], status["recent"]
    used = len([pool for pool in pools if _works(pool)]) + len(hosts) + 16
    room = max((height - used) // 3, 2) if height else 10
    parts: list[RenderableType] = [_headline(status)]
    if trouble:
        parts.append(Text(f"{trouble}: showing what was last heard", style="bold red"))
    parts += [_sparks(status), Text(), _hosts(hosts), Text(), _pools(pools), Text()]
    if recent["enabled"]:
        parts += [_statements(recent["statements"][:room]), Text(), _keys(recent["keys"][:room]), Text()]
        parts.append(_denials(recent["denials"][:room]))
    else:
        parts.append(
            Text("The access log is off: nothing is known of statements, keys and denials.", style="dim")
        )
    return Group(*parts)


def spark(values: list[float | None]) -> str:
    """Return the newest values as bars, from none to the largest; a gap where nothing is known."""
    shown = values[-_SPARKS:]
    most = max((value for value in shown if value is not None), default=0)
    if not most:
        return "".join(" " if value is None else _BARS[0] for value in shown)
    top = len(_BARS) - 1
    return "".join(" " if value is None else _BARS[math.ceil(value / most * top)] for value in shown)


def _headline(status: Mapping[str, Any]) -> Text:
    state = status["state"]
    return Text.assemble(
        ("pgsluice ", "bold"),
        f"{_safe(status['version'])}  ",
        (_safe(state), "bold green" if state == "ready" else "bold red"),
        f"  {_safe(status['database'])}  up {_time(status['uptime'] * 1000)}  "
        f"clients {status['clients']} of {status['max_clients']}  "
        f"waiting {sum(pool['waiting'] for pool in status['pools']) + status['stranded']}",
    )


def _sparks(status: Mapping[str, Any]) -> RenderableType:
    columns = status["history"]["pools"].get("", {})
    table = Table.grid(padding=(0, 2))
    for name, column, show in (
        ("statements/s", "statements", _rate),
        ("errors/s", "errors", _rate),
        ("p50", "p50_ms", _time),
        ("p95", "p95_ms", _time),
        ("p99", "p99_ms", _time),
    ):
        values = columns.get(column, [])
        now = show(values[-1] if values else None)
        table.add_row(Text(name, "dim"), Text(now, "bold", justify="right"), Text(spark(values), "cyan"))
    return table


def _table(title: str, *columns: str) -> Table:
    """Return an empty table; columns that begin with > are of numbers."""
    table = Table(
        title=Text(title, "bold"), title_justify="left", box=None, pad_edge=False, header_style="dim"
    )
    for column in columns:
        number = column.startswith(">")
        name = column.removeprefix(">")
        table.add_column(
            Text(name),
            justify="right" if number else "left",
            no_wrap=True,
            overflow="ellipsis",
            # Where the terminal is narrow, texts are cut, and not numbers.
            min_width=max(len(name), _LEAST.get(name, 6 if number else 0)),
        )
    return table


def _hosts(hosts: list[Mapping[str, Any]]) -> Table:
    table = _table("hosts", "host", "role", "state", ">lag", ">answers in", "last error")
    for host in hosts:
        state = "up" if host["connected"] else "down"
        if host["breaker"] != "closed":
            state += f", breaker {host['breaker']}"
        lag = None if host["lag_s"] is None else host["lag_s"] * 1000
        table.add_row(
            _text(host["host"]),
            _text(host["role"]),
            Text(_safe(state), "green" if host["connected"] else "bold red"),
            Text(_time(lag)),
            Text(_time(host["response_ms"])),
            _text(host["error"]),
        )
    return table


def _works(pool: Mapping[str, Any]) -> bool:
    return bool(pool["statements"] or pool["active"] or pool["waiting"] or pool["pinned"])


def _pools(pools: list[Mapping[str, Any]]) -> Table:
    idle = [pool for pool in pools if not _works(pool)]
    title = f"pools ({len(idle)} idle ones aren't shown)" if idle else "pools"
    table = _table(
        title, "pool", "host", ">busy", ">waiting", ">stmts/s", ">errors/s", ">p50", ">p95", ">p99"
    )
    for pool in pools:
        if _works(pool):
            busy = f"{pool['active'] + pool['busy']} of {pool['maximum']}"
            rates = [_rate(pool["statements"]), _rate(pool["errors"])]
            times = [_time(pool[name]) for name in ("p50_ms", "p95_ms", "p99_ms")]
            cells = [Text(each) for each in (busy, str(pool["waiting"]), *rates, *times)]
            table.add_row(_text(pool["pool"]), _text(pool["host"]), *cells)
    return table


def _statements(statements: list[Mapping[str, Any]]) -> Table:
    table = _table("slowest statements", ">total", ">mean", ">longest", ">number", ">errors", "statement")
    for each in statements:
        times = [Text(_time(each[name])) for name in ("total_ms", "mean_ms", "max_ms")]
        counts = [Text(f"{each[name]:,}") for name in ("count", "errors")]
        table.add_row(*times, *counts, _text(each["statement"] or each["fingerprint"]))
    return table


def _keys(keys: list[Mapping[str, Any]]) -> Table:
    table = _table("busiest keys", ">total", ">statements", ">errors", ">denied", "key", "user")
    for each in keys:
        counts = [Text(f"{each[name]:,}") for name in ("count", "errors", "denied")]
        table.add_row(Text(_time(each["total_ms"])), *counts, _text(each["key_id"]), _text(each["user_id"]))
    return table


def _denials(denials: list[Mapping[str, Any]]) -> Table:
    table = _table("recent denials", "last", ">times", "what", "who", "from", "code", "statement or reason")
    for each in denials:
        at = time.strftime("%H:%M:%S", time.localtime(each["at"]))
        names = [_text(each[name]) for name in ("client_addr", "code")]
        who = _text(each["user_id"] or each["key_id"])
        what = _text(each["event"].replace("_", " "))
        table.add_row(
            Text(at), Text(str(each["count"])), what, who, *names, _text(each["statement"] or each["reason"])
        )
    return table


def _safe(text: object) -> str:
    """Return a text so that the terminal obeys nothing in it; the server has escaped it already, if it is one."""
    shown = str(text)
    return shown if shown.isprintable() else escape(shown)


def _text(text: object) -> Text:
    return Text(_safe(text))


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def _time(ms: float | None) -> str:
    if ms is None:
        return "-"
    if ms < 1:
        return f"{ms:.2f} ms"
    if ms < 1000:
        return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"
    if ms < 120_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms / 60_000:.0f} min" if ms < 7_200_000 else f"{ms / 3_600_000:.1f} h"
