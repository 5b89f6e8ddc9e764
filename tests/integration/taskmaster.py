"""A plugin of fixtures: the schema taskmaster in database `app`, and pool logins that carry a user's claim."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest

from proxy import migrate
from proxy.auth.identity import Signer, SigningKey
from tests.integration.databases import quiet
from tests.integration.support import DATABASE, Installation
from tests.integration.users import KEY_ID, WRITER, MakeUser, User

pytest_plugins = ["tests.integration.versions"]


@pytest.fixture(scope="session")
def schema(installed: Installation) -> Installation:
    """Install taskmaster beside core, once for each PostgreSQL."""
    migrate.up(installed.cluster.primary.dsn(DATABASE), ["core", "taskmaster"], backup=None, say=quiet)
    installed.replicated()
    return installed


@pytest.fixture
def make_user(schema: Installation) -> Iterator[MakeUser]:
    """Give a function that opens a pool's connection with the signed claim of a user; a new one by default."""
    with schema.role("sluice_control").connect() as control:
        row = control.execute(
            "SELECT kid, ipad, opad FROM sluice.signing_keys ORDER BY created_at DESC LIMIT 1"
        ).fetchone()
    assert row is not None
    signer = Signer(SigningKey(row[0], bytes(row[1]), bytes(row[2])))
    with ExitStack() as opened:

        def make(*permissions: str, role: str = "app_rw", name: str | None = None) -> User:
            user = name or f"{uuid4()}@example.com"
            connection = opened.enter_context(schema.role(role).connect())
            info = connection.info
            claim = signer.claim(
                user, KEY_ID, permissions or WRITER, info.backend_pid, info.user, int(time.time()) + 600
            )
            connection.execute("SELECT set_config('sluice.identity', %s, false)", (claim,))
            return User(user, connection)

        yield make


@pytest.fixture
def alice(make_user: MakeUser) -> User:
    return make_user()


@pytest.fixture
def bob(make_user: MakeUser) -> User:
    return make_user()


@pytest.fixture
def boss(make_user: MakeUser) -> User:
    """Give an administrator in the admin pool."""
    return make_user("admin", *WRITER, role="app_admin")


@pytest.fixture
def superuser(schema: Installation) -> Iterator[User]:
    with schema.superuser().connect() as connection:
        yield User("", connection)
