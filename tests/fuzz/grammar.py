"""What a hostile client may send: well-formed messages in any order, and what becomes of them when they are damaged."""

from __future__ import annotations

import struct

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.session.door import GSSENC_REQUEST, SSL_REQUEST, packed, startup, whole
from tests.session.frontend import (
    COPY_DONE,
    COPY_FAIL,
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    close,
    copy_data,
    describe,
    execute,
    function_call,
    message,
    parse,
    query,
    run,
)

NAMES = ("", "s", "t", "_sluice_set_1", "_sluice_refused")

SQL = (
    "SELECT 'hostile'",
    "SELECT 'hostile', 2",
    "INSERT INTO t VALUES ('hostile')",
    "SELECT 1/0",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET application_name = 'hostile'",
    "SET sluice.pool = 'background'",
    "SET sluice.pool = 'nowhere'",
    "RESET ALL",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "DEALLOCATE s",
    "LISTEN a",
    "COPY t FROM STDIN",
    "DO 'hostile'",
    "SELECT 20 TIMES 'h'",
    "",
    ";;",
    "nonsense",
    "SELECT set_config('sluice.identity', 'innocent', false)",
    "SELECT 'hostile'; INSERT INTO t VALUES ('hostile')",
)

_sql = st.sampled_from(SQL)
_names = st.sampled_from(NAMES)
_portals = st.sampled_from(("", "s", "c"))
_kinds = st.sampled_from((b"S", b"P"))


class Big(bytes):
    """A long message that is short where it is printed."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes, {bytes(self[:20])!r}…>"


well_formed: SearchStrategy[bytes] = st.one_of(
    st.builds(query, _sql),
    st.builds(run, _sql),
    st.builds(parse, _names, _sql),
    st.builds(bind, _names, _portals),
    st.builds(bind, _names, _portals, st.just((b"1", b"x" * 50))),
    st.builds(describe, _names, _kinds),
    st.builds(execute, _portals),
    st.builds(close, _names, _kinds),
    st.sampled_from((SYNC, SYNC, SYNC, FLUSH, COPY_DONE, COPY_FAIL, TERMINATE, function_call(), SYNC * 50)),
    st.builds(copy_data, st.sampled_from((b"", b"1", b"bad"))),
    st.sampled_from(
        (
            Big(copy_data(b"x" * 70_000)),
            Big(query("SELECT '" + "x" * 70_000 + "'")),
            Big(bind("", "", (b"x" * 70_000,))),
            Big(bind("s", "", (b"x" * 70_000,))),
        )
    ),
)


@st.composite
def damaged(draw: st.DrawFn, messages: SearchStrategy[bytes]) -> bytes:
    """Return a message in which one thing is not as it should be."""
    data = draw(messages)
    how = draw(st.sampled_from(("length", "byte", "body", "cut", "type", "noise")))
    if how == "length":
        length = draw(st.sampled_from((-(2**31), -1, 0, 3, 4, 5, 6, 10_001, 65_541, 2**30, 2**31 - 1)))
        return data[:1] + struct.pack("!i", length) + data[5:]
    if how == "byte":
        at = draw(st.integers(0, min(len(data), 200) - 1))
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if how == "body":
        return message(data[:1], draw(st.binary(max_size=30)))
    if how == "cut":
        return message(data[:1], data[5 : draw(st.integers(5, min(len(data), 200)))])
    if how == "type":
        return bytes([draw(st.integers(0, 255))]) + data[1:]
    return draw(st.binary(min_size=1, max_size=40))


from_client: SearchStrategy[bytes] = st.one_of(well_formed, well_formed, well_formed, damaged(well_formed))

_logins: SearchStrategy[bytes] = st.one_of(
    st.sampled_from((SSL_REQUEST, GSSENC_REQUEST)),
    st.sampled_from(
        (startup("anyone"), startup("ctm_alice0000000"), startup("", ""), startup("a", "nowhere"))
    ),
    st.sampled_from((startup("anyone", timezone="bogus"), startup("anyone", options="-c a"))),
    st.builds(packed, st.binary(max_size=60), st.sampled_from((196608, 196610, 131072, 80877102))),
    st.sampled_from((struct.pack("!iii", 16, 80877102, 1) + b"abcd",)),
    st.sampled_from((message(b"p", whole("alice").encode() + b"\0"), message(b"p", b"wrong\0"))),
    st.sampled_from(
        (message(b"p", b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc"), message(b"p", b"c=biws,r=abc,p=AAAA"))
    ),
    st.builds(
        lambda body: message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(body)) + body),
        st.binary(max_size=60),
    ),
)

before_login: SearchStrategy[bytes] = st.one_of(_logins, _logins, damaged(_logins))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return `data` cut at `cuts`, positions that are taken modulo its length."""
    at = sorted({cut % len(data) for cut in cuts} - {0}) if data else []
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]
