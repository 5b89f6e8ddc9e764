"""Extended-protocol messages: what each is about, and what a client's names stand for."""

from __future__ import annotations

import struct

import pytest

from proxy.errors import ProtocolViolation
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.parameters import Profiles
from proxy.query.prepared import StatementCache
from proxy.session import collect
from proxy.session.collect import ClientStatements, read_message
from proxy.session.unit import Message
from proxy.wire import reply as r
from tests.session.frontend import FLUSH, SYNC, bind, close, describe, execute, message, parse

INTENTS = IntentCache(FunctionCatalog.builtin(), 16384)
DEFAULTS = Profiles().empty


class Reader:
    """One client's names."""

    def __init__(self) -> None:
        self.statements = ClientStatements()
        self.shared = StatementCache()

    def read(self, data: bytes, around: bytes = b"") -> Message:
        """Read the message `data`, with other bytes on both sides of it."""
        whole = around + data + around
        start = len(around)
        return read_message(
            self.statements, INTENTS, self.shared, DEFAULTS, whole[start], whole, start, start + len(data)
        )


@pytest.fixture
def reader() -> Reader:
    return Reader()


def sqlstate(read: Message) -> str:
    assert read.error is not None
    return read.error.sqlstate


@pytest.mark.parametrize("around", [b"", b"\0", b"xx"])
def test_each_message_is_read_wherever_it_stands(reader: Reader, around: bytes) -> None:
    parsed = reader.read(parse("s", "SELECT 1"), around)
    assert (parsed.kind, parsed.name, parsed.error) == (r.PARSE, b"s", None)
    assert parsed.statement is not None and parsed.statement.sql == b"SELECT 1"
    bound = reader.read(bind("s", "p", (b"x",)), around)
    assert (bound.kind, bound.name, bound.statement) == (r.BIND, b"s", parsed.statement)
    assert bound.data[bound.name_start : bound.name_end] == b"s"
    for kind in (b"S", b"P"):
        described = reader.read(describe("s", kind), around)
        assert (described.kind, described.name) == (r.DESCRIBE, b"s" if kind == b"S" else b"")
    ran = reader.read(execute("p"), around)
    assert (ran.kind, ran.statement) == (r.EXECUTE, parsed.statement)
    assert ran.intent is parsed.statement.intent
    assert reader.read(close("s"), around).kind == r.CLOSE
    assert reader.read(SYNC, around).kind == r.SYNC
    assert reader.read(FLUSH, around).kind == r.NOTHING


def test_parameter_types_are_part_of_a_statement(reader: Reader) -> None:
    plain = reader.read(parse("a", "SELECT $1")).statement
    typed = reader.read(message(b"P", b"b\0SELECT $1\0\0\1\0\0\0\x17")).statement
    zero = reader.read(message(b"P", b"c\0SELECT $1\0\0\1\0\0\0\0")).statement
    assert plain is not None and typed is not None and zero is not None
    assert [each.types for each in (plain, typed, zero)] == [b"\0\0", b"\0\1\0\0\0\x17", b"\0\1\0\0\0\0"]
    assert [each.sql for each in (plain, typed, zero)] == [b"SELECT $1"] * 3
    assert len({plain.number, typed.number, zero.number}) == 3
    assert reader.read(parse("d", "SELECT $1")).statement is plain


def test_the_empty_statement_is_read(reader: Reader) -> None:
    read = reader.read(parse("", ""))
    assert read.statement is not None and read.statement.sql == b""


def test_the_unnamed_statement_is_replaced_without_a_word(reader: Reader) -> None:
    reader.read(parse("", "SELECT 1"))
    second = reader.read(parse("", "SELECT 2"))
    assert second.error is None
    assert reader.read(bind()).statement is second.statement
    assert reader.read(execute()).statement is second.statement


def test_a_name_is_given_once_until_it_is_closed(reader: Reader) -> None:
    reader.read(parse("s", "SELECT 1"))
    assert sqlstate(reader.read(parse("s", "SELECT 2"))) == "42P05"
    reader.read(close("s"))
    assert reader.read(parse("s", "SELECT 2")).error is None


@pytest.mark.parametrize("data", [bind("s"), bind(""), describe("s"), describe("")])
def test_a_name_that_stands_for_nothing_is_an_error(reader: Reader, data: bytes) -> None:
    assert sqlstate(reader.read(data)) == "26000"


def test_portals_are_left_to_the_server(reader: Reader) -> None:
    assert reader.read(execute("p")).error is None
    assert reader.read(describe("p", b"P")).error is None
    assert reader.read(close("p", b"P")).error is None


def test_portals_end_with_their_transaction(reader: Reader) -> None:
    reader.read(parse("s", "SELECT 1"))
    reader.read(bind("s", "p"))
    reader.read(bind("s"))
    reader.statements.end_transaction()
    assert reader.read(execute("p")).intent is None and reader.read(execute()).intent is None
    assert reader.read(bind("s")).error is None


def test_names_are_bounded(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.read(parse("s", "SELECT 1"))
    for number in range(collect.MAX_STATEMENTS - 1):
        reader.read(parse(f"s{number}", "SELECT 1"))
    assert sqlstate(reader.read(parse("more", "SELECT 1"))) == "54000"
    for number in range(collect.MAX_PORTALS):
        assert reader.read(bind("s", f"p{number}")).error is None
    assert sqlstate(reader.read(bind("s", "more"))) == "54000"
    assert reader.read(bind("s")).error is None


def test_a_long_text_has_no_name(reader: Reader) -> None:
    long = "SELECT '" + "x" * 65_536 + "'"
    assert sqlstate(reader.read(parse("s", long))) == "0A000"
    assert reader.read(parse("", long)).error is None
    assert reader.read(parse("s", "SELECT 1")).error is None, "its name is still free"


def test_a_bind_is_read_before_all_of_it_is_here(reader: Reader) -> None:
    reader.read(parse("s", "SELECT 1"))
    data = bind("s", "p", (b"x" * 1000,))
    read = read_message(reader.statements, INTENTS, reader.shared, DEFAULTS, data[0], data[:20], 0, len(data))
    assert read.error is None and read.end == len(data)


@pytest.mark.parametrize(
    "data",
    [
        message(b"P"),
        message(b"P", b"\0"),
        message(b"P", b"\0\0"),
        message(b"P", b"\0\0\0"),
        message(b"P", b"s\0SELECT 1"),
        message(b"P", b"s\0SELECT 1\0"),
        message(b"P", b"s\0SELECT 1\0\0"),
        message(b"P", b"s\0SELECT 1\0\0\1\0"),
        message(b"B"),
        message(b"B", b"\0"),
        message(b"B", b"portal\0name"),
        message(b"D"),
        message(b"D", b"S"),
        message(b"D", b"Sx"),
        message(b"D", b"Sx\0\0"),
        message(b"D", b"sx\0"),
        message(b"C", b"Xx\0"),
        message(b"E"),
        message(b"E", b"\0\0\0\0"),
        message(b"E", b"\0\0\0\0\0\0"),
        message(b"E", b"portal"),
        message(b"Z"),
    ],
)
def test_rejects_malformed_messages(reader: Reader, data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        reader.read(data)
    with pytest.raises(ProtocolViolation):
        reader.read(data, b"xyz")


def test_the_row_limit_of_an_execute_is_the_clients_own(reader: Reader) -> None:
    assert reader.read(message(b"E", b"p\0" + struct.pack("!i", -1))).error is None
