"""What is written to a server for a unit, and what the server will owe for it."""

from __future__ import annotations

from proxy.errors import InsufficientPermissions
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.parameters import Profiles
from proxy.query.prepared import StatementCache
from proxy.session.collect import ClientStatements, read_message
from proxy.session.sending import Writer, write_prelude, write_unit
from proxy.session.unit import Unit
from proxy.upstream.server import Server
from proxy.wire import reply as r
from tests.session.backend import FakeTransport
from tests.session.frontend import FLUSH, SYNC, bind, close, describe, execute, parse, split

INTENTS = IntentCache(FunctionCatalog.builtin(), 16384)
PROFILE = Profiles().empty
_MODES = {r.FORWARD: "", r.SKIP: "skip ", r.FAKE: "fake ", r.REPLACE: "replace "}
_KINDS = {
    r.QUERY: "Q",
    r.PARSE: "P",
    r.BIND: "B",
    r.DESCRIBE: "D",
    r.EXECUTE: "E",
    r.CLOSE: "C",
    r.SYNC: "S",
}


class Rig:
    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.server = Server(self.transport, "one:5432", 1, b"", {}, "app", lambda _: None, 0.0)
        self.statements = ClientStatements()
        self.shared = StatementCache()
        self.out = Writer()

    def unit(self, *messages: bytes, refused: int = -1) -> Unit:
        """Return a unit of `messages`, which came in one piece; that numbered `refused` is refused."""
        data = b"".join(messages)
        unit, start = Unit(), 0
        for number, each in enumerate(messages):
            end = start + len(each)
            read = read_message(self.statements, INTENTS, self.shared, PROFILE, each[0], data, start, end)
            if number == refused:
                read.error = InsufficientPermissions()
            unit.add(read)
            start = end
        unit.ended_by = messages[-1][0]
        return unit

    def send(self, unit: Unit) -> tuple[str, list[str]]:
        """Write `unit`; returns what was written, by kinds, and what is owed for it."""
        write_unit(self.server, unit, self.out, 1.0, False)
        before = len(self.transport.writes)
        self.out.write_to(self.server)
        written = b"".join(self.transport.writes[before:])
        owed = []
        queue = self.server.replies
        while (reply := queue.head) is not None:
            owed.append(_MODES[reply.mode] + _KINDS[reply.kind])
            queue.head = reply.next
        queue.tail = None
        queue.length = 0
        return "".join(each[:1].decode() for each in split(written)), owed


def test_what_needs_no_change_is_the_clients_own_bytes_in_one_write() -> None:
    rig = Rig()
    messages = (parse("", "SELECT 1"), bind(), describe("", b"P"), execute(), SYNC)
    unit = rig.unit(*messages)
    assert unit.first is not None
    data = unit.first.data
    assert rig.send(unit) == ("PBDES", ["P", "B", "D", "E", "S"])
    assert rig.transport.writes[-1] is data, "not even copied"


def test_a_named_statement_goes_under_the_servers_name() -> None:
    rig = Rig()
    assert rig.send(rig.unit(parse("s", "SELECT 1"), describe("s"), bind("s"), execute(), SYNC)) == (
        "PDBES",
        ["P", "D", "B", "E", "S"],
    )
    assert rig.transport.all.count(b"_sluice_1\0") == 3
    assert b"s\0SELECT" not in rig.transport.all.replace(b"_sluice_1\0", b"")


def test_what_the_server_holds_is_not_parsed_again() -> None:
    rig = Rig()
    rig.send(rig.unit(parse("a", "SELECT 1"), SYNC))
    assert rig.send(rig.unit(parse("b", "SELECT 1"), bind("b"), SYNC)) == ("BS", ["fake P", "B", "S"])


def test_what_the_server_lacks_is_parsed_first() -> None:
    rig = Rig()
    rig.send(rig.unit(parse("a", "SELECT 1"), parse("", "SELECT 2"), SYNC))
    rig.server.forget_session()
    assert rig.send(rig.unit(describe("a"), bind("a"), bind(), bind(), SYNC)) == (
        "PDBPBBS",
        ["skip P", "D", "B", "skip P", "B", "B", "S"],
    )


def test_closing_a_name_is_the_proxys_affair_and_the_unnamed_one_the_servers() -> None:
    rig = Rig()
    rig.send(rig.unit(parse("a", "SELECT 1"), parse("", "SELECT 1"), SYNC))
    assert rig.send(rig.unit(close("a"), close(""), close("p", b"P"), SYNC)) == (
        "CCS",
        ["fake C", "C", "C", "S"],
    )
    assert rig.server.unnamed is None


def test_a_flush_is_owed_nothing() -> None:
    assert Rig().send(Rig().unit(parse("", "SELECT 1"), FLUSH)) == ("PH", ["P"])


def test_a_refused_message_fails_what_stands_before_it_and_drops_what_follows() -> None:
    rig = Rig()
    unit = rig.unit(parse("", "SELECT 1"), bind(), execute(), parse("x", "SELECT 2"), SYNC, refused=2)
    assert rig.send(unit) == ("PBBS", ["P", "B", "replace B", "S"])
    unit = rig.unit(parse("", "SELECT 1"), bind(), execute(), FLUSH, refused=2)
    assert rig.send(unit) == ("PBBH", ["P", "B", "replace B"])


def test_a_prelude_is_parsed_once_for_each_number_of_settings() -> None:
    rig = Rig()
    for settings in ([("a", "1")], [("b", "2")], [("a", "1"), ("b", "2")]):
        write_prelude(rig.server, settings, rig.out)
    rig.out.write_to(rig.server)
    (written,) = rig.transport.writes
    assert "".join(each[:1].decode() for each in split(written)) == "PBESBESPBES"
    assert b"SELECT pg_catalog.set_config($1, $2, false), pg_catalog.set_config($3, $4, false)" in written
    assert rig.server.replies.length == 11


def test_pieces_and_insertions_keep_their_order() -> None:
    rig = Rig()
    first, second = b"0123456789", b"abcdef"
    rig.out.copy(first, 2, 4)
    rig.out.copy(first, 4, 6)
    rig.out.put(b"-")
    rig.out.copy(first, 8, 10)
    rig.out.copy(second, 0, 2)
    rig.out.write_to(rig.server)
    rig.out.write_to(rig.server)
    assert rig.transport.writes == [b"2345-89ab"]
    rig.out.copy(second, 0, 99)
    rig.out.write_to(rig.server)
    assert rig.transport.writes[1:] == [second]
