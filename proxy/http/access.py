"""Whose key is taken over HTTP; the status is for those with the permission `admin` or `read:metrics`.

Keys are held to what logins are held to: validity, addresses, and one answer for unknown, wrong, expired and
revoked. Each database has keys of its own, so a key shows only those databases that know it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Final

from proxy.auth.key import Key, parse_key
from proxy.auth.keystore import KeyStore
from proxy.auth.ratelimit import TokenBucket
from proxy.errors import (
    AddressNotAllowed,
    ClientError,
    InsufficientPermissions,
    InvalidApiKey,
    MissingApiKey,
    RateLimitExceeded,
    UpstreamUnavailable,
)

PERMISSIONS: Final = frozenset(("admin", "read:metrics"))
# Attempts that may fail from one address at once, and in each minute after; addresses that are remembered.
FAILURES: Final = 10
MOST_ADDRESSES: Final = 1000
# Seconds after which a key that comes again is entered into the access log again, and how many are remembered.
SEEN: Final = 600.0
MOST_SEEN: Final = 1000

OnRefused = Callable[[str, str, ClientError], None]
OnSeen = Callable[[Key, str, str], None]


class Access:
    """Checks keys. `stores` is by database; `refused(key id, address, error)` hears of each failed attempt, and
    `seen(key, address, database)` of a key that comes for the first time, or after ten minutes.

    Where an address has failed too often, keys that have come from there before go on; for others it is closed until
    a minute's share has come back. `clock` is monotonic, `wall` gives Unix seconds.
    """

    def __init__(
        self,
        stores: Mapping[str, KeyStore],
        refused: OnRefused,
        seen: OnSeen,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        permissions: frozenset[str] = PERMISSIONS,
    ) -> None:
        self._stores = stores
        self._refused = refused
        self._seen = seen
        self._clock = clock
        self._wall = wall
        # One of them is needed; where there are none, any key will do.
        self._permissions = permissions
        self._failures: dict[str, TokenBucket] = {}
        # By digest of address and key: no key stays in memory.
        self._known: dict[bytes, float] = {}

    def anybody(self, refused: OnRefused, seen: OnSeen) -> Access:
        """Return what takes any key, whatever its permissions; what fails at either counts for both."""
        other = Access(self._stores, refused, seen, self._clock, self._wall, frozenset())
        other._failures = self._failures
        return other

    async def databases(self, whole: str, address: str) -> list[str]:
        """Return the databases whose status the key `whole`, used from `address`, may see; raises as `keys` does."""
        return list(await self.keys(whole, address))

    async def keys(self, whole: str, address: str) -> dict[str, Key]:
        """Return the key `whole`, used from `address`, by the databases that know it.

        Raises MissingApiKey, InvalidApiKey, AddressNotAllowed, InsufficientPermissions, RateLimitExceeded and
        UpstreamUnavailable.
        """
        if not whole:
            raise MissingApiKey("an API key is needed: send it as Authorization: Bearer, or as X-API-Key")
        parsed = parse_key(whole)
        key_id = "" if parsed is None else parsed[0]
        mark = hashlib.sha256(f"{address} {whole}".encode("utf-8", "replace")).digest()
        bucket = self._failures.get(address)
        if bucket is not None and mark not in self._known and (wait := bucket.take(self._clock(), 0)):
            raise RateLimitExceeded(
                "too many failed attempts from this address", extra=f"retry_after={wait:.0f}s"
            )
        try:
            found = await self._allowed(key_id, whole, address)
        except UpstreamUnavailable:
            raise
        except ClientError as error:
            self._failed(address)
            self._known.pop(mark, None)
            self._refused(key_id, address, error)
            raise
        self._note(mark, next(iter(found.values())), address, next(iter(found)))
        return found

    async def _allowed(self, key_id: str, whole: str, address: str) -> dict[str, Key]:
        """Return the key as each database that takes it knows it; raise what the best of them is told."""
        found: dict[str, Key] = {}
        why: ClientError = InvalidApiKey("unknown")
        away: UpstreamUnavailable | None = None
        for name, store in list(self._stores.items()):
            try:
                key = await store.get(key_id) if key_id else None
            except UpstreamUnavailable as error:
                away = error
                continue
            if key is None:
                continue
            problem = self._problem(key, whole, address)
            if problem is None:
                found[name] = key
            elif isinstance(why, InvalidApiKey):
                why = problem
        if not found:
            raise why if away is None else away
        return found

    def _problem(self, key: Key, whole: str, address: str) -> ClientError | None:
        if not key.verify_secret(whole):
            return InvalidApiKey("wrong")
        now = self._wall()
        if not key.valid(now):
            return InvalidApiKey("revoked" if 0.0 < key.revoked_at <= now else "expired")
        if not key.allows(address):
            return AddressNotAllowed()
        if self._permissions and not key.permissions & self._permissions:
            return InsufficientPermissions("this needs an API key with the permission admin or read:metrics")
        return None

    def _failed(self, address: str) -> None:
        now = self._clock()
        bucket = self._failures.pop(address, None) or TokenBucket(FAILURES, now)
        bucket.take(now)
        self._failures[address] = bucket
        if len(self._failures) > MOST_ADDRESSES:
            del self._failures[next(iter(self._failures))]

    def _note(self, mark: bytes, key: Key, address: str, database: str) -> None:
        now = self._clock()
        last = self._known.get(mark)
        if last is None or now - last >= SEEN:
            self._known.pop(mark, None)
            self._known[mark] = now
            if len(self._known) > MOST_SEEN:
                del self._known[next(iter(self._known))]
            self._seen(key, address, database)
