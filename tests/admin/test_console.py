"""The console's protocol, without a network: messages in pieces, limits, endings."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from proxy.admin.commands import Command
from proxy.admin.console import Console, ConsoleClient
from proxy.admin.observing import figures
from proxy.admin.site import Site
from proxy.config import Config
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.session.cancel import cancel_session
from tests.session.door import Caller, Door, api_key, key_id, whole
from tests.session.frontend import (
    SYNC,
    bind,
    describe,
    error,
    execute,
    kinds,
    message,
    parse,
    query,
    rows,
    split,
)

CONFIG = Config.model_validate({"databases": {"app": {}}})


class Reception(Door):
    """A door behind which there is a console, of a proxy without databases."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[bool] = []
        self.reloads = 0
        for name, permissions in {"operator": ["admin"], "observer": ["read:metrics"]}.items():
            self.keys[key_id(name)] = api_key(
                name, is_admin="admin" in permissions, permissions=frozenset(permissions)
            )
        self.site = Site({}, self.gate, self.world.access, lambda: CONFIG, self._reload, self.ended.append)
        self.console = Console(self.site)
        self.gate.console = self.console.enter

    async def _reload(self) -> list[str]:
        self.reloads += 1
        return []

    async def visit(self, user: str = "operator", **more: str) -> tuple[Caller, bytes]:
        caller = self.knock()
        came = await caller.scram(key_id(user), whole(user), database="pgsluice", **more)
        return caller, came


def reads(caller: Caller) -> bool:
    return not caller.transport.paused


@pytest.fixture
def reception() -> Reception:
    return Reception()


async def test_the_greeting_is_that_of_pgbouncer(reception: Reception) -> None:
    caller, came = await reception.visit(application_name="psql", client_encoding="UTF8")
    told = kinds(came)
    assert "S:server_version=1.25.2/bouncer" in told
    assert "S:is_superuser=on" in told
    assert "S:application_name=psql" in told
    assert f"S:session_authorization={key_id('operator')}" in told
    assert told.endswith(" K ZI")
    (visitor,) = reception.sessions.visitors.values()
    assert visitor is caller.transport.protocol
    assert len(reception.sessions) == 1


async def test_a_startup_parameter_that_no_session_may_have_is_refused(reception: Reception) -> None:
    _, came = await reception.visit(session_preload_libraries="x")
    assert error(came)["C"] == "0A000"
    assert len(reception.sessions) == 0


async def test_replication_is_refused(reception: Reception) -> None:
    _, came = await reception.visit(replication="database")
    assert error(came)["S"] == "FATAL"


async def test_a_command_in_single_bytes_is_the_same_command(reception: Reception) -> None:
    caller, _ = await reception.visit()
    came = b""
    for byte in query("SHOW STATE"):
        came += await caller.say(bytes([byte]))
    assert kinds(came) == "T D D D C ZI"


async def test_messages_in_one_piece_are_answered_in_their_order(reception: Reception) -> None:
    caller, _ = await reception.visit()
    came = await caller.say(
        query("SHOW STATE; SHOW DNS_ZONES") + query("") + query("nonsense") + query("SELECT 1")
    )
    assert kinds(came).startswith("T D D D C T C ZI I ZI E")
    assert kinds(came).endswith("ZI T D C ZI")


async def test_behind_an_error_prepared_commands_are_skipped_to_the_sync(reception: Reception) -> None:
    caller, _ = await reception.visit()
    unit = parse("", "SHOW STATE") + bind() + describe("", b"P") + execute()
    assert kinds(await caller.say(unit + SYNC)) == "1 2 T D D D C ZI"
    came = await caller.say(parse("", "nonsense") + unit + SYNC + unit + SYNC)
    assert kinds(came).startswith("E")
    assert kinds(came).endswith(" ZI 1 2 T D D D C ZI")


async def test_an_empty_text_can_be_executed(reception: Reception) -> None:
    caller, _ = await reception.visit()
    assert kinds(await caller.say(parse("", "") + bind() + execute() + SYNC)) == "1 2 I ZI"


@pytest.mark.parametrize(
    "hostile",
    [
        message(b"F", b"x"),
        message(b"d", b"x"),
        message(b"p", b"x\0"),
        b"Q\x00\x00\x00\x03",
        b"Q\x7f\xff\xff\xff",
        message(b"Q", b"SHOW STATE"),
        message(b"Q", b"SHOW\0STATE\0"),
        message(b"\0", b""),
    ],
)
async def test_rejects_what_is_no_message_of_a_client(reception: Reception, hostile: bytes) -> None:
    caller, _ = await reception.visit()
    told = error(await caller.say(hostile + query("SHOW STATE")))
    assert (told["S"], told["C"]) == ("FATAL", "08P01")
    assert caller.closed()
    assert len(reception.sessions) == 0


async def test_a_client_that_sends_far_ahead_is_not_read(reception: Reception) -> None:
    caller, _ = await reception.visit()
    client = caller.transport.protocol
    assert isinstance(client, ConsoleClient)
    client.pause_writing()
    for _ in range(6):
        await caller.say(query("x" * 60_000))
    assert not reads(caller)
    client.resume_writing()
    await caller.hear()
    assert reads(caller)
    assert kinds(caller.transport.all).count("E") == 6


async def test_a_terminate_ends_it(reception: Reception) -> None:
    caller, _ = await reception.visit()
    assert await caller.say(message(b"X")) == b""
    assert caller.closed()
    assert len(reception.sessions) == 0


async def test_a_client_that_is_gone_leaves_nothing(reception: Reception) -> None:
    caller, _ = await reception.visit()
    client = caller.transport.protocol
    assert isinstance(client, ConsoleClient)
    client.connection_lost(None)
    assert len(reception.sessions) == 0


async def test_only_the_right_secret_cancels(reception: Reception) -> None:
    await reception.visit()
    (visitor,) = reception.sessions.visitors.values()
    assert not await cancel_session(reception.sessions, visitor.pid, b"\0" * 4)
    assert await cancel_session(reception.sessions, visitor.pid, visitor.secret)


async def test_reload_and_shutdown_are_the_applications(reception: Reception) -> None:
    caller, _ = await reception.visit()
    assert kinds(await caller.say(query("RELOAD"))) == "C ZI"
    assert reception.reloads == 1
    await caller.say(query("SHUTDOWN; SHUTDOWN WAIT_FOR_CLIENTS"))
    assert reception.ended == [False, True]


async def test_a_key_that_reads_metrics_reads_and_changes_nothing(reception: Reception) -> None:
    caller, came = await reception.visit("observer")
    assert "S:is_superuser=off" in kinds(came)
    assert kinds(await caller.say(query("SHOW STATE"))) == "T D D D C ZI"
    assert error(await caller.say(query("RELOAD")))["C"] == "42501"
    assert reception.reloads == 0


async def test_a_rate_limit_holds_here_too(reception: Reception) -> None:
    reception.keys[key_id("observer")].rate_limit_per_minute = 1
    caller, _ = await reception.visit("observer")
    assert kinds(await caller.say(query("SHOW STATE"))) == "T D D D C ZI"
    assert error(await caller.say(query("SHOW STATE")))["C"] == "53400"
    assert kinds(await caller.say(query("SELECT 1"))).endswith("ZI")


async def test_what_any_server_could_be_asked_is_answered(reception: Reception) -> None:
    caller, _ = await reception.visit()
    assert rows(await caller.say(query("SELECT 1"))) == ["1"]
    assert rows(await caller.say(query("SELECT current_database()"))) == ["pgsluice"]
    assert rows(await caller.say(query("SHOW server_version"))) == ["1.25.2/bouncer"]
    assert rows(await caller.say(query("SELECT current_user"))) == [key_id("operator")]


async def test_a_failure_of_the_console_ends_its_client_and_is_logged(
    reception: Reception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reception.console, "shown", broken)
    caller, _ = await reception.visit()
    assert error(await caller.say(query("SHOW STATE")))["C"] == "XX000"
    assert caller.closed()
    assert "the admin console failed its client" in caplog.text


async def test_without_a_console_its_names_are_those_of_unknown_databases(reception: Reception) -> None:
    reception.gate.console = None
    _, came = await reception.visit()
    assert error(came)["C"] == "3D000"


async def test_a_disabled_database_is_refused_to_those_alone_who_have_a_key(reception: Reception) -> None:
    reception.gate.disabled.add("app")
    caller = reception.knock()
    came = await caller.scram(key_id("alice"), whole("alice"))
    assert (error(came)["C"], error(came)["S"]) == ("55000", "FATAL")
    stranger = reception.knock()
    assert error(await stranger.scram(key_id("mallory"), whole("alice")))["C"] == "28P01"


async def test_help_is_a_notice(reception: Reception) -> None:
    caller, _ = await reception.visit()
    came = await caller.say(query("SHOW HELP"))
    assert [each[:1] for each in split(came)] == [b"N", b"C", b"Z"]


async def test_averages_of_the_console_itself_are_of_the_window_too(reception: Reception) -> None:
    reception.site.commands = 6000
    began = time.monotonic()
    averages = reception.console.averages

    def queries(now: float) -> int:
        return averages.of("pgbouncer", figures(reception.site)["pgbouncer"], now).query_count

    assert queries(began + 59.0) > 90
    reception.console.tick(began + 60.0)
    reception.console.tick(began + 120.0)
    assert queries(began + 130.0) == 0


async def test_sql_that_is_too_long_to_parse_is_explained_as_one(
    reception: Reception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The parser's own search for statements overflows the stack as its parsing does.
    caches = IntentCache(FunctionCatalog.builtin(), 1000)
    monkeypatch.setattr(
        reception.site, "databases", lambda _: [SimpleNamespace(database=SimpleNamespace(intents=caches))]
    )
    monkeypatch.setattr("proxy.query.explain.split", lambda _: pytest.fail("it was given to the parser"))
    shown = await reception.console.shown(Command("route", "", "SELECT 1" + "+1" * 600))
    (row,) = shown.rows
    assert row[:3] == ["unknown", "primary", "longer than max_parse_bytes"]


async def test_averages_turn_when_a_minute_is_over(reception: Reception) -> None:
    began = asyncio.get_running_loop().time()
    reception.console.tick(began)
    assert not reception.console.averages.due(began + 30.0)
    reception.console.tick(began + 61.0)
    assert not reception.console.averages.due(began + 100.0)
