from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import pytest

from proxy.auth.key import Key
from proxy.auth.keystore import KeyStore
from proxy.errors import (
    AddressNotAllowed,
    ClientError,
    InsufficientPermissions,
    InvalidApiKey,
    MissingApiKey,
    RateLimitExceeded,
    UpstreamUnavailable,
)
from proxy.http.access import FAILURES, MOST_ADDRESSES, MOST_SEEN, SEEN, Access

NOW = 1_763_680_000.0
HOME = "127.0.0.1"


def whole(name: str) -> str:
    return f"ctm_{name:a<12}_{'s' * 32}"


def key(
    name: str, *permissions: str, addresses: tuple[str, ...] = (), expires: float = 0.0, revoked: float = 0.0
) -> Key:
    digest = hashlib.sha256(b"s" * 32).digest()
    return Key(
        f"ctm_{name:a<12}", "a key", f"{name}@example.com", permissions, digest, "",
        allowed_addresses=addresses, expires_at=expires, revoked_at=revoked,
    )  # fmt: skip


@dataclass
class World:
    """Keys by database, a clock, and what was heard."""

    databases: dict[str, list[Key]]
    now: float = 0.0
    away: set[str] = field(default_factory=set)
    readings: int = 0
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def access(self) -> Access:
        return Access(
            {name: self._store(name) for name in self.databases},
            lambda key_id, address, error: self.refused.append(
                (key_id, address, error.why if isinstance(error, InvalidApiKey) else error.code)
            ),
            lambda key, address, database: self.seen.append((key.id, address, database)),
            lambda: self.now,
            lambda: NOW,
        )

    def _store(self, name: str) -> KeyStore:
        async def fetch(key_id: str) -> Key | None:
            self.readings += 1
            if name in self.away:
                raise UpstreamUnavailable()
            return next((each for each in self.databases[name] if each.id == key_id), None)

        return KeyStore(fetch, 1.0, lambda: self.now)


KEYS = [
    key("admin", "admin"),
    key("metrics", "read:metrics", "read:tasks"),
    key("writer", "read:tasks", "write:tasks"),
    key("expired", "admin", expires=NOW - 1),
    key("expiring", "admin", expires=NOW + 1),
    key("revoked", "admin", revoked=NOW - 1),
    key("elsewhere", "admin", addresses=("192.0.2.0/24",)),
    key("here", "admin", addresses=("127.0.0.0/8",)),
]


@pytest.mark.parametrize("name", ["admin", "metrics", "expiring", "here"])
async def test_who_has_the_permission_is_let_in(name: str) -> None:
    world = World({"app": KEYS})
    assert await world.access().databases(whole(name), HOME) == ["app"]
    assert world.seen == [(whole(name)[:16], HOME, "app")]
    assert world.refused == []


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        (whole("unknown"), InvalidApiKey, "unknown"),
        ("nonsense", InvalidApiKey, "unknown"),
        (whole("admin") + "x", InvalidApiKey, "wrong"),
        (whole("expired"), InvalidApiKey, "expired"),
        (whole("revoked"), InvalidApiKey, "revoked"),
        (whole("elsewhere"), AddressNotAllowed, "ADDRESS_NOT_ALLOWED"),
        (whole("writer"), InsufficientPermissions, "INSUFFICIENT_PERMISSIONS"),
        # Who hasn't proven the key isn't told what it may do.
        (whole("writer") + "x", InvalidApiKey, "wrong"),
        (whole("elsewhere") + "x", InvalidApiKey, "wrong"),
    ],
)
async def test_who_is_refused_is_heard_of(given: str, error: type[ClientError], why: str) -> None:
    world = World({"app": KEYS})
    with pytest.raises(error):
        await world.access().databases(given, HOME)
    assert [(address, reason) for _, address, reason in world.refused] == [(HOME, why)]
    assert world.seen == []


async def test_the_reasons_of_a_bad_key_look_the_same() -> None:
    access = World({"app": KEYS}).access()
    told = set()
    for given in (whole("unknown"), whole("admin") + "x", whole("expired"), whole("revoked")):
        with pytest.raises(InvalidApiKey) as refused:
            await access.databases(given, HOME)
        told.add((refused.value.message, refused.value.detail))
    assert len(told) == 1


async def test_no_key_at_all_is_no_attempt() -> None:
    world = World({"app": KEYS})
    access = world.access()
    for _ in range(FAILURES * 2):
        with pytest.raises(MissingApiKey):
            await access.databases("", HOME)
    assert world.refused == []
    assert await access.databases(whole("admin"), HOME) == ["app"]


async def test_a_key_sees_only_databases_that_know_it() -> None:
    world = World(
        {"app": [key("one", "admin"), key("both", "admin")], "other": [key("both", "read:metrics")]}
    )
    access = world.access()
    assert await access.databases(whole("one"), HOME) == ["app"]
    assert await access.databases(whole("both"), HOME) == ["app", "other"]


async def test_a_database_where_the_key_lacks_the_permission_is_not_seen() -> None:
    world = World({"app": [key("both", "read:tasks")], "other": [key("both", "read:metrics")]})
    assert await world.access().databases(whole("both"), HOME) == ["other"]


async def test_a_database_that_is_away_hides_no_other_and_counts_as_no_failure() -> None:
    world = World({"app": KEYS, "other": KEYS}, away={"app"})
    access = world.access()
    assert await access.databases(whole("admin"), HOME) == ["other"]
    with pytest.raises(UpstreamUnavailable):
        await access.databases(whole("unknown"), HOME)
    assert world.refused == []


async def fail(access: Access, address: str = HOME, times: int = FAILURES) -> None:
    for number in range(times):
        with pytest.raises(InvalidApiKey):
            await access.databases(whole(f"guess{number}"), address)


async def test_an_address_that_fails_too_often_has_to_wait() -> None:
    world = World({"app": KEYS})
    access = world.access()
    await fail(access)
    readings = world.readings
    with pytest.raises(RateLimitExceeded, match="too many failed attempts") as told:
        await access.databases(whole("guess"), HOME)
    assert told.value.extra == "retry_after=6s"
    with pytest.raises(RateLimitExceeded):
        await access.databases(whole("admin"), HOME)
    # Nothing is read or logged for those.
    assert (world.readings, len(world.refused)) == (readings, FAILURES)
    assert await access.databases(whole("admin"), "192.0.2.1") == ["app"]
    world.now += 7
    assert await access.databases(whole("admin"), HOME) == ["app"]


async def test_a_key_that_came_before_goes_on_while_its_address_has_to_wait() -> None:
    world = World({"app": KEYS})
    access = world.access()
    await access.databases(whole("admin"), HOME)
    await fail(access)
    assert await access.databases(whole("admin"), HOME) == ["app"]
    with pytest.raises(RateLimitExceeded):
        await access.databases(whole("admin") + "x", HOME)


async def test_a_key_that_came_before_and_is_revoked_has_to_wait_too() -> None:
    world = World({"app": [key("admin", "admin")]})
    access = world.access()
    await access.databases(whole("admin"), HOME)
    world.databases["app"] = [key("admin", "admin", revoked=NOW - 1)]
    world.now += 2
    await fail(access, times=FAILURES - 1)
    with pytest.raises(InvalidApiKey):
        await access.databases(whole("admin"), HOME)
    with pytest.raises(RateLimitExceeded):
        await access.databases(whole("admin"), HOME)


async def test_a_key_is_entered_into_the_log_once_in_ten_minutes() -> None:
    world = World({"app": KEYS})
    access = world.access()
    for _ in range(5):
        await access.databases(whole("admin"), HOME)
        world.now += 2
    assert len(world.seen) == 1
    world.now += SEEN
    await access.databases(whole("admin"), HOME)
    assert len(world.seen) == 2


async def test_what_is_remembered_is_bounded() -> None:
    access = World({"app": KEYS}).access()
    for number in range(MOST_ADDRESSES + 50):
        await fail(access, f"10.0.{number // 250}.{number % 250}", times=1)
    for number in range(MOST_SEEN + 50):
        await access.databases(whole("admin"), f"10.1.{number // 250}.{number % 250}")
    assert len(access._failures) == MOST_ADDRESSES
    assert len(access._known) == MOST_SEEN


async def test_where_any_key_will_do_only_permissions_are_not_asked_for() -> None:
    world = World({"app": KEYS, "other": [key("admin", "admin")]})
    access = world.access().anybody(lambda *_: None, lambda *_: None)
    found = await access.keys(whole("writer"), HOME)
    assert {name: each.id for name, each in found.items()} == {"app": KEYS[2].id}
    assert list(await access.keys(whole("admin"), HOME)) == ["app", "other"]
    for name in ("expired", "revoked"):
        with pytest.raises(InvalidApiKey):
            await access.keys(whole(name), HOME)
    with pytest.raises(AddressNotAllowed):
        await access.keys(whole("elsewhere"), HOME)
    with pytest.raises(MissingApiKey):
        await access.keys("", HOME)


async def test_failures_at_one_door_count_at_the_other() -> None:
    world = World({"app": KEYS})
    access = world.access()
    other = access.anybody(lambda *_: None, lambda *_: None)
    for door in (access, other) * (FAILURES // 2):
        with pytest.raises(InvalidApiKey):
            await door.keys("x", HOME)
    for door in (access, other):
        with pytest.raises(RateLimitExceeded):
            await door.keys(whole("admin"), HOME)
