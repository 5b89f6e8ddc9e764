"""PREPARE, EXECUTE and DEALLOCATE in SQL: they share their names with the protocol's statements."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.session.fakes import Client, World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    bind,
    close,
    describe,
    error,
    execute,
    kinds,
    parse,
    query,
    rows,
    run,
    tags,
    use,
)

READ = "SELECT 'alice'"
INSERT = "INSERT INTO t VALUES ('alice')"


def simple(sql: str) -> bytes:
    return query(sql)


def extended(sql: str) -> bytes:
    return run(sql)


both = pytest.mark.parametrize("send", [simple, extended])


def elsewhere(world: World, client: Client, other: Client) -> None:
    """Have `client` hold another connection of the primary than `other`, which holds the first."""
    other.ask(query("BEGIN"))
    client.ask(query("BEGIN"))
    assert len(world.of("primary")) == 2


@both
def test_what_sql_prepares_runs_by_sql_and_by_protocol(world: World, send: Callable[[str], bytes]) -> None:
    client = world.client()
    assert tags(client.ask(send(f"PREPARE a AS {READ}"))) == ["PREPARE"]
    assert rows(client.ask(send("EXECUTE a"))) == ["'alice'"]
    assert kinds(client.ask(use("a"))) == "2 D C ZI"
    assert kinds(client.ask(describe("a"), SYNC)) == "t n ZI"
    assert client.session.server is None and not client.session.pinned


@both
def test_sql_runs_and_drops_what_the_protocol_prepared(world: World, send: Callable[[str], bytes]) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("a", READ), parse("b", READ), SYNC)
    other.ask(parse("b", READ), SYNC)
    assert rows(client.ask(send("EXECUTE a"))) == ["'alice'"]
    assert tags(client.ask(send("DEALLOCATE a"))) == ["DEALLOCATE"]
    assert kinds(client.ask(use("a"), use("b"))) == "E:26000 ZI 2 D C ZI"
    assert tags(client.ask(send("DEALLOCATE PREPARE ALL"))) == ["DEALLOCATE ALL"]
    assert kinds(client.ask(use("b"))) == "E:26000 ZI"
    assert kinds(other.ask(use("b"))) == "2 D C ZI"
    assert all(b"DEALLOCATE PREPARE ALL" not in each.transport.all for each in world.of("primary"))


@both
def test_what_sql_prepares_is_prepared_again_on_another_connection(
    world: World, send: Callable[[str], bytes]
) -> None:
    client, other = world.client(), world.client()
    client.ask(send(f"PREPARE a AS {INSERT}"))
    client.ask(query("SET TimeZone = 'Asia/Tokyo'"))
    elsewhere(world, client, other)
    first, second = world.of("primary")
    client.take()
    assert tags(client.ask(send("EXECUTE a"))) == ["INSERT 0 1"]
    assert second.sql[-1] == INSERT and second.parsed_under[INSERT] == "UTC"
    assert INSERT not in first.committed
    assert kinds(client.ask(use("a"))) == "2 C ZT"


@both
def test_each_client_has_its_own_names(world: World, send: Callable[[str], bytes]) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    client.ask(send("PREPARE a AS SELECT 1"))
    assert error(other.ask(send("EXECUTE a")))["C"] == "26000"
    other.ask(send("PREPARE a AS SELECT 2"))
    assert rows(client.ask(send("EXECUTE a"))) == ["1"]
    assert rows(other.ask(send("EXECUTE a"))) == ["2"]


@both
def test_a_name_that_is_taken_is_refused(world: World, send: Callable[[str], bytes]) -> None:
    client = world.client()
    client.ask(parse("a", READ), SYNC)
    assert error(client.ask(send("PREPARE a AS SELECT 2")))["C"] == "42P05"
    client.ask(query("PREPARE b AS SELECT 2"))
    assert error(client.ask(parse("b", READ), SYNC))["C"] == "42P05"
    assert rows(client.ask(send("EXECUTE a"), send("EXECUTE b"))) == ["'alice'", "2"]


@both
def test_a_prepare_that_fails_leaves_its_name_free(world: World, send: Callable[[str], bytes]) -> None:
    client = world.client()
    world.failing["nothing"] = "42703"
    assert error(client.ask(send("PREPARE a AS SELECT nothing")))["C"] == "42703"
    assert error(client.ask(send("EXECUTE a")))["C"] == "26000"
    assert tags(client.ask(send(f"PREPARE a AS {READ}"))) == ["PREPARE"]
    assert rows(client.ask(send("EXECUTE a"))) == ["'alice'"]


@both
def test_in_a_failed_transaction_everything_fails(world: World, send: Callable[[str], bytes]) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("a", INSERT), SYNC)
    elsewhere(world, client, other)
    client.ask(query("SELECT 1/0"))
    for sql in ("EXECUTE a", "DEALLOCATE a", "PREPARE b AS SELECT 1"):
        assert error(client.ask(send(sql)))["C"] == "25P02"
    client.ask(query("ROLLBACK"))
    assert error(client.ask(send("EXECUTE b")))["C"] == "26000"
    assert tags(client.ask(send("EXECUTE a"))) == ["INSERT 0 1"]


def test_names_change_statement_by_statement(world: World) -> None:
    client = world.client()
    answer = client.ask(
        query("PREPARE a AS SELECT 1; EXECUTE a; DEALLOCATE a; PREPARE a AS SELECT 2; EXECUTE a")
    )
    assert tags(answer) == ["PREPARE", "SELECT 1", "DEALLOCATE", "PREPARE", "SELECT 1"]
    assert rows(answer) == ["1", "2"]
    assert rows(client.ask(use("a"))) == ["2"]


def test_what_a_text_did_before_it_failed_stays(world: World) -> None:
    client = world.client()
    client.ask(parse("c", READ), SYNC)
    answer = client.ask(query("PREPARE a AS SELECT 1; DEALLOCATE c; SELECT 1/0; PREPARE b AS SELECT 2"))
    assert error(answer)["C"] == "22012"
    assert kinds(client.ask(use("a"), use("b"), use("c"))) == "2 D C ZI E:26000 ZI E:26000 ZI"
    assert kinds(client.ask(query("PREPARE b AS SELECT 2"), use("b"))) == "C ZI 2 D C ZI"


def test_pipelined_texts_see_what_the_one_before_did(world: World) -> None:
    client = world.client()
    answer = client.ask(
        query("PREPARE a AS SELECT 1"),
        use("a"),
        query("DEALLOCATE a"),
        use("a"),
        parse("a", "SELECT 2"),
        SYNC,
    )
    assert kinds(answer) == "C ZI 2 D C ZI C ZI E:26000 ZI 1 ZI"
    one_transaction = parse("", "DEALLOCATE a") + bind() + execute() + parse("a", "SELECT 3") + bind("a")
    assert kinds(client.ask(one_transaction + execute() + SYNC)) == "1 2 C 1 2 D C ZI"
    assert rows(client.ask(use("a"))) == ["3"]


@pytest.mark.parametrize("flush", [b"", FLUSH])
def test_names_are_resolved_when_a_statement_is_bound(world: World, flush: bytes) -> None:
    client = world.client()
    client.ask(query("PREPARE a AS SELECT 1"), parse("call", "EXECUTE a"), describe("call"), SYNC)
    assert rows(client.ask(bind("call") + flush + execute() + SYNC)) == ["1"]
    client.ask(close("a"), SYNC, query("PREPARE a AS SELECT 2"))
    assert rows(client.ask(bind("call", "p") + execute("p") + SYNC)) == ["2"]


def test_what_is_skipped_behind_an_error_changes_no_names(world: World) -> None:
    client = world.client()
    client.ask(parse("a", READ), SYNC)
    pipeline = run("SELECT 1/0")[:-5]
    for sql in ("DEALLOCATE a", "PREPARE b AS SELECT 2", "DEALLOCATE ALL"):
        assert error(client.ask(pipeline, run(sql)))["C"] == "22012"
    assert kinds(client.ask(use("a"), use("b"))) == "2 D C ZI E:26000 ZI"
    client.ask(pipeline, FLUSH)
    assert kinds(client.ask(run("DEALLOCATE a"))) == "ZI"
    assert kinds(client.ask(use("a"))) == "2 D C ZI"


@both
def test_what_is_executed_decides_where_it_runs_and_who_may(
    world: World, send: Callable[[str], bytes]
) -> None:
    client, reader = world.client(), world.client("bob", permissions=())
    client.ask(send(f"PREPARE a AS {INSERT}"), send(f"PREPARE b AS {READ}"))
    client.ask(send("EXECUTE a"), send("EXECUTE b"))
    assert [each.sql[-1] for each in (*world.of("primary"), *world.of("readonly"))] == [INSERT, READ]
    reader.ask(parse("a", INSERT), SYNC)
    assert error(reader.ask(send("EXECUTE a")))["C"] == "42501"


@both
def test_a_name_on_the_server_is_out_of_reach(world: World, send: Callable[[str], bytes]) -> None:
    client = world.client()
    client.ask(parse("a", READ), use("a"))
    for sql in ("EXECUTE _sluice_1", "DEALLOCATE _sluice_1", "EXECUTE _sluice_set_1", 'EXECUTE "_sluice_1"'):
        assert error(client.ask(send(sql)))["C"] == "26000"
    assert kinds(client.ask(use("a"))) == "2 D C ZI"


@both
def test_a_need_that_no_longer_parses_is_the_error(world: World, send: Callable[[str], bytes]) -> None:
    client, other = world.client(), world.client()
    client.ask(send(f"PREPARE a AS {INSERT}"))
    elsewhere(world, client, other)
    client.take()
    world.failing["INSERT"] = "42P01"
    answer = client.ask(send("EXECUTE a"))
    assert error(answer)["C"] == "42P01" and answer.endswith(b"E")
    world.failing.clear()
    client.ask(query("ROLLBACK"))
    assert tags(client.ask(send("EXECUTE a"))) == ["INSERT 0 1"]


def test_a_text_before_a_sync_that_has_not_come_is_refused(world: World) -> None:
    client = world.client()
    client.ask(parse("", INSERT), bind(), execute(), FLUSH)
    assert error(client.ask(query("PREPARE a AS SELECT 1")))["C"] == "0A000"
    assert INSERT not in world.of("primary")[0].committed


COUNT = 'bind message supplies 1 parameters, but prepared statement "{}" requires 2'


@pytest.mark.parametrize(
    ("routine", "said", "told"),
    [
        ("exec_bind_message", COUNT.format("_sluice_1"), COUNT.format("s")),
        ("FetchPreparedStatement", "« _sluice_1 »", "« s »"),
        ("pg_strtoint32_safe", '"_sluice_1"', '"_sluice_1"'),
    ],
)
def test_an_error_names_the_clients_statement(world: World, routine: str, said: str, told: str) -> None:
    client = world.client()
    client.ask(parse("s", INSERT), SYNC)
    (backend,) = world.of("primary")
    backend.stale[INSERT] = f"08P01\0M{said}\0R{routine}"
    assert error(client.ask(use("s")))["M"] == told
