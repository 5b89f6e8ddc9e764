"""The reply queue: what is owed, what reaches the client, however the server's bytes are cut."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProtocolViolation
from proxy.wire import reply as r
from proxy.wire.replies import ReplyQueue
from proxy.wire.reply import Peer, Reply
from tests.wire.feeding import same_for_all_splits


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


PARSED = message(b"1")
BOUND = message(b"2")
CLOSED = message(b"3")
NO_DATA = message(b"n")
COLUMNS = message(b"T", b"\0\1x\0" + b"\0" * 18)
ROW = message(b"D", b"\0\1\0\0\0\1x")
DONE = message(b"C", b"SELECT 1\0")
EMPTY = message(b"I")
SUSPENDED = message(b"s")
IDLE = message(b"Z", b"I")
IN_TRANSACTION = message(b"Z", b"T")
ERROR = message(b"E", b"SERROR\0C42P01\0Mno such table\0\0")
NOTICE = message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")
NOTIFICATION = message(b"A", b"\0\0\0\1channel\0payload\0")
ZONE = message(b"S", b"TimeZone\0UTC\0")
COPY_IN = message(b"G", b"\0\0\0")
COPY_OUT = message(b"H", b"\0\0\0")
COPY_DATA = message(b"d", b"1\t2\n")
COPY_DONE = message(b"c")


class Recorder(Peer):
    """Writes down what the queue decides; neighbouring pieces are one, for a network may cut them anyhow."""

    def __init__(self, shown: bool = True) -> None:
        self.events: list[object] = []
        self.shown = shown

    def forward(self, data: bytes) -> None:
        if self.events and isinstance(self.events[-1], bytes):
            self.events[-1] += data
        else:
            self.events.append(data)

    def executed(self, reply: Reply) -> None:
        self.events.append(("executed", reply.subject, reply.rows, reply.sqlstate))

    def retold(self, reply: Reply, error: bytes) -> bytes:
        return error

    def undone(self, reply: Reply, later: Reply | None) -> None:
        self.events.append(("undone", reply.subject))

    def shows(self, name: bytes, value: bytes) -> bytes | None:
        return value if self.shown else None

    def row(self, reply: Reply, data: bytes, start: int, end: int) -> None:
        self.events.append(("row", data[start:end]))

    def injected_failed(self, reply: Reply, data: bytes, start: int, end: int) -> None:
        self.events.append("injected failed")

    def copy_in(self) -> None:
        self.events.append("copy in")

    @property
    def client(self) -> bytes:
        """Return all that the client got."""
        return b"".join(event for event in self.events if isinstance(event, bytes))

    @property
    def others(self) -> list[object]:
        """Return what is not bytes for the client."""
        return [event for event in self.events if not isinstance(event, bytes)]


class Outcome:
    """What came of one conversation, comparable between ways to cut it."""

    def __init__(self, recorder: Recorder, queue: ReplyQueue, ready: bool) -> None:
        self.client = recorder.client
        self.others = recorder.others
        self.ready = ready
        self.status = chr(queue.status)
        self.empty = queue.empty
        self.length = queue.length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Pieces(Recorder):
    """Keeps the pieces apart, each of which is a write to the client's socket."""

    def __init__(self) -> None:
        super().__init__()
        self.forwarded: list[bytes] = []

    def forward(self, data: bytes) -> None:
        self.forwarded.append(data)


def converse(sent: list[Reply], received: bytes, shown: bool = True, tentative: bool = False) -> Outcome:
    """Queue what was sent and feed the server's answer in every way to cut it."""

    def run(pieces: list[bytes]) -> Outcome:
        recorder = Recorder(shown)
        queue = ReplyQueue()
        queue.peer = recorder
        queue.tentative = tentative
        for reply in sent:
            pushed = Reply(reply.kind, reply.mode, reply.subject, reply.payload)
            pushed.parsing = reply.parsing
            pushed.spared = reply.spared
            queue.push(pushed)
        queue.start()
        ready = False
        for piece in pieces:
            ready = queue.scan(piece, 1.0)
        return Outcome(recorder, queue, ready)

    return same_for_all_splits(received, run)


def forward(*kinds: int) -> list[Reply]:
    return [Reply(kind, r.FORWARD, f"{at}") for at, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (forward(r.QUERY), COLUMNS + ROW + ROW + DONE + IDLE),
        (forward(r.QUERY), EMPTY + IDLE),
        (forward(r.QUERY), NOTICE + DONE + ZONE + IDLE),
        (forward(r.QUERY), COPY_OUT + COPY_DATA + COPY_DATA + COPY_DONE + DONE + IDLE),
        (
            forward(r.PARSE, r.BIND, r.DESCRIBE, r.EXECUTE, r.SYNC),
            PARSED + BOUND + COLUMNS + ROW + DONE + IDLE,
        ),
        (forward(r.PARSE, r.DESCRIBE, r.SYNC), PARSED + message(b"t", b"\0\0") + NO_DATA + IDLE),
        (forward(r.BIND, r.EXECUTE, r.SYNC), BOUND + ROW + SUSPENDED + IDLE),
        (forward(r.CLOSE, r.SYNC), CLOSED + IDLE),
        (forward(r.QUERY, r.QUERY), DONE + IDLE + DONE + IDLE),
    ],
)
def test_forwards_every_byte_of_an_answer(sent: list[Reply], received: bytes) -> None:
    outcome = converse(sent, received)
    assert outcome.client == received
    assert outcome.ready and outcome.empty and outcome.status == "I"


def test_reports_each_execution_with_its_rows() -> None:
    outcome = converse(
        forward(r.PARSE, r.BIND, r.EXECUTE, r.BIND, r.EXECUTE, r.SYNC),
        PARSED + BOUND + ROW + DONE + BOUND + message(b"C", b"UPDATE 7\0") + IDLE,
    )
    assert outcome.others == [("executed", "2", 1, b""), ("executed", "4", 7, b"")]


def test_is_not_ready_while_something_is_owed() -> None:
    assert not converse(forward(r.QUERY, r.QUERY), DONE + IDLE).ready
    assert converse(forward(r.QUERY), DONE + IN_TRANSACTION).status == "T"


def test_skips_what_the_proxy_injected() -> None:
    prelude = [Reply(kind, r.SKIP) for kind in (r.PARSE, r.BIND, r.EXECUTE, r.SYNC)]
    outcome = converse(
        prelude + forward(r.QUERY), PARSED + BOUND + ROW + DONE + IDLE + COLUMNS + ROW + DONE + IDLE
    )
    assert outcome.client == COLUMNS + ROW + DONE + IDLE
    assert outcome.others == [("row", ROW), ("executed", "0", 1, b"")]


def test_shows_notifications_but_not_notices_of_what_was_injected() -> None:
    prelude = [Reply(r.QUERY, r.SKIP)]
    outcome = converse(prelude + forward(r.QUERY), NOTICE + NOTIFICATION + DONE + IDLE + DONE + IDLE)
    assert outcome.client == NOTIFICATION + DONE + IDLE


@pytest.mark.parametrize("shown", [True, False])
def test_asks_whether_the_client_sees_a_parameter(shown: bool) -> None:
    outcome = converse(forward(r.QUERY), DONE + ZONE + IDLE, shown)
    assert outcome.client == (DONE + ZONE + IDLE if shown else DONE + IDLE)


def test_fakes_an_answer_in_its_place() -> None:
    sent = [
        Reply(r.PARSE, r.FAKE, None, PARSED),
        *forward(r.BIND),
        Reply(r.CLOSE, r.FAKE, None, CLOSED),
        Reply(r.PARSE, r.FAKE, None, PARSED),
        *forward(r.SYNC),
    ]
    assert converse(sent, BOUND + IDLE).client == PARSED + BOUND + CLOSED + PARSED + IDLE


def test_puts_its_own_error_in_the_place_of_a_provoked_one() -> None:
    own = message(b"E", b"SERROR\0C42501\0Mno\0\0")
    sent = [*forward(r.PARSE, r.BIND, r.EXECUTE), Reply(r.BIND, r.REPLACE, None, own), *forward(r.SYNC)]
    outcome = converse(sent, PARSED + BOUND + DONE + ERROR + IDLE)
    assert outcome.client == PARSED + BOUND + DONE + own + IDLE
    sent = [Reply(r.QUERY, r.REPLACE, None, own)]
    assert converse(sent, ERROR + message(b"Z", b"E")).client == own + message(b"Z", b"E")


def test_an_error_drops_everything_up_to_the_next_sync() -> None:
    sent = [
        Reply(r.PARSE, r.FORWARD, "first"),
        Reply(r.BIND, r.FORWARD),
        Reply(r.EXECUTE, r.FORWARD, "statement"),
        Reply(r.PARSE, r.FAKE, "second", PARSED),
        Reply(r.CLOSE, r.FAKE, "third", CLOSED),
        *forward(r.SYNC, r.BIND, r.EXECUTE, r.SYNC),
    ]
    outcome = converse(sent, ERROR + IDLE + BOUND + DONE + IDLE)
    assert outcome.client == ERROR + IDLE + BOUND + DONE + IDLE
    assert outcome.others == [
        ("executed", "statement", 0, b"42P01"),
        ("undone", "third"),
        ("undone", "second"),
        ("undone", "first"),
        ("executed", "2", 1, b""),
    ]


def test_an_error_before_a_sync_was_sent_discards_what_is_sent_until_one() -> None:
    recorder = Recorder()
    queue = ReplyQueue()
    queue.peer = recorder
    queue.push(Reply(r.PARSE, r.FORWARD, "a"))
    queue.scan(ERROR, 1.0)
    queue.push(Reply(r.PARSE, r.FAKE, "b", PARSED))
    queue.push(Reply(r.BIND, r.FORWARD))
    queue.start()
    assert queue.length == 0
    queue.push(Reply(r.SYNC, r.FORWARD))
    assert queue.scan(IDLE, 2.0)
    assert recorder.client == ERROR + IDLE
    assert recorder.others == [("undone", "a"), ("undone", "b")]


def test_an_error_at_sync_keeps_its_ready_for_query() -> None:
    outcome = converse(forward(r.EXECUTE, r.SYNC), DONE + ERROR + IDLE)
    assert outcome.client == DONE + ERROR + IDLE
    assert outcome.ready


def test_a_failed_query_reports_its_sqlstate_once() -> None:
    outcome = converse(forward(r.QUERY), COLUMNS + ROW + ERROR + IDLE)
    assert outcome.others == [("executed", "0", 0, b"42P01")]


def test_tells_of_an_error_in_what_was_injected() -> None:
    prelude = [Reply(kind, r.SKIP) for kind in (r.BIND, r.EXECUTE, r.SYNC)]
    outcome = converse(prelude + forward(r.QUERY), ERROR + IDLE + DONE + IDLE)
    assert outcome.client == DONE + IDLE
    assert outcome.others[0] == "injected failed"


def test_copy_swallows_the_syncs_before_its_end() -> None:
    sent = forward(r.EXECUTE, r.SYNC, r.SYNC, r.COPY_END, r.SYNC)
    outcome = converse(sent, COPY_IN + message(b"C", b"COPY 2\0") + IDLE)
    assert outcome.ready and outcome.length == 0
    assert outcome.others == ["copy in", ("executed", "0", 2, b"")]


def test_the_end_of_a_copy_that_never_was_owes_nothing() -> None:
    assert converse(forward(r.QUERY, r.COPY_END), ERROR + IDLE).ready


@pytest.mark.parametrize("size", [70_000, 300_000])
@pytest.mark.parametrize("piece", [1000, 65_536])
def test_long_rows_and_errors_pass_without_being_held(size: int, piece: int) -> None:
    long_row = message(b"D", b"\0\1" + struct.pack("!i", size) + b"x" * size)
    long_error = message(b"E", b"SERROR\0C22000\0M" + b"y" * size + b"\0\0")
    for received in (COLUMNS + long_row + ROW + DONE + IDLE, NOTICE + long_error + IDLE):
        recorder = Recorder()
        queue = ReplyQueue()
        queue.peer = recorder
        queue.push(Reply(r.QUERY, r.FORWARD))
        for at in range(0, len(received), piece):
            ready = queue.scan(received[at : at + piece], 1.0)
            passed = len(recorder.client)
            assert at + piece - passed <= max(piece, 2048), "held more than the start of a message"
        assert ready
        assert recorder.client == received


def test_a_long_description_is_held_whole() -> None:
    columns = message(b"T", b"\0\1" + b"x" * 200_000)
    recorder = Recorder()
    queue = ReplyQueue()
    queue.peer = recorder
    queue.push(Reply(r.DESCRIBE, r.FORWARD))
    queue.push(Reply(r.CLOSE, r.FAKE, None, CLOSED))
    queue.push(Reply(r.SYNC, r.FORWARD))
    queue.scan(columns[:100_000], 1.0)
    assert queue.scan(columns[100_000:] + IDLE, 1.0)
    assert recorder.client == columns + CLOSED + IDLE


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([], ROW),
        ([], DONE),
        ([], IDLE),
        (forward(r.PARSE), BOUND),
        (forward(r.BIND), DONE),
        (forward(r.QUERY), PARSED),
        (forward(r.EXECUTE), IDLE),
        (forward(r.QUERY), message(b"Z", b"II")),
        (forward(r.QUERY), message(b"Z")),
        (forward(r.QUERY), b"D\0\0\0\3"),
        (forward(r.QUERY), b"D\xff\xff\xff\xff"),
        (forward(r.QUERY), b"C\x7f\xff\xff\xff"),
        (forward(r.QUERY), b"C\x00\x10\x00\x00"),
        (forward(r.QUERY), b"S\x00\x10\x00\x00" + b"x" * 2000),
        (forward(r.QUERY), b"T\x00\x20\x00\x00"),
        (forward(r.QUERY), message(b"S", b"no terminator")),
        (forward(r.QUERY), message(b"R", b"\0\0\0\0")),
        (forward(r.QUERY), message(b"v", b"\0\0\0\0\0\0\0\0")),
        ([Reply(r.QUERY, r.SKIP)], b"D\x00\x10\x00\x00"),
    ],
)
def test_rejects_what_no_server_sends(sent: list[Reply], received: bytes) -> None:
    queue = ReplyQueue()
    queue.peer = Recorder()
    for reply in sent:
        queue.push(reply)
    with pytest.raises(ProtocolViolation):
        queue.scan(received, 1.0)


def test_keeps_an_error_that_nobody_asked_for() -> None:
    recorder = Recorder()
    queue = ReplyQueue()
    queue.peer = recorder
    shutdown = message(b"E", b"SFATAL\0C57P01\0Mshutting down\0\0")
    assert not queue.scan(shutdown, 1.0)
    assert queue.last_error == shutdown
    assert recorder.client == shutdown


def test_counts_the_bytes_of_an_answer() -> None:
    queue = ReplyQueue()
    recorder = Recorder()
    queue.peer = recorder
    first, second = Reply(r.EXECUTE, r.FORWARD), Reply(r.EXECUTE, r.FORWARD)
    for reply in (
        Reply(r.BIND, r.FORWARD),
        first,
        Reply(r.BIND, r.FORWARD),
        second,
        Reply(r.SYNC, r.FORWARD),
    ):
        queue.push(reply)
    queue.scan(BOUND + ROW, 1.0)
    queue.scan(ROW + DONE + BOUND + ROW + DONE + IDLE, 2.0)
    assert first.bytes_out == 2 * len(ROW) + len(DONE)
    assert second.bytes_out == len(ROW) + len(DONE)
    assert (first.first_at, second.first_at) == (1.0, 2.0)


@given(st.binary(max_size=80))
def test_any_bytes_are_taken_or_rejected(data: bytes) -> None:
    queue = ReplyQueue()
    queue.peer = Recorder()
    for reply in forward(r.PARSE, r.BIND, r.DESCRIBE, r.EXECUTE, r.SYNC, r.QUERY):
        queue.push(reply)
    with contextlib.suppress(ProtocolViolation):
        queue.scan(data, 1.0)


def single(parses: bool = True) -> Reply:
    reply = Reply(r.SINGLE, r.FORWARD, "single")
    reply.parsing = parses
    return reply


@pytest.mark.parametrize("parses", [True, False])
@pytest.mark.parametrize("described", [COLUMNS, NO_DATA, b""])
@pytest.mark.parametrize(
    ("result", "rows", "sqlstate"),
    [
        (ROW + ROW + DONE, 1, b""),
        (EMPTY, 0, b""),
        (COPY_OUT + COPY_DATA + COPY_DONE + DONE, 1, b""),
        (ERROR, 0, b"42P01"),
    ],
)
def test_a_single_statement_is_one_answer(
    parses: bool, described: bytes, result: bytes, rows: int, sqlstate: bytes
) -> None:
    received = (PARSED if parses else b"") + BOUND + described + result + IDLE
    outcome = converse([single(parses), *forward(r.QUERY)], received + DONE + IDLE)
    assert outcome.client == received + DONE + IDLE
    assert outcome.others == [("executed", "single", rows, sqlstate), ("executed", "0", 1, b"")]
    assert outcome.ready and outcome.empty


@pytest.mark.parametrize("tentative", [False, True])
@pytest.mark.parametrize("before", [b"", NOTICE, ZONE])
@pytest.mark.parametrize(
    "answer", [BOUND + COLUMNS + ROW + DONE, BOUND + EMPTY, BOUND + ERROR, BOUND + ZONE + DONE]
)
def test_a_parse_that_was_not_sent_is_answered(tentative: bool, before: bytes, answer: bytes) -> None:
    spared = single(parses=False)
    spared.spared = True
    outcome = converse([spared], before + answer + IDLE, tentative=tentative)
    assert outcome.client == before + PARSED + answer + IDLE
    assert outcome.ready and outcome.empty


def test_what_stands_for_a_parse_comes_in_one_piece_with_the_rest() -> None:
    spared = single(parses=False)
    spared.spared = True
    queue = ReplyQueue()
    queue.peer = pieces = Pieces()
    queue.push(spared)
    queue.scan(BOUND + ROW + DONE + IDLE, 1.0)
    assert pieces.forwarded == [PARSED + BOUND + ROW + DONE + IDLE]


def test_nothing_stands_for_a_parse_where_the_bind_fails() -> None:
    spared = single(parses=False)
    spared.spared = True
    assert converse([spared], ERROR + IDLE).client == ERROR + IDLE


@pytest.mark.parametrize(("received", "undone"), [(ERROR, True), (PARSED + ERROR, False)])
def test_a_single_statement_that_fails_before_it_runs(received: bytes, undone: bool) -> None:
    outcome = converse([single()], received + IDLE)
    assert outcome.client == received + IDLE and outcome.ready
    told = [("executed", "single", 0, b"42P01")]
    assert outcome.others == told + [("undone", "single")] * undone


def test_a_single_statement_behind_a_parse_of_the_proxys_that_fails() -> None:
    outcome = converse([Reply(r.PARSE, r.SKIP, "again"), single(False)], ERROR + IDLE)
    assert outcome.client == IDLE, "what is told of the error is for its peer to say"
    assert outcome.others == ["injected failed", ("undone", "again"), ("executed", "single", 0, b"42P01")]
    assert outcome.ready


@pytest.mark.parametrize(
    "received",
    [CLOSED, SUSPENDED, COPY_IN, PARSED + PARSED, BOUND + IDLE, DONE + DONE, message(b"t", b"\0\0")],
)
def test_what_a_single_statement_is_never_answered_with(received: bytes) -> None:
    queue = ReplyQueue()
    queue.peer = Recorder()
    queue.push(single())
    with pytest.raises(ProtocolViolation):
        queue.scan(received, 1.0)


def test_a_long_queue_is_let_go_of() -> None:
    queue = ReplyQueue()
    for _ in range(100_000):
        queue.push(Reply(r.SYNC, r.FORWARD))
    del queue
