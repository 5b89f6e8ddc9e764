from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from proxy.config import from_environment
from proxy.observe.history import History
from proxy.observe.status import Status
from proxy.top import Source, TopError, frame, read_key, run, spark, url_of
from tests.observe.test_recent import Log
from tests.observe.test_status import Wall, snapshot, told

KEY = "ctm_aaaaaaaaaaaa_" + "s" * 32


class Handler(BaseHTTPRequestHandler):
    """Answers what a test wants, and keeps what was asked."""

    answer: ClassVar[tuple[int, bytes, dict[str, str]]]
    asked: ClassVar[list[tuple[str, str]]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("authorization", "")))
        status, body, headers = self.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked = []
    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    thread.join()
    listening.server_close()


def status() -> dict[str, Any]:
    log = Log()
    log.statement("SELECT a FROM b", us=2_500_000, key="ctm_bbbbbbbbbbbb")
    log.event("denied", user="mallory", text="DELETE FROM t")
    log.flush()
    history = History()
    for second in range(4):
        history.add(snapshot(), float(second), float(second))
    return told(Status(snapshot, history, log.recent, Wall()))


def printed(found: dict[str, Any], trouble: str = "", height: int = 0) -> str:
    console = Console(width=140, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(frame(found, trouble, height))
    return captured.get()


def answer(status: int, body: object, **headers: str) -> None:
    Handler.answer = (status, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)


def test_a_frame_has_it_all() -> None:
    shown = printed(status())
    for part in (
        "ready", "app", "clients 3 of 100", "waiting 6", "statements/s", "replica", "down, breaker open", "1.5 s",
        "readonly", "SELECT a FROM b", "2.5 s", "ctm_bbbbbbbbbbbb@example.com", "mallory", "DELETE FROM t", "CODE",
    ):  # fmt: skip
        assert part in shown


def test_nothing_in_it_reaches_the_terminal_or_is_markup() -> None:
    found = status()
    found["recent"]["statements"][0]["statement"] = "SELECT '\x1b[2J\u202e\n' [bold red]x[/]"
    found["hosts"][0]["error"] = "[link=http://x]\x07"
    shown = printed(found)
    assert "\\x1b[2J\\u202e\\n' [bold red]x[/]" in shown
    assert "[link=http://x]\\x07" in shown
    assert not any(char in shown for char in "\x1b\u202e\x07")


def test_without_an_access_log_it_says_so() -> None:
    shown = printed(told(Status(snapshot, History(), None, Wall())))
    assert "The access log is off" in shown
    assert "slowest statements" not in shown


def test_idle_pools_are_only_counted() -> None:
    found = status()
    found["pools"].append({**found["pools"][0], "pool": "background", "active": 0, "waiting": 0, "pinned": 0})
    shown = printed(found)
    assert "pools (1 idle ones aren't shown)" in shown
    assert "background" not in shown


def test_trouble_is_told_above_what_was_last_heard() -> None:
    assert "cannot reach it: showing what was last heard" in printed(status(), "cannot reach it")


def test_a_low_terminal_gets_fewer_statements() -> None:
    found = status()
    found["recent"]["statements"] *= 10
    assert printed(found, height=24).count("SELECT a FROM b") == 2
    assert printed(found).count("SELECT a FROM b") == 10


def test_sparks_are_from_none_to_the_largest() -> None:
    assert spark([0, 1, None, 7]) == "▁▂ █"
    assert spark([0, None, 0]) == "▁ ▁"
    assert spark([]) == ""
    assert len(spark([1.0] * 500)) == 60


def test_the_key_goes_in_a_header(server: str) -> None:
    answer(200, {"database": "a b"})
    assert Source(f"{server}/", KEY, "a b").fetch() == {"database": "a b"}
    assert Handler.asked == [("/api/status?database=a+b&since=0", f"Bearer {KEY}")]


def test_a_refused_key_is_told(server: str) -> None:
    answer(401, {"error": {"code": "INVALID_API_KEY", "message": "API key rejected\x1b[2J", "detail": ""}})
    with pytest.raises(TopError, match=r"^API key rejected\\x1b\[2J \(INVALID_API_KEY\)$"):
        Source(server, KEY).fetch()


def test_a_redirect_is_not_followed(server: str) -> None:
    answer(302, b"", location=f"{server}/elsewhere")
    with pytest.raises(TopError, match="is no pgsluice: it answered 302"):
        Source(server, KEY).fetch()
    assert len(Handler.asked) == 1


@pytest.mark.parametrize(
    ("status", "body"), [(404, b"not found"), (200, b"<html>"), (200, b"[]"), (500, b"{}")]
)
def test_another_server_is_told(server: str, status: int, body: bytes) -> None:
    answer(status, body)
    with pytest.raises(TopError, match=f"is no pgsluice: it answered {status}"):
        Source(server, KEY).fetch()


def test_who_cannot_be_reached_is_named(server: str) -> None:
    port = int(server.rpartition(":")[2])
    unused = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    unused.server_bind()
    closed = unused.server_port
    unused.server_close()
    assert closed != port
    with pytest.raises(TopError, match=f"^cannot reach http://127.0.0.1:{closed}: Connection refused$"):
        Source(f"http://127.0.0.1:{closed}", KEY).fetch()


@pytest.mark.parametrize("url", ["", "127.0.0.1:9432", "ftp://x", "http://", "http://x:99999"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(TopError, match=r"URL|port"):
        Source(url, KEY)


def test_once_prints_one_frame_or_its_json(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer(200, status())
    assert run(Source(server, KEY), 60, once=True, as_json=False) == 0
    assert "SELECT a FROM b" in capsys.readouterr().out
    assert run(Source(server, KEY), 60, once=True, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["database"] == "app"
    assert len(Handler.asked) == 2


def test_the_key_is_a_files_first_line_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSLUICE_API_KEY", f" {KEY}\n")
    file = tmp_path / "key"
    file.write_text("ctm_from_a_file\nmore\n")
    assert read_key(file) == "ctm_from_a_file"
    assert read_key(None) == KEY


@pytest.mark.parametrize("text", ["", "\n", "two words", "k\u00e9y", "a\x00b"])
def test_what_cannot_be_a_key_is_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(TopError, match="no API key"):
        read_key(file)


def test_no_key_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGSLUICE_API_KEY", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(TopError, match="--key-file"):
        read_key(None)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9432"),
        ("0.0.0.0", "http://127.0.0.1:9432"),
        ("::", "http://127.0.0.1:9432"),
        ("::1", "http://[::1]:9432"),
        ("proxy.internal", "http://proxy.internal:9432"),
    ],
)
def test_the_url_is_that_of_the_configuration(host: str, url: str) -> None:
    config = from_environment({"DB_HOST": "db", "DB_NAME": "app", "DB_USER": "u", "DB_PASSWORD": "p"})
    assert config.http is not None
    http = config.http.model_copy(update={"host": host})
    assert url_of(config.model_copy(update={"http": http})) == url


def test_a_configuration_without_http_has_nothing_to_ask() -> None:
    config = from_environment({"DB_HOST": "db", "DB_NAME": "app", "DB_USER": "u", "DB_PASSWORD": "p"})
    with pytest.raises(TopError, match="http is off"):
        url_of(config.model_copy(update={"http": None}))
