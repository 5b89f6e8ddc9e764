from __future__ import annotations

import uuid
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe.record import (
    MAX_NAME,
    MAX_REASON,
    MAX_STATEMENT,
    NULL,
    AccessBuffer,
    address_field,
    mask_keys,
    pool_part,
    route_part,
    session_part,
    text_field,
)
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import Intent
from tests.observe.decoder import decode

SEED = b"\x01\x02\x03\x04\x05\x06\x00\x00\x00\x07"
AT = 1_763_680_000.125
SECRET = "ctm_ab12cd34ef56_0123456789abcdefghijklmnopqrstuv"
SESSION = session_part("ctm_ab12cd34ef56", "ann@example.com", "192.0.2.7", "psql", "app")
POOL = pool_part("readonly", "replica1")
ROUTE = route_part("readonly", "plain SELECT")

# Any text, also what can't be encoded.
texts = st.text(st.characters(exclude_categories=[]) | st.sampled_from("\0\n\x1b\x7f\ud800\u202e\\\"'"))


def intent_of(sql: str) -> Intent:
    return IntentCache(FunctionCatalog.builtin(), 16384).lookup(sql.encode())


def record(
    buffer: AccessBuffer,
    intent: Intent,
    started: float = AT,
    numbers: tuple[int, int, int, int, int, int] = (10, 300, 400, 1, 50, 90),
    sqlstate: bytes = b"",
    code: bytes = b"",
    traceparent: bytes = b"",
    text: bytes = b"",
) -> None:
    queued, first_byte, duration, rows, bytes_in, bytes_out = numbers
    buffer.statement(
        SESSION,
        POOL,
        ROUTE,
        intent,
        started,
        queued,
        first_byte,
        duration,
        rows,
        bytes_in,
        bytes_out,
        False,
        True,
        sqlstate,
        code,
        traceparent,
        text,
    )


def test_a_statement_has_every_column() -> None:
    buffer = AccessBuffer(SEED)
    intent = intent_of("SELECT abalance FROM accounts WHERE aid = 12345")
    record(buffer, intent, sqlstate=b"57014", code=b"QUERY_TIMEOUT", traceparent=b"00-ab-cd-01")
    (row,) = decode(buffer.take())
    identifier = row.pop("id")
    assert identifier.version == 7
    assert row == {
        "at": datetime(2025, 11, 20, 23, 6, 40, 125_000, tzinfo=UTC),
        "event": "statement",
        "key_id": "ctm_ab12cd34ef56",
        "user_id": "ann@example.com",
        "client_addr": ip_address("192.0.2.7"),
        "application_name": "psql",
        "database": "app",
        "pool": "readonly",
        "host": "replica1",
        "target": "readonly",
        "reason": "plain SELECT",
        "intent": "read",
        "fingerprint": intent.fingerprint,
        "statement": "SELECT abalance FROM accounts WHERE aid = $1",
        "rows": 1,
        "bytes_in": 50,
        "bytes_out": 90,
        "queued_us": 10,
        "first_byte_us": 300,
        "duration_us": 400,
        "in_transaction": False,
        "pinned": True,
        "sqlstate": "57014",
        "code": "QUERY_TIMEOUT",
        "traceparent": "00-ab-cd-01",
    }


def test_bytes_are_the_same_in_both_builds() -> None:
    buffer = AccessBuffer(SEED)
    buffer.event("login", AT, SESSION, reason="scram-sha-256", duration_us=1500)
    assert buffer.take().hex() == (
        "001a"
        "00000010" "019aa385187d7000" "8008010203040506"
        "00000008" "0002e70d84afc848"
        "00000005" "6c6f67696e"
        "00000010" "63746d5f616231326364333465663536"
        "0000000f" "616e6e406578616d706c652e636f6d"
        "00000008" "02200004c0000207"
        "00000004" "7073716c"
        "00000003" "617070"
        "ffffffff" "ffffffff" "ffffffff"
        "0000000d" "736372616d2d7368612d323536"
        "ffffffff" "ffffffff" "ffffffff"
        "ffffffff" "ffffffff" "ffffffff" "ffffffff" "ffffffff"
        "00000008" "00000000000005dc"
        "ffffffff" "ffffffff" "ffffffff" "ffffffff" "ffffffff"
    )  # fmt: skip


def test_negative_numbers_and_empty_texts_are_null() -> None:
    buffer = AccessBuffer(SEED)
    record(buffer, intent_of("SELECT 1"), numbers=(-1, -1, -1, -1, -1, -1))
    (row,) = decode(buffer.take())
    empty = {name for name, value in row.items() if value is None}
    assert empty == {
        *("rows", "bytes_in", "bytes_out", "queued_us", "first_byte_us", "duration_us"),
        *("sqlstate", "code", "traceparent"),
    }


def test_numbers_keep_64_bits() -> None:
    buffer = AccessBuffer(SEED)
    record(buffer, intent_of("SELECT 1"), numbers=(0, 0, 2**62, 2**63 - 1, 2**40, 0))
    (row,) = decode(buffer.take())
    assert (row["queued_us"], row["duration_us"], row["rows"], row["bytes_in"]) == (
        0,
        2**62,
        2**63 - 1,
        2**40,
    )


def test_an_event_has_only_what_applies() -> None:
    buffer = AccessBuffer(SEED)
    nobody = session_part("mallory", "", "", "", "")
    buffer.event("login_failed", AT, nobody, reason="unknown key", sqlstate="28P01", code="INVALID_API_KEY")
    (row,) = decode(buffer.take())
    assert {name: value for name, value in row.items() if value is not None and name not in ("id", "at")} == {
        "event": "login_failed",
        "key_id": "mallory",
        "reason": "unknown key",
        "sqlstate": "28P01",
        "code": "INVALID_API_KEY",
    }


def test_a_denied_statement_is_told_by_its_intent() -> None:
    buffer = AccessBuffer(SEED)
    intent = intent_of("DELETE FROM accounts WHERE aid = 12345")
    buffer.event("denied", AT, SESSION, intent=intent, statement="DELETE … 12345", code="RATE_LIMIT_EXCEEDED")
    (row,) = decode(buffer.take())
    assert row["intent"] == "write"
    assert row["fingerprint"] == intent.fingerprint
    assert row["statement"] == "DELETE FROM accounts WHERE aid = $1"


@pytest.mark.parametrize(
    ("statements", "logged", "denied", "admin"),
    [
        ("normalized", "SELECT $1", "SELECT $1", "SHOW POOLS"),
        ("full", "SELECT 'secret'", "SELECT 'secret'", "SHOW POOLS"),
        ("none", None, None, None),
    ],
)
def test_the_configuration_says_which_text_is_kept(
    statements: str, logged: str | None, denied: str | None, admin: str | None
) -> None:
    buffer = AccessBuffer(SEED, statements)
    intent = intent_of("SELECT 'secret'")
    for _ in range(2):
        record(buffer, intent, text=b"SELECT 'secret'")
    buffer.event("denied", AT, SESSION, intent=intent, statement="SELECT 'secret'")
    buffer.event("admin", AT, SESSION, statement="SHOW POOLS")
    rows = decode(buffer.take())
    assert [row["statement"] for row in rows] == [logged, logged, denied, admin]
    assert [row["intent"] for row in rows] == ["read", "read", "read", None]


def test_full_statements_without_a_text_are_normalized_ones() -> None:
    buffer = AccessBuffer(SEED, "full")
    record(buffer, intent_of("SELECT 'secret'"))
    (row,) = decode(buffer.take())
    assert row["statement"] == "SELECT $1"


def test_full_statements_may_be_any_bytes() -> None:
    buffer = AccessBuffer(SEED, "full")
    record(buffer, intent_of("SELECT 1"), text=b"SELECT '\xff\0" + b"x" * 20_000)
    (row,) = decode(buffer.take())
    assert row["statement"].startswith("SELECT '\ufffd\ufffdxxx")
    assert row["statement"].endswith("x…")
    assert len(row["statement"].encode()) == MAX_STATEMENT


@pytest.mark.parametrize("hostile", [b"\xff\xfe", b"a\0b", b"x" * 10_000, "é".encode()])
def test_a_hostile_sqlstate_stays_a_text(hostile: bytes) -> None:
    buffer = AccessBuffer(SEED)
    record(buffer, intent_of("SELECT 1"), sqlstate=hostile, code=hostile, traceparent=hostile)
    (row,) = decode(buffer.take())
    for name in ("sqlstate", "code", "traceparent"):
        assert "\0" not in row[name]
        assert len(row[name].encode()) <= MAX_NAME


def test_the_encoded_intent_is_kept() -> None:
    intent = intent_of("SELECT 1")
    buffer = AccessBuffer(SEED)
    record(buffer, intent)
    part = intent.log_part
    assert part == text_field("read") + text_field(intent.fingerprint) + text_field("SELECT $1")
    record(buffer, intent)
    assert intent.log_part is part


class TestIds:
    def ids(self, buffer: AccessBuffer) -> list[uuid.UUID]:
        return [row["id"] for row in decode(buffer.take())]

    def test_follow_rfc_9562(self) -> None:
        buffer = AccessBuffer(SEED)
        buffer.event("login", AT, SESSION)
        (identifier,) = self.ids(buffer)
        assert (identifier.version, identifier.variant) == (7, uuid.RFC_4122)
        assert identifier.int >> 80 == 1_763_680_000_125
        assert identifier.bytes[10:] == SEED[:6]

    def test_of_one_millisecond_sort_as_recorded(self) -> None:
        buffer = AccessBuffer(SEED)
        for _ in range(5_000):
            buffer.event("login", AT, SESSION)
        ids = self.ids(buffer)
        assert ids == sorted(ids)
        assert len(set(ids)) == 5_000

    def test_follow_the_time(self) -> None:
        buffer = AccessBuffer(SEED)
        for second in (3, 1, 2):
            buffer.event("login", AT + second, SESSION)
        third, first, second_ = self.ids(buffer)
        assert first < second_ < third

    def test_do_not_repeat_when_the_clock_does(self) -> None:
        buffer = AccessBuffer(SEED)
        ids = []
        for take in range(50):
            for ms in (0, 1, 0, -1):
                buffer.event("login", AT + ms / 1000, SESSION)
            ids += [row["id"] for row in decode(buffer.take(bytes([take]) * 10))]
        assert len(set(ids)) == len(ids) == 200

    def test_take_new_random_bits(self) -> None:
        buffer = AccessBuffer(SEED)
        buffer.take(b"abcdefghij")
        buffer.event("login", AT, SESSION)
        (identifier,) = self.ids(buffer)
        assert identifier.bytes[10:] == b"abcdef"
        assert identifier.bytes[8:10] == b"\x80\x08"

    def test_stay_valid_where_the_counter_starts_again(self) -> None:
        buffer = AccessBuffer(SEED[:6] + b"\xff\xff\xff\xfd")
        for _ in range(4):
            buffer.event("login", AT, SESSION)
        ids = self.ids(buffer)
        assert [i.bytes[6:10].hex() for i in ids] == ["7fffbffe", "7fffbfff", "70008000", "70008001"]

    def test_have_the_milliseconds_of_at(self) -> None:
        buffer = AccessBuffer(SEED)
        for moment in (0.0, 0.0015, 946_684_800.0, AT + 0.0009, 4_102_444_799.999):
            buffer.event("login", moment, SESSION)
        for row in decode(buffer.take()):
            assert row["id"].int >> 80 == round(row["at"].timestamp() * 1000)


class TestBuffer:
    def test_take_empties_it(self) -> None:
        buffer = AccessBuffer(SEED)
        assert buffer.take() == b""
        buffer.event("login", AT, SESSION)
        buffer.event("login", AT, SESSION)
        assert buffer.rows == 2
        assert len(decode(buffer.take())) == 2
        assert buffer.rows == 0
        assert buffer.take() == b""

    def test_goes_on_after_a_large_take(self) -> None:
        buffer = AccessBuffer(SEED)
        intent = intent_of("SELECT 1")
        for _ in range(4_000):
            record(buffer, intent)
        assert len(decode(buffer.take())) == 4_000
        record(buffer, intent)
        assert len(decode(buffer.take())) == 1

    def test_wakes_once_between_two_takes(self) -> None:
        woken: list[int] = []
        buffer = AccessBuffer(SEED, "normalized", 1000, lambda: woken.append(1))
        for _ in range(3):
            buffer.event("login", AT, SESSION)
        assert woken == []
        for _ in range(30):
            buffer.event("login", AT, SESSION)
        assert woken == [1]
        buffer.take()
        for _ in range(30):
            buffer.event("login", AT, SESSION)
        assert woken == [1, 1]

    def test_records_nothing_where_it_is_not_enabled(self) -> None:
        buffer = AccessBuffer(SEED, enabled=False)
        record(buffer, intent_of("SELECT 1"))
        buffer.event("login", AT, SESSION)
        assert (buffer.rows, buffer.take()) == (0, b"")


@pytest.mark.parametrize(
    ("address", "decoded"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("255.255.255.255", "255.255.255.255"),
        ("::1", "::1"),
        ("2001:db8::ff00:42:8329", "2001:db8::ff00:42:8329"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_addresses_are_of_type_inet(address: str, decoded: str) -> None:
    buffer = AccessBuffer(SEED)
    buffer.event("login", AT, session_part("k", "u", address, "", ""))
    (row,) = decode(buffer.take())
    assert row["client_addr"] == ip_address(decoded)


@pytest.mark.parametrize("address", ["", "@", "/run/socket", "1.2.3", "localhost", "1.2.3.4/8", "\0"])
def test_what_is_no_address_is_null(address: str) -> None:
    assert address_field(address) == NULL


@given(texts, st.integers(4, 300))
def test_texts_are_what_postgresql_takes(text: str, limit: int) -> None:
    field = text_field(text, limit)
    if not text:
        assert field == NULL
        return
    size = int.from_bytes(field[:4], "big")
    body = field[4:]
    assert size == len(body) <= limit
    decoded = body.decode("utf-8", "strict")
    assert decoded
    assert "\0" not in decoded
    clean = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    assert decoded == clean or (decoded.endswith("…") and clean.startswith(decoded[:-1]))


@given(texts, texts, texts, texts, texts)
def test_a_session_part_is_always_five_fields(
    key: str, user: str, addr: str, name: str, database: str
) -> None:
    buffer = AccessBuffer(SEED)
    buffer.event("login", AT, session_part(key, user, addr, name, database), reason=name, statement=user)
    (row,) = decode(buffer.take())
    assert (row["key_id"] is None) == (not key)


def test_longer_limits_hold_for_reasons_and_statements() -> None:
    buffer = AccessBuffer(SEED)
    buffer.event("admin", AT, SESSION, reason="r" * 10_000, statement="s" * 10_000)
    (row,) = decode(buffer.take())
    assert len(row["reason"].encode()) == MAX_REASON
    assert len(row["statement"].encode()) == MAX_STATEMENT


def test_secrets_of_keys_are_masked_everywhere() -> None:
    assert (
        mask_keys(f"key={SECRET}; and {SECRET!r}") == "key=ctm_ab12cd34ef56_***; and 'ctm_ab12cd34ef56_***'"
    )
    assert mask_keys("ctm_ab12cd34ef56") == "ctm_ab12cd34ef56"
    buffer = AccessBuffer(SEED, "full")
    record(buffer, intent_of(f"/* {SECRET} */ SELECT 1"), text=f"SELECT '{SECRET}'".encode())
    buffer.event("login_failed", AT, session_part(SECRET, SECRET, "", SECRET, SECRET), reason=SECRET)
    assert SECRET[17:].encode() not in buffer.take()
