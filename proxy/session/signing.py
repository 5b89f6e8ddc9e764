"""Keeps a database's signing key current, through a change of keys without a gap (proxy.auth.signing)."""

from __future__ import annotations

import asyncio
import logging
import time

from proxy.auth.identity import Signer, SigningKey
from proxy.auth.signing import Rotation, Sight
from proxy.errors import UpstreamUnavailable
from proxy.session.database import Database
from proxy.upstream.cluster import Host
from proxy.upstream.control import Control

log = logging.getLogger(__name__)

MARGIN = 600.0
"""Seconds that a key is kept behind its last claim: that long a proxy may sign without reaching the table."""

_KEYS = """
SELECT kid, ipad, opad, coalesce(signed_until, created_at + interval '1 hour') < now() AS expired
  FROM sluice.signing_keys ORDER BY created_at DESC, kid
"""

# Of this database: a standby's startup process is in a transaction for ever.
_TRANSACTIONS = """
SELECT virtualtransaction FROM pg_catalog.pg_locks JOIN pg_catalog.pg_stat_activity USING (pid)
 WHERE locktype = 'virtualxid' AND granted AND pid <> pg_catalog.pg_backend_pid()
   AND datname = pg_catalog.current_database()
"""

_SIGNS = """
UPDATE sluice.signing_keys
   SET signed_until = greatest(signed_until, now() + pg_catalog.make_interval(secs => $2)) WHERE kid = $1
"""

_RETIRE = "SELECT sluice.retire_signing_key($1)"


class Signing:
    """Looks at the signing keys of every host, and gives the database the one that may sign."""

    def __init__(self, database: Database, controls: dict[str, Control]) -> None:
        self._database = database
        self._controls = controls
        self._token_ttl = database.token_ttl
        self._rotation = Rotation()
        self._signs: SigningKey | None = None
        self._noted: SigningKey | None = None
        self._noted_at = 0.0

    async def refresh(self) -> None:
        """Take a look, and change the key where that is safe.

        Raises UpstreamUnavailable where no host answers, or none has a key.
        """
        # A reload may give the cluster another list meanwhile.
        hosts = self._database.cluster.hosts
        found = await asyncio.gather(*(self._look(host) for host in hosts))
        sights = {host.name: sight for host, sight in zip(hosts, found, strict=True)}
        primary = self._database.cluster.primary
        leading = sights.get(primary.name) if primary is not None else None
        if leading is None:
            leading = next((sight for sight in found if sight is not None), None)
        if leading is None:
            raise UpstreamUnavailable(extra="no host tells its signing keys")
        if not leading.keys:
            raise UpstreamUnavailable(extra="sluice.signing_keys is empty; run `pgsluice setup`")
        key = self._rotation.look(leading.keys, sights)
        assert key is not None
        control = self._controls.get(primary.name) if primary is not None else None
        token_ttl = self._token_ttl
        if control is not None:
            await self._note(control, key, token_ttl)
        self._database.token_ttl = token_ttl
        self._sign_with(key, leading)
        if control is not None and primary is not None and leading is sights.get(primary.name):
            for kid in self._rotation.retiring(leading.expired, sights):
                await self._retire(control, kid)

    def sign_for(self, token_ttl: float) -> None:
        """Have claims hold for so many seconds: shorter at once, longer when the table has been told so."""
        if token_ttl != self._token_ttl:
            self._database.token_ttl = min(self._database.token_ttl, token_ttl)
            self._token_ttl = token_ttl
            self._noted = None

    async def _look(self, host: Host) -> Sight | None:
        """Return what the host shows. Its transactions are asked for after its keys: they may be older than those."""
        control = self._controls.get(host.name)
        if not host.up or control is None:
            return None
        try:
            async with control.connection() as connection:
                rows = await connection.fetch(_KEYS)
                # One key is in nobody's way, and pg_locks holds up whoever locks.
                open_ones = await connection.fetch(_TRANSACTIONS) if len(rows) > 1 else []
        except UpstreamUnavailable as error:
            log.warning("database %s: signing keys: %s", self._database.name, error.extra)
            return None
        return Sight(
            tuple(SigningKey(row["kid"], row["ipad"], row["opad"]) for row in rows),
            frozenset(row["kid"] for row in rows if row["expired"]),
            frozenset(row[0] for row in open_ones),
        )

    async def _note(self, control: Control, key: SigningKey, token_ttl: float) -> None:
        """Note in the table, before it is true, how long claims by `key` may hold."""
        now = time.monotonic()
        if key == self._noted and now - self._noted_at < MARGIN / 2:
            return
        try:
            async with control.connection() as connection:
                await connection.execute(_SIGNS, key.kid, token_ttl + MARGIN)
        except UpstreamUnavailable as error:
            # Reads go on without a primary, and then nobody can delete the key there either.
            log.warning("database %s: signing keys: %s", self._database.name, error.extra)
            return
        self._noted = key
        self._noted_at = now

    def _sign_with(self, key: SigningKey, leading: Sight) -> None:
        before = self._signs
        if key == before:
            return
        self._signs = key
        self._database.signer = Signer(key)
        if before is None:
            return
        log.info("database %s: signing key %s signs, %s did", self._database.name, key.kid, before.kid)
        if before not in leading.keys:
            # Its claims are worth nothing any more: they are made anew, not only when half of their time is gone.
            for host in self._database.cluster.hosts:
                for pool in host.pools.values():
                    for server in pool.servers:
                        server.renew_at = 0.0

    async def _retire(self, control: Control, kid: str) -> None:
        async with control.connection() as connection:
            if await connection.fetchval(_RETIRE, kid):
                log.info("database %s: signing key %s is gone", self._database.name, kid)
