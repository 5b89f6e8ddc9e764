"""Reading API keys from the hosts: what the primary says counts, a replica may be behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from proxy.auth.key import Key
from proxy.errors import ClientError, UpstreamUnavailable
from proxy.upstream.cluster import Cluster
from proxy.upstream.control import Control

# The column result_cache came later: a database whose migration is still to be applied has none.
_FETCH_KEY: Final = """
SELECT id, name, user_id, permissions, secret_sha256, scram_verifier, default_pool, allowed_addresses,
       rate_limit_per_minute, expires_at, revoked_at, to_jsonb(k) ->> 'result_cache' AS result_cache
  FROM sluice.api_keys k WHERE id = $1
"""


class KeyReading:
    """Reads keys of one database; `alarm` is told of a primary that doesn't answer."""

    def __init__(self, cluster: Cluster, controls: Mapping[str, Control], alarm: Callable[[], None]) -> None:
        self._cluster = cluster
        self._controls = controls
        self._alarm = alarm
        # Tells whether a key is known already, and need not be read from a replica.
        self.knows: Callable[[str], bool] = lambda key_id: False

    async def fetch(self, key_id: str) -> Key | None:
        """Return the key, None where there is none; from a replica only a key of which nothing is known.

        That a replica lacks a key, or has it as it was before, says nothing: it may not have replayed that yet. Where
        no primary was ever seen, replicas are all there is, and count. Raises UpstreamUnavailable where nobody knows.
        """
        cluster = self._cluster
        primary = cluster.primary
        failure: ClientError = cluster.unavailable(True)
        if primary is not None:
            try:
                return await self._ask(primary.name, key_id)
            except UpstreamUnavailable as error:
                self._alarm()
                failure = error
        is_all_there_is = not cluster.had_primary
        if self.knows(key_id) and not is_all_there_is:
            raise failure
        for host in sorted(cluster.replicas, key=lambda each: each.fresh_as_of, reverse=True):
            try:
                key = await self._ask(host.name, key_id)
            except UpstreamUnavailable as error:
                failure = error
                continue
            if key is not None or is_all_there_is:
                return key
        raise failure

    async def _ask(self, host: str, key_id: str) -> Key | None:
        async with self._controls[host].connection() as connection:
            row = await connection.fetchrow(_FETCH_KEY, key_id)
        return Key.from_row(row) if row is not None else None
