"""Sign who is asking, so that PostgreSQL's row-level security can believe it.

The proxy puts a *claim* into the setting `sluice.identity` of a server connection. A client may write that
setting too, so the claim carries a mac which only the proxy can make. The functions of
sql/core/0002_identity.sql verify it inside PostgreSQL. A claim is ASCII, its parts follow each other without
spaces:

    mac          64 lower-case hexadecimal digits
    kid          4 characters [0-9a-z]: which key signed
    exp          10 decimal digits: Unix seconds, in the server's time; the claim holds before that second
    |user        1 or more characters, see below
    |key id      printable ASCII without "|" and backslash
    |permissions printable ASCII without "|" and backslash, separated by single spaces; may be empty

The user stands as it is if it is printable ASCII (0x20 to 0x7E) without "|" and backslash and does not start
with "="; otherwise as "=" and the base64url (RFC 4648, section 5) of its UTF-8, without padding.

mac = HMAC-SHA-256(key, message), where message is all that follows the mac, then "|", the backend's process
id in decimal, "|", and the name of the session's user. These two are not carried: the verifier adds its own.
So a claim is worth something on one backend and under one login only. A session user with "|" in its name is
refused, because then the end of the message would be ambiguous.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

CLAIM_SETTING: Final = "sluice.identity"
# sluice.current_user_id() looks at nothing longer.
MAX_CLAIM_LENGTH: Final = 8192

_KID: Final = re.compile(r"[0-9a-z]{4}")
_PLAIN: Final = re.compile(r"[ -\[\]-{}~]*")
_BLOCK: Final = 64
_IPAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OPAD: Final = bytes(byte ^ 0x5C for byte in range(256))


@dataclass(frozen=True)
class SigningKey:
    """A row of sluice.signing_keys: the HMAC key's two padded halves (RFC 2104), 64 bytes each.

    Raises ValueError for a kid or halves of another form.
    """

    kid: str
    ipad: bytes = field(repr=False)
    opad: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if _KID.fullmatch(self.kid) is None:
            raise ValueError(f"a kid has 4 characters of 0-9 and a-z, not {self.kid!r}")
        if len(self.ipad) != _BLOCK or len(self.opad) != _BLOCK:
            raise ValueError(f"the halves of a signing key have {_BLOCK} bytes")

    @classmethod
    def from_secret(cls, kid: str, secret: bytes) -> SigningKey:
        """Return the signing key of an HMAC key `secret`; one over 64 bytes is hashed first (RFC 2104)."""
        block = (hashlib.sha256(secret).digest() if len(secret) > _BLOCK else secret).ljust(_BLOCK, b"\0")
        return cls(kid, block.translate(_IPAD), block.translate(_OPAD))


class Signer:
    """Signs claims with one key. Both halves of the key are hashed once, here."""

    __slots__ = ("_inner", "_outer", "kid")

    def __init__(self, key: SigningKey) -> None:
        self.kid: Final = key.kid
        self._inner: Final = hashlib.sha256(key.ipad)
        self._outer: Final = hashlib.sha256(key.opad)

    def claim(
        self,
        user: str,
        key_id: str,
        permissions: Sequence[str],
        backend_pid: int,
        session_user: str,
        expires: int,
    ) -> str:
        """Return the claim of `user` for one backend and login until `expires` (Unix seconds).

        Raises ValueError for what a claim can't carry.
        """
        return self.sign(subject(user, key_id, permissions), backend_pid, session_user, expires)

    def sign(self, who: str, backend_pid: int, session_user: str, expires: int) -> str:
        """Return the claim of `who`, which `subject` made; it is the same for all claims of a key.

        Raises ValueError for an `expires` without ten digits or a `session_user` with "|".
        """
        if not 1_000_000_000 <= expires <= 9_999_999_999:
            raise ValueError(f"a claim's expiry has ten digits, not {expires}")
        if "|" in session_user:
            raise ValueError(f'a login with "|" in its name can\'t carry an identity: {session_user!r}')
        text = f"{self.kid}{expires}{who}"
        inner = self._inner.copy()
        inner.update(f"{text}|{backend_pid}|{session_user}".encode())
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest() + text


def subject(user: str, key_id: str, permissions: Sequence[str]) -> str:
    """Return the part of a claim that says who: "|user|key id|permissions".

    Raises ValueError for an empty user, one with a NUL, a key id or permission that isn't plain, and for a
    subject that makes the claim too long.
    """
    if not user or "\0" in user:
        raise ValueError("a claim needs a user, without NUL")
    if not key_id or _PLAIN.fullmatch(key_id) is None:
        raise ValueError(f"a claim can't carry the key id {key_id!r}")
    for permission in permissions:
        if not permission or " " in permission or _PLAIN.fullmatch(permission) is None:
            raise ValueError(f"a claim can't carry the permission {permission!r}")
    who = f"|{_encoded(user)}|{key_id}|{' '.join(permissions)}"
    if len(who) > MAX_CLAIM_LENGTH - 78:
        raise ValueError(f"the claim of key {key_id} would have more than {MAX_CLAIM_LENGTH} bytes")
    return who


def _encoded(user: str) -> str:
    if _PLAIN.fullmatch(user) is not None and not user.startswith("="):
        return user
    return "=" + urlsafe_b64encode(user.encode()).decode().rstrip("=")
