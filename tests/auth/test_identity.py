from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.identity import MAX_CLAIM_LENGTH, Signer, SigningKey, subject

SECRET = bytes(range(32))
KEY = SigningKey.from_secret("k001", SECRET)
SIGNER = Signer(KEY)
EXPIRES = 1_795_221_712

PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in "|\\")
users = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)
plain_words = st.text(PLAIN.replace(" ", ""), min_size=1, max_size=40)


def claim(
    user: str = "user@company.com",
    key_id: str = "ctm_0123456789ab",
    permissions: tuple[str, ...] = ("read:tasks", "write:tasks"),
    backend_pid: int = 4711,
    session_user: str = "app_rw",
    expires: int = EXPIRES,
    signer: Signer = SIGNER,
) -> str:
    return signer.claim(user, key_id, permissions, backend_pid, session_user, expires)


def test_a_claim_is_mac_kid_exp_and_three_fields() -> None:
    text = f"k001{EXPIRES}|user@company.com|ctm_0123456789ab|read:tasks write:tasks"
    mac = hmac.new(SECRET, f"{text}|4711|app_rw".encode(), hashlib.sha256).hexdigest()
    assert claim() == mac + text


def test_a_key_without_permissions_has_an_empty_last_field() -> None:
    assert claim(permissions=()).endswith("|ctm_0123456789ab|")


@given(users, plain_words, st.lists(plain_words), st.integers(1, 2**31 - 1), users)
def test_the_mac_is_that_of_the_standard_library(
    user: str, key_id: str, permissions: list[str], backend_pid: int, session_user: str
) -> None:
    session_user = session_user.replace("|", "")
    made = SIGNER.claim(user, key_id, permissions, backend_pid, session_user, EXPIRES)
    message = f"{made[64:]}|{backend_pid}|{session_user}".encode()
    assert made[:64] == hmac.new(SECRET, message, hashlib.sha256).hexdigest()


@given(users, plain_words, st.lists(plain_words))
def test_fields_come_back_as_they_were(user: str, key_id: str, permissions: list[str]) -> None:
    made = SIGNER.claim(user, key_id, permissions, 1, "app_rw", EXPIRES)
    assert made.isascii() and made.isprintable() and "\\" not in made
    head, field, found_key_id, found_permissions = made.split("|")
    assert re.fullmatch(r"[0-9a-f]{64}k001[0-9]{10}", head)
    if field.startswith("="):
        assert urlsafe_b64decode(field[1:] + "=" * (-len(field[1:]) % 4)).decode() == user
    else:
        assert field == user
    assert (found_key_id, found_permissions.split()) == (key_id, permissions)


@pytest.mark.parametrize(
    ("user", "field"),
    [
        ("user@company.com", "user@company.com"),
        ("Ada Lovelace", "Ada Lovelace"),
        (PLAIN, PLAIN),
        ("a=b", "a=b"),
        ("=a", "=PWE"),
        ("a|b", "=YXxi"),
        ("a\\b", "=YVxi"),
        ("a\tb", "=YQli"),
        ("a\x7f", "=YX8"),
        ("jörg", "=asO2cmc"),
        ("🦆", "=8J-mhg"),
        ("??>", "??>"),
        ("ÿÿÿ", "=w7_Dv8O_"),
    ],
)
def test_a_user_is_plain_or_base64url(user: str, field: str) -> None:
    assert subject(user, "k", []) == f"|{field}|k|"


@pytest.mark.parametrize("user", ["", "\0", "a\0b"])
def test_rejects_a_user_that_postgresql_could_not_hold(user: str) -> None:
    with pytest.raises(ValueError, match="user"):
        subject(user, "ctm_0123456789ab", [])


@pytest.mark.parametrize("key_id", ["", "a|b", "a\\b", "schlüssel", "a\nb"])
def test_rejects_a_key_id_that_is_not_plain(key_id: str) -> None:
    with pytest.raises(ValueError, match="key id"):
        subject("user", key_id, [])


@pytest.mark.parametrize("permission", ["", "read tasks", "a|b", "a\\b", "lesen:aufträge", "a\n"])
def test_rejects_a_permission_that_is_not_one_plain_word(permission: str) -> None:
    with pytest.raises(ValueError, match="permission"):
        subject("user", "ctm_0123456789ab", ["read:tasks", permission])


@pytest.mark.parametrize("expires", [0, -1, 999_999_999, 10_000_000_000])
def test_rejects_an_expiry_without_ten_digits(expires: int) -> None:
    with pytest.raises(ValueError, match="ten digits"):
        claim(expires=expires)


def test_rejects_a_session_user_with_a_bar() -> None:
    with pytest.raises(ValueError, match="login"):
        claim(session_user="app|rw")


def test_the_longest_claim_is_as_long_as_the_verifier_takes() -> None:
    rest = len(claim(user="u", permissions=()))
    assert len(claim(user="u" * (MAX_CLAIM_LENGTH - rest + 1), permissions=())) == MAX_CLAIM_LENGTH
    with pytest.raises(ValueError, match="8192 bytes"):
        claim(user="u" * (MAX_CLAIM_LENGTH - rest + 2), permissions=())


def test_every_part_of_the_message_changes_the_mac() -> None:
    other_key = Signer(SigningKey.from_secret("k001", b"another"))
    other_kid = Signer(SigningKey.from_secret("k002", SECRET))
    claims = [
        claim(),
        claim(user="other@company.com"),
        claim(key_id="ctm_0123456789ac"),
        claim(permissions=("read:tasks",)),
        claim(permissions=("write:tasks", "read:tasks")),
        claim(backend_pid=4712),
        claim(session_user="app_ro"),
        claim(expires=EXPIRES + 1),
        claim(signer=other_key),
        claim(signer=other_kid),
    ]
    assert len({made[:64] for made in claims}) == len(claims)


def test_signing_leaves_the_signer_as_it_was() -> None:
    first = claim()
    claim(user="somebody else")
    assert claim() == first


def test_a_subject_serves_many_claims() -> None:
    who = subject("user@company.com", "ctm_0123456789ab", ["read:tasks", "write:tasks"])
    assert SIGNER.sign(who, 4711, "app_rw", EXPIRES) == claim()


@pytest.mark.parametrize("length", [0, 1, 32, 63, 64, 65, 200])
def test_a_secret_of_any_length_is_an_hmac_key(length: int) -> None:
    secret = bytes(range(length))
    made = claim(signer=Signer(SigningKey.from_secret("k001", secret)))
    message = f"{made[64:]}|4711|app_rw".encode()
    assert made[:64] == hmac.new(secret, message, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("kid", ["", "k01", "k0001", "K001", "k 01", "k00é", "k001\n"])
def test_rejects_a_kid_of_another_form(kid: str) -> None:
    with pytest.raises(ValueError, match="kid"):
        SigningKey(kid, KEY.ipad, KEY.opad)


@pytest.mark.parametrize(("ipad", "opad"), [(63, 64), (64, 65), (0, 0)])
def test_rejects_halves_of_another_length(ipad: int, opad: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        SigningKey("k001", bytes(ipad), bytes(opad))


def test_a_signing_key_does_not_show_itself() -> None:
    assert repr(KEY) == "SigningKey(kid='k001')"
