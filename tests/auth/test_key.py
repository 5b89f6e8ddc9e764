from __future__ import annotations

import hashlib
import ipaddress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.key import Key, is_key_id, parse_key

SECRET = "abcdefghijklmnopqrstuvwxyz012345"
WHOLE = f"ctm_ab12cd34ef56_{SECRET}"
ROW: dict[str, Any] = {
    "id": "ctm_ab12cd34ef56",
    "name": "My API key",
    "user_id": "user@company.com",
    "permissions": ["read:tasks"],
    "secret_sha256": hashlib.sha256(SECRET.encode()).digest(),
    "scram_verifier": "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy",
    "default_pool": None,
    "allowed_addresses": None,
    "rate_limit_per_minute": None,
    "expires_at": None,
    "revoked_at": None,
    "result_cache": None,
}


def key(**columns: Any) -> Key:
    return Key.from_row({**ROW, **columns})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (WHOLE, ("ctm_ab12cd34ef56", SECRET)),
        ("ctm_ABCDEFabcdef_" + "x" * 32, ("ctm_ABCDEFabcdef", "x" * 32)),
        ("ctm_ab12cd34ef56_" + "a_b-" * 16, ("ctm_ab12cd34ef56", "a_b-" * 16)),
        ("ctm_ab12cd34ef56_" + "x" * 256, ("ctm_ab12cd34ef56", "x" * 256)),
        ("ctm_ab12cd34ef56_" + "x" * 31, None),
        ("ctm_ab12cd34ef56_" + "x" * 257, None),
        ("ctm_ab12cd34ef5_" + SECRET, None),
        ("ctm_ab12cd34ef567_" + SECRET, None),
        ("ctm_ab12cd34ef5é_" + SECRET, None),
        ("CTM_ab12cd34ef56_" + SECRET, None),
        ("ctm_ab12cd34ef56_" + "x" * 31 + " ", None),
        (WHOLE + "\n", None),
        (" " + WHOLE, None),
        ("ctm_ab12cd34ef56", None),
        ("", None),
    ],
)
def test_parse_key(text: str, parts: tuple[str, str] | None) -> None:
    assert parse_key(text) == parts


def test_is_key_id() -> None:
    assert is_key_id("ctm_ab12cd34ef56")
    assert not any(map(is_key_id, ["", "ctm_", "app", "ctm_ab12cd34ef56_", "ctm_ab12cd34ef56\n", WHOLE]))


def test_a_row_becomes_a_key() -> None:
    found = key()
    assert (found.id, found.name, found.user_id) == (ROW["id"], ROW["name"], ROW["user_id"])
    assert found.permissions == frozenset({"read:tasks"})
    assert (found.secret_sha256, found.scram) == (ROW["secret_sha256"], ROW["scram_verifier"])
    assert (found.default_pool, found.allowed_addresses, found.rate_limit_per_minute) == ("", [], 0)
    assert (found.expires_at, found.revoked_at) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("column", "value", "attribute", "expected"),
    [
        ("permissions", '["b:x", "a:x", "b:x"]', "permissions_sorted", ("a:x", "b:x")),
        ("permissions", ("a:x",), "permissions_sorted", ("a:x",)),
        ("permissions", None, "permissions_sorted", ()),
        ("permissions", "[]", "permissions_sorted", ()),
        ("default_pool", "background", "default_pool", "background"),
        ("rate_limit_per_minute", 60, "rate_limit_per_minute", 60),
        ("secret_sha256", "\\x" + "ab" * 32, "secret_sha256", b"\xab" * 32),
        ("secret_sha256", "AB" * 32, "secret_sha256", b"\xab" * 32),
        ("scram_verifier", None, "scram", ""),
        ("expires_at", datetime(2027, 1, 1, tzinfo=UTC), "expires_at", 1798761600.0),
        ("expires_at", datetime(2027, 1, 1), "expires_at", 1798761600.0),
        (
            "expires_at",
            datetime(2027, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
            "expires_at",
            1798761600.0,
        ),
        ("revoked_at", "2027-01-01T00:00:00Z", "revoked_at", 1798761600.0),
        (
            "allowed_addresses",
            [ipaddress.ip_network("10.0.0.0/8"), "::1"],
            "allowed_addresses",
            [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1")],
        ),
    ],
)
def test_column(column: str, value: object, attribute: str, expected: object) -> None:
    assert getattr(key(**{column: value}), attribute) == expected


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "app"),
        ("id", None),
        ("id", 7),
        ("name", 7),
        ("user_id", b"x"),
        ("permissions", "read:tasks"),
        ("permissions", '{"a": 1}'),
        ("permissions", [1]),
        ("permissions", 1),
        ("secret_sha256", b"short"),
        ("secret_sha256", "zz" * 32),
        ("secret_sha256", None),
        ("allowed_addresses", ["10.0.0.1/8"]),
        ("rate_limit_per_minute", -1),
        ("rate_limit_per_minute", True),
        ("rate_limit_per_minute", "60"),
        ("expires_at", "tomorrow"),
        ("expires_at", 1.5),
    ],
)
def test_rejects_a_column_that_holds_something_else(column: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^key "):
        key(**{column: value})


def test_a_missing_column_is_not_taken_for_null() -> None:
    with pytest.raises(KeyError):
        Key.from_row({name: value for name, value in ROW.items() if name != "revoked_at"})


@pytest.mark.parametrize(
    ("permissions", "can_write", "is_admin"),
    [
        ([], False, False),
        (["read:tasks", "read:metrics"], False, False),
        (["write:tasks"], True, False),
        (["read:tasks", "write:anything"], True, False),
        (["admin"], True, True),
        (["writer:tasks", "administrator"], False, False),
    ],
)
def test_permissions(permissions: list[str], can_write: bool, is_admin: bool) -> None:
    found = key(permissions=permissions)
    assert (found.can_write, found.is_admin) == (can_write, is_admin)


@pytest.mark.parametrize(
    ("expires_at", "revoked_at", "valid"),
    [
        (0.0, 0.0, True),
        (1001.0, 0.0, True),
        (1000.0, 0.0, False),
        (999.0, 0.0, False),
        (0.0, 1001.0, True),
        (0.0, 1000.0, False),
        (2000.0, 10.0, False),
        (10.0, 2000.0, False),
    ],
)
def test_valid_until_it_expires_or_is_revoked(expires_at: float, revoked_at: float, valid: bool) -> None:
    found = Key("ctm_ab12cd34ef56", "", "u", [], b"", "", expires_at=expires_at, revoked_at=revoked_at)
    assert found.valid(1000.0) is valid


def test_allows_an_address_of_its_list() -> None:
    found = key(allowed_addresses=["10.0.0.0/8"])
    assert found.allows("10.1.2.3")
    assert not found.allows("11.1.2.3")
    assert key().allows("11.1.2.3")


@pytest.mark.parametrize(
    "given",
    [
        "",
        SECRET,
        "ctm_ab12cd34ef56",
        WHOLE[:-1],
        WHOLE + "x",
        WHOLE.replace("a", "b"),
        "ctm_zz12cd34ef56_" + SECRET,  # another key's id with this one's secret
        "\udcff" * 40,
        "é" * 40,
    ],
)
def test_only_the_whole_key_is_accepted(given: str) -> None:
    assert key().verify_secret(WHOLE)
    assert not key().verify_secret(given)


@given(st.text(max_size=80))
def test_no_other_text_is_accepted(text: str) -> None:
    assert key().verify_secret(text) is (text == WHOLE)


def test_identity_is_all_that_a_claim_says() -> None:
    same = key(permissions=["b:x", "a:x"]), key(permissions=["a:x", "b:x"], name="other", default_pool="p")
    assert same[0].identity == same[1].identity != ""
    others = [key(permissions=["a:x"]), key(user_id="other"), key(id="ctm_000000000000")]
    assert len({found.identity for found in (*same, *others)}) == 4
