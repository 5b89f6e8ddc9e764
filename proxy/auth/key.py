"""An API key as the proxy knows it: facts from its row in sluice.api_keys, never the secret.

A key is written `ctm_<id>_<secret>`: 12 characters, then 32 or more. The row holds SHA-256 of the secret
part, and a SCRAM verifier of the whole key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, Protocol, final

from mypy_extensions import i64

from proxy.auth.addresses import Network, allowed, networks

_KEY: Final = re.compile(r"(ctm_[A-Za-z0-9]{12})_([!-~]{32,256})")
_KEY_ID: Final = re.compile(r"ctm_[A-Za-z0-9]{12}")
_DIGEST_BYTES: Final = 32


class Row(Protocol):
    """A row of sluice.api_keys: an asyncpg Record, or a dict."""

    def __getitem__(self, column: str, /) -> object:
        """Return the column's value; KeyError where the row has none."""


def parse_key(text: str) -> tuple[str, str] | None:
    """Return (id, secret) of a whole key, or None for anything that can't be one."""
    matched = _KEY.fullmatch(text)
    return None if matched is None else (matched[1], matched[2])


def is_key_id(text: str) -> bool:
    """Tell whether `text` can be a key's id: `ctm_` and 12 letters or digits."""
    return _KEY_ID.fullmatch(text) is not None


@final
class Key:
    """What a login, a permission and a claim need to know of a key. Times are Unix seconds, 0.0 = never."""

    def __init__(
        self,
        id: str,
        name: str,
        user_id: str,
        permissions: Iterable[str],
        secret_sha256: bytes,
        scram: str,
        default_pool: str = "",
        allowed_addresses: Iterable[object] = (),
        rate_limit_per_minute: int = 0,
        expires_at: float = 0.0,
        revoked_at: float = 0.0,
        result_cache: bool | None = None,
    ) -> None:
        self.id = id
        self.name = name
        self.user_id = user_id
        self.permissions: frozenset[str] = frozenset(permissions)
        # As a claim carries them: the same set is always the same text.
        self.permissions_sorted: tuple[str, ...] = tuple(sorted(self.permissions))
        self.secret_sha256 = secret_sha256
        # SCRAM-SHA-256$4096:salt$stored:server, as PostgreSQL writes it; "" where only passwords can serve.
        self.scram = scram
        self.default_pool = default_pool
        self.allowed_addresses: list[Network] = networks(allowed_addresses)
        self.rate_limit_per_minute = rate_limit_per_minute  # 0 = none
        self.expires_at = expires_at
        self.revoked_at = revoked_at
        # Whether results of its reads are kept: 1, 0, or -1 where that is not for the key to say.
        self.caches: i64 = -1 if result_cache is None else 1 if result_cache else 0
        self.is_admin: bool = "admin" in self.permissions
        self.can_write: bool = self.is_admin
        for permission in self.permissions:
            if permission.startswith("write:"):
                self.can_write = True
        # All that a claim says of the key: server connections with the same identity hold the same claim.
        self.identity = "|".join([self.user_id, self.id, *self.permissions_sorted])

    @staticmethod
    def from_row(row: Row) -> Key:
        """Return the key in a row of sluice.api_keys, or of a file with the same fields.

        Raises ValueError, with the key's id, where a value is not what the column holds; KeyError where a
        column is missing.
        """
        key_id = row["id"]
        try:
            if not isinstance(key_id, str) or not is_key_id(key_id):
                raise ValueError("an id is ctm_ and 12 letters or digits")
            return Key(
                key_id,
                _text(row["name"]),
                _text(row["user_id"]),
                _strings(row["permissions"]),
                _digest(row["secret_sha256"]),
                _text(row["scram_verifier"]),
                _text(row["default_pool"]),
                _items(row["allowed_addresses"]),
                _count(row["rate_limit_per_minute"]),
                _time(row["expires_at"]),
                _time(row["revoked_at"]),
                _flag(row["result_cache"]),
            )
        except ValueError as error:
            raise ValueError(f"key {key_id}: {error}") from None

    def valid(self, now: float) -> bool:
        """Tell whether the key is neither expired nor revoked at `now`; both may lie in the future."""
        return (self.expires_at == 0.0 or now < self.expires_at) and (
            self.revoked_at == 0.0 or now < self.revoked_at
        )

    def allows(self, address: str) -> bool:
        """Tell whether a client at `address` ("" = a Unix socket) may use the key."""
        return allowed(address, self.allowed_addresses)

    def verify_secret(self, whole: str) -> bool:
        """Tell whether `whole` is this key. The work is the same whatever is wrong with it."""
        parsed = parse_key(whole)
        secret = whole if parsed is None else parsed[1]
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        same = hmac.compare_digest(digest, self.secret_sha256)
        return same and parsed is not None and parsed[0] == self.id


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"text is needed, not {type(value).__name__}")
    return value


def _count(value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("rate_limit_per_minute is a whole number")
    return value


def _items(value: object) -> list[object]:
    """Return an array; jsonb may arrive as text."""
    if value is None:
        return []
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"a list is needed, not {type(value).__name__}")
    return list(value)


def _strings(value: object) -> list[str]:
    return [_text(item) for item in _items(value)]


def _flag(value: object) -> bool | None:
    """Return true, false, or None for neither; jsonb gives it as text."""
    if value is None or isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise ValueError("result_cache is true, false or null")


def _digest(value: object) -> bytes:
    digest = bytes.fromhex(value.removeprefix("\\x")) if isinstance(value, str) else value
    if not isinstance(digest, bytes) or len(digest) != _DIGEST_BYTES:
        raise ValueError("secret_sha256 is 32 bytes, or 64 hexadecimal digits")
    return digest


def _time(value: object) -> float:
    """Return Unix seconds; a time without a zone is UTC."""
    if value is None:
        return 0.0
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise ValueError(f"a time is needed, not {type(value).__name__}")
    return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
