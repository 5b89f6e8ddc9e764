from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe.record import AccessBuffer, pool_part, session_part
from proxy.observe.rows import COLUMNS, copy_payload, count, cut, json_lines, to_ascii
from tests.observe import decoder
from tests.observe.decoder import decode

AT = 1_763_680_000.007

texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\0\n\r\x1b\x7f\u2028\u202e\\\"'"))


def event(*values: str, at: float = AT, address: str = "192.0.2.7", duration_us: int = 5) -> bytes:
    """Return one row whose texts are `values`, in turn."""
    one, two, three = (*values, "", "", "")[:3]
    buffer = AccessBuffer(b"0123456789")
    part = session_part(one, two, address, three, one)
    buffer.event("admin", at, part, two, "", three, None, one, pool_part(two, three), duration_us)
    return buffer.take()


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a decoded row as its JSON line should have it."""
    row = {name: value for name, value in row.items() if value is not None}
    row["id"] = str(row["id"])
    row["at"] = row["at"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if "client_addr" in row:
        row["client_addr"] = str(row["client_addr"])
    return row


def test_the_columns_are_the_table() -> None:
    assert COLUMNS == decoder.COLUMNS


def test_a_payload_is_framed_as_the_manual_says() -> None:
    payload = b"".join(copy_payload(b"rows"))
    assert payload == b"PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00rows\xff\xff"


def test_a_payload_comes_in_pieces() -> None:
    rows = bytes(range(256)) * 1024
    pieces = copy_payload(rows)
    assert b"".join(pieces)[19:-2] == rows
    assert max(len(piece) for piece in pieces) == 65_536


def test_rows_are_counted() -> None:
    assert count(b"") == 0
    assert count(event("a") * 7) == 7


@pytest.mark.parametrize(
    ("size", "fitting"), [(0, 1), (1, 1), (99, 1), (100, 1), (199, 1), (200, 2), (1000, 5), (10**9, 5)]
)
def test_a_cut_falls_between_rows(size: int, fitting: int) -> None:
    row = event("a")
    scaled = size * len(row) // 100
    assert cut(row * 5, 0, scaled) == fitting * len(row)


def test_cuts_reach_the_end() -> None:
    rows = event("a") + event("longer " * 20) + event("b")
    at = 0
    ends = []
    while at < len(rows):
        at = cut(rows, at, 1)
        ends.append(at)
    assert len(ends) == 3
    assert cut(rows, len(rows), 100) == len(rows)


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_json_lines_say_what_the_rows_say(values: list[tuple[str, str, str]]) -> None:
    rows = b"".join(event(*texts) for texts in values)
    lines = json_lines(rows, 0, len(rows))
    assert lines.endswith(b"\n")
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in lines)
    assert [json.loads(line) for line in lines.splitlines()] == [shown(row) for row in decode(rows)]


@pytest.mark.parametrize("address", ["", "203.0.113.9", "2001:db8::1"])
@pytest.mark.parametrize("at", [0.0, 951_782_400.999, AT, 4_102_444_799.001])
def test_json_lines_show_addresses_and_times(address: str, at: float) -> None:
    rows = event("a", at=at, address=address)
    assert json.loads(json_lines(rows, 0, len(rows))) == shown(decode(rows)[0])


def test_json_lines_begin_with_id_and_time() -> None:
    rows = event("a")
    assert json_lines(rows, 0, len(rows)).startswith(
        b'{"id": "019aa385-1807-78dc-b83a-303132333435", "at": "2025-11-20T23:06:40.007Z", "event": "admin", '
    )


def test_json_lines_of_a_part() -> None:
    rows = event("a") + event("b") + event("c")
    first, second = cut(rows, 0, 1), cut(rows, cut(rows, 0, 1), 1)
    assert json.loads(json_lines(rows, first, second))["key_id"] == "b"


def test_more_texts_than_are_remembered_stay_right() -> None:
    # 4,096 runs of fields are remembered; the two runs of a row make it twice as many.
    for number in range(5000):
        rows = event(f"name {number}")
        assert json.loads(json_lines(rows, 0, len(rows)))["key_id"] == f"name {number}"


def test_ascii_rows_keep_everything_but_letters() -> None:
    rows = event("naïve ☃", "plain", "\u202e") + event("a")
    first, second = decode(to_ascii(rows))
    assert (first["key_id"], first["user_id"], first["application_name"]) == (
        "na\\xefve \\u2603",
        "plain",
        "\\u202e",
    )
    assert first["id"] == decode(rows)[0]["id"]
    assert second == decode(event("a"))[0]


@given(texts, texts)
def test_ascii_rows_are_ascii(one: str, two: str) -> None:
    for row in decode(to_ascii(event(one, two))):
        assert all(value.isascii() for value in row.values() if isinstance(value, str))
