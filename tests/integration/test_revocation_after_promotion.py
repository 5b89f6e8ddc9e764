"""Keys that are revoked at a new primary while the old one lives on, as behind a network that was cut."""

from __future__ import annotations

import psycopg
import pytest

from tests.drills.stage import promote, staged
from tests.integration.support import wait_until


@pytest.mark.long
def test_the_new_primary_is_listened_to_though_the_old_one_lives() -> None:
    # Whoever is not told asks again after this.
    with staged(
        1, ("CREATE TABLE public.notes (n integer)",), changes={"auth": {"cache_ttl": "10m"}}
    ) as stage:
        (login,) = stage.logins(1)
        with login.connect() as connection:
            connection.execute("SELECT 1")
            promoted = promote(stage.installation, stage.cluster.replicas[0]).server
            with stage.installation.superuser(promoted).connect() as primary:
                host = f"{promoted.name} is the primary"
                wait_until(lambda: stage.proxy.said(host), message="the proxy follows")
                primary.execute("SELECT sluice.revoke_api_key(%s)", (login.user,))

                def closed() -> bool:
                    try:
                        connection.execute("SELECT 1")
                    except psycopg.OperationalError:
                        return True
                    return False

                wait_until(closed, 5.0, "the session ends")
