"""Rate limits that two proxies hold together in Debian's Redis."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.integration.support import Installation, Login, Proxy, own_port, wait_until

PASSWORD = "the password of the store"
LIMIT = 120


class Store:
    """A Redis of a test's own, which can be stopped and started; nothing of it reaches the disk."""

    def __init__(self, program: str) -> None:
        self.port = own_port()
        self.directory = Path(tempfile.mkdtemp(prefix="pgsluice-redis-"))
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/1"

    def start(self) -> None:
        arguments = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self.directory),
        ]
        self._process = subprocess.Popen(
            [self._program, *arguments, "--requirepass", PASSWORD],
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )

        def answers() -> bool:
            with suppress(Exception), self.client() as client:
                return bool(client.ping())
            return False

        wait_until(answers, message="Redis answers")

    def client(self) -> Redis:
        return Redis(port=self.port, password=PASSWORD, db=1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


@pytest.fixture
def store() -> Iterator[Store]:
    program = shutil.which("redis-server")
    assert program is not None, "there is no redis-server: run tests/deploy/install"
    made = Store(program)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(made.directory)


@pytest.fixture
def proxies(installation: Installation, store: Store, tmp_path: Path) -> Iterator[list[Proxy]]:
    made = []
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        made.append(Proxy(installation, directory, {"auth": {"rate_limit_store": store.url}}))
    for proxy in made:
        proxy.start()
    yield made
    for proxy in made:
        proxy.stop()


@pytest.fixture
def key(installation: Installation) -> tuple[str, str]:
    key_id, whole = installation.generate_key("busy@example.com", ["read:tasks", "write:tasks"])
    installation.execute(f"UPDATE sluice.api_keys SET rate_limit_per_minute = {LIMIT} WHERE id = '{key_id}'")
    return key_id, whole


class Asked:
    """What one client was answered."""

    def __init__(self) -> None:
        self.allowed: list[float] = []
        self.slowest = 0.0
        self.hints: list[str] = []
        self.failures: list[BaseException] = []

    def ask(self, connection: psycopg.Connection[Any]) -> None:
        began = time.monotonic()
        try:
            connection.execute("SELECT 1")
            self.allowed.append(began)
        except psycopg.errors.ConfigurationLimitExceeded as refused:
            self.hints.append(refused.diag.message_hint or "")
        self.slowest = max(self.slowest, time.monotonic() - began)


@contextmanager
def hammering(logins: list[Login]) -> Iterator[list[Asked]]:
    """Have a client at each of `logins` ask as often as it can."""
    everybody = [Asked() for _ in logins]
    ending = threading.Event()

    def run(login: Login, asked: Asked) -> None:
        try:
            with login.connect() as connection:
                while not ending.is_set():
                    asked.ask(connection)
                    time.sleep(0.003)
        except BaseException as failure:
            asked.failures.append(failure)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(logins, everybody, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield everybody
    finally:
        ending.set()
        for thread in threads:
            thread.join(30.0)
    assert not [failure for asked in everybody for failure in asked.failures]


def up(proxy: Proxy) -> bool:
    with urllib.request.urlopen(proxy.url("/metrics")) as answer:
        return b"\npgsluice_rate_limit_store_up 1.0" in answer.read()


def test_two_proxies_hold_one_limit(proxies: list[Proxy], key: tuple[str, str]) -> None:
    # Each proxy alone would allow LIMIT at once, and two a second behind that.
    with hammering([proxy.login(*key) for proxy in proxies for _ in range(2)]) as everybody:
        time.sleep(8.0)
    allowed = [len(asked.allowed) for asked in everybody]
    assert sum(allowed) <= LIMIT
    assert sum(allowed) >= LIMIT - 2 * 2 * 2, (
        "a lease of two permits at most is lost with each change of pace"
    )
    hint = everybody[0].hints[-1]
    assert hint.startswith("Try again in ") and 30.0 < float(hint.split()[3]) <= 60.0
    assert max(asked.slowest for asked in everybody) < 1.0
    assert all(map(up, proxies))


@pytest.mark.timeout(240)
def test_over_two_minutes_it_is_the_limit_for_each(proxies: list[Proxy], key: tuple[str, str]) -> None:
    with hammering([proxy.login(*key) for proxy in proxies]) as everybody:
        time.sleep(125.0)
    times = sorted(at for asked in everybody for at in asked.allowed)
    # Windows as the store counts them: from the first permit on. Each may carry a lease over its end.
    for number in range(2):
        began = times[0] + 60.0 * number
        within = [at for at in times if began <= at < began + 60.0]
        assert 0.8 * LIMIT <= len(within) <= LIMIT + number * 2 * 2, (number, len(within))


def test_each_goes_on_alone_while_the_store_is_away(
    proxies: list[Proxy], store: Store, key: tuple[str, str]
) -> None:
    with hammering([proxy.login(*key) for proxy in proxies]) as everybody:
        wait_until(lambda: sum(len(asked.allowed) for asked in everybody) >= LIMIT - 8)
        store.stop()
        wait_until(lambda: all(bool(asked.hints) for asked in everybody))
        store.start()
        wait_until(lambda: all(map(up, proxies)), message="the store is used again")
    for proxy in proxies:
        proxy.stop()
        log = proxy.errors.read_text()
        assert PASSWORD not in log and PASSWORD.replace(" ", "%20") not in log


def test_without_a_store_at_the_start_clients_are_served(
    proxies: list[Proxy], store: Store, key: tuple[str, str]
) -> None:
    store.stop()
    first, second = (proxy.login(*key) for proxy in proxies)
    asked = Asked()
    with first.connect() as one, second.connect() as other:
        for _ in range(LIMIT):
            asked.ask(one)
            asked.ask(other)
        # Each by itself: twice the limit.
        assert len(asked.allowed) >= 2 * LIMIT - 4
        for _ in range(20):
            asked.ask(one)
        assert asked.hints and asked.slowest < 1.0
        for proxy in proxies:
            assert proxy.said("the store of rate limits doesn't answer") and not up(proxy)
        store.start()
        wait_until(lambda: all(map(up, proxies)), message="the store is used again")
        assert all(proxy.said("the store of rate limits answers again") for proxy in proxies)
        # What it counts now is counted together again.
        before = len(asked.allowed)
        time.sleep(1.1)
        for _ in range(LIMIT):
            asked.ask(one)
            asked.ask(other)
        assert len(asked.allowed) - before <= LIMIT


def test_a_wrong_password_of_the_store_is_told_without_it(
    installation: Installation, store: Store, key: tuple[str, str], tmp_path: Path
) -> None:
    url = store.url.replace("password", "passwort")
    proxy = Proxy(installation, tmp_path, {"auth": {"rate_limit_store": url}})
    proxy.start()
    with proxy.login(*key).connect() as client:
        assert client.execute("SELECT 1").fetchone() == (1,)
    wait_until(lambda: proxy.said("the store of rate limits doesn't answer (AuthenticationError)"))
    proxy.stop()
    assert "passwort" not in proxy.errors.read_text()
