"""Each driver over TLS, which it verifies in full (`sslmode=verify-full`, or its own words for that)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.drivers import running
from tests.drivers.conftest import SMALL_POOLS
from tests.drivers.registry import DRIVERS, Driver
from tests.drivers.running import TIMEOUT_SECONDS, Outcome
from tests.integration.support import DATABASE, Installation, Proxy

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS + 60)

CHECKS = ("connect", "prepared", "big_row", "cancel", "copy_in", "copy_out")
done = [(driver, check) for driver in DRIVERS for check in CHECKS if check not in driver.lacks]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def encrypted(installation: Installation, authority: Authority) -> Iterator[Proxy]:
    # Not `require`: the cancel requests of libpq's PQcancel and of pgx 4 are sent in clear.
    tls = {"mode": "prefer", **authority.issue("proxy", "127.0.0.1", "localhost").settings}
    proxy = Proxy(
        installation,
        authority.directory,
        {"listen": {"tls": tls}, "databases": {DATABASE: {"pools": SMALL_POOLS}}},
    )
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def over_tls(
    installation: Installation, encrypted: Proxy, authority: Authority
) -> Callable[[Driver], Outcome]:
    """Give a function that runs a driver's program over TLS, the first time that it is asked."""

    @cache
    def once(driver: Driver) -> Outcome:
        table = "encrypted_" + re.sub(r"\W+", "_", driver.name.lower())
        installation.execute(
            f"CREATE TABLE public.{table} (id integer PRIMARY KEY, note text, number integer DEFAULT 0)",
            f"INSERT INTO public.{table} VALUES (0, 'zero', 0)",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.{table} TO sluice_readwrite",
            f"GRANT SELECT ON public.{table} TO sluice_readonly",
        )
        installation.replicated()
        key = installation.generate_key("driver@example.com", ["read:tasks", "write:tasks"])
        return running.run(driver, encrypted.login(*key), table, str(authority.file))

    return once


@cache
def psql_version() -> int:
    """Return the major version of the psql that is installed: the wheel's, which is used else, has no TLS."""
    told = subprocess.run(["psql", "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"\d+", told)
    assert number is not None, told
    return int(number[0])


@pytest.mark.parametrize("driver, check", done, ids=[f"{driver.name}-{check}" for driver, check in done])
def test_driver_over_tls(driver: Driver, check: str, over_tls: Callable[[Driver], Outcome]) -> None:
    if driver.name == "psql" and check == "prepared" and psql_version() < 18:
        # It has no \parse, with which the program prepares.
        assert over_tls(driver).failures["connect"] is None
        return
    assert over_tls(driver).failure(check) is None


def test_without_the_authority_nothing_connects(
    encrypted: Proxy, installation: Installation, tmp_path: Path
) -> None:
    # The programs verify indeed: one that is told of another authority gets nowhere.
    stranger = Authority(tmp_path, "stranger")
    key = installation.generate_key("driver@example.com", ["read:tasks"])
    driver = next(each for each in DRIVERS if each.name == "psycopg 3")
    outcome = running.run(driver, encrypted.login(*key), "encrypted_nothing", str(stranger.file))
    assert "certificate verify failed" in str(outcome.failure("connect"))
