"""A server that lies in the middle of its work: its client is told or ended, everybody else is served as ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.conftest import MakeKey
from tests.integration.hostile_server import FLOOD, HostileServer
from tests.integration.raw import Raw
from tests.integration.support import DATABASE, Installation, Proxy, wait_until
from tests.session.frontend import kinds, message, query, split


@pytest.fixture
def lying(installation: Installation) -> Iterator[HostileServer]:
    server = HostileServer(installation.cluster.primary.port)
    yield server
    server.close()


@pytest.fixture
def proxied(lying: HostileServer, start_proxy: Callable[..., Proxy]) -> Proxy:
    hosts = [{"name": "liar", "host": "127.0.0.1", "port": lying.port, "role": "primary"}]
    proxy = start_proxy({"databases": {DATABASE: {"hosts": hosts}}})
    return proxy


def test_a_lying_server_ends_its_client_and_harms_nobody_else(proxied: Proxy, make_key: MakeKey) -> None:
    expected = {
        "no_sqlstate": "ZI",
        "copy_both": "ZI",
        "end_in_a_row": "",
        # What comes behind a whole answer closes the server connection alone.
        "ready_twice": None,
        "rows_behind": None,
        "half_a_header_behind": None,
        **dict.fromkeys(
            ("big_parameter", "many_parameters", "negative_length", "huge_length"), "FATAL:08006"
        ),
        **dict.fromkeys(("another_version", "asks_again", "unknown_status", "end"), "FATAL:08006"),
    }
    mallory = make_key(user="mallory@example.com")
    before = proxied.resident_bytes()
    with proxied.login(*make_key()).connect() as innocent:
        for name, outcome in expected.items():
            with Raw(proxied.port).log_in(mallory) as client:
                # Now it has a connection that knows its identity: the lie answers the statement itself.
                client.ask(query("SELECT 1"))
                client.send(query(f"SELECT 1 /*lie:{name}*/"))
                came = client.until_ready()
                if outcome == "":
                    assert b"08006" not in came, name
                elif outcome == "ZI":
                    assert came.endswith(b"Z\0\0\0\5I") and kinds(came[-6:]) == "ZI", name
                elif outcome is not None:
                    assert kinds(split(came)[-1]) == outcome, name
                assert b"lie" not in came.replace(name.encode(), b""), name
            for number in range(5):
                assert innocent.execute(f"SELECT 'innocent {number}'").fetchone() == (
                    f"innocent {number}",
                ), name
            with Raw(proxied.port).log_in(mallory) as again:
                assert kinds(b"".join(again.ask(query("SELECT 'again'")))) == "T D C ZI", name
    assert proxied.resident_bytes() - before < 64 * 1024 * 1024
    proxied.stop()


@pytest.mark.long
def test_a_flood_of_notices_passes_through(proxied: Proxy, make_key: MakeKey) -> None:
    with Raw(proxied.port).log_in(make_key()) as client:
        client.ask(query("SELECT 1"))
        client.send(query("SELECT 1 /*lie:notices*/"))
        came = client.until_ready()
        assert len(came) > FLOOD - 1000 and came[:1] == b"N" and came.endswith(b"I\0\0\0\4Z\0\0\0\5I")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (message(b"R", b"\0\0\0\3") * 1000, "does not stop asking"),
        (b"R\x7f\xff\xff\xff", "impossible length"),
        (message(b"v", b"\0\3\0\0\0\0\0\0"), "unexpected message"),
        (message(b"R", b"\0\0\0\7"), "authentication that we do not know"),
        (b"R\0\0", "no answer within"),
    ],
)
@pytest.mark.long
def test_a_server_that_lies_at_the_login_is_given_up(
    lying: HostileServer, start_proxy: Callable[..., Proxy], make_key: MakeKey, said: bytes, reason: str
) -> None:
    lying.at_login = said
    hosts = [{"name": "liar", "host": "127.0.0.1", "port": lying.port, "role": "primary"}]
    proxy = start_proxy(
        {"databases": {DATABASE: {"hosts": hosts, "pool_defaults": {"connect_timeout": "1s"}}}}
    )
    wait_until(lambda: proxy.said(reason), message=reason)
    lying.at_login = None

    def served() -> bool:
        with Raw(proxy.port).log_in(make_key()) as client:
            return kinds(b"".join(client.ask(query("SELECT 1")))) == "T D C ZI"

    assert served()
    proxy.stop()
