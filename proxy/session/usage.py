"""Writes back to sluice.api_keys how often keys were used, and when last."""

from __future__ import annotations

from collections.abc import Callable

from proxy.auth.usage import Usage, Use
from proxy.upstream.control import Control

BATCH = 1000
"""Keys that one UPDATE takes: a few milliseconds, for which it holds their rows."""

# Rows are locked in the order of their ids, so that two proxies can't wait for each other; what somebody else holds
# is skipped, and told, for the next time. A key that is gone is neither locked nor told.
# unnest() of several arrays is a construct of the language, without a schema.
_WRITE = """
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::float8[]) AS given (id, statements, last_at)
), free AS (
    SELECT id FROM sluice.api_keys WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), written AS (
    UPDATE sluice.api_keys AS key
       SET use_count = key.use_count + given.statements,
           last_used_at = greatest(key.last_used_at, pg_catalog.to_timestamp(given.last_at))
      FROM given JOIN free USING (id) WHERE key.id = given.id
    RETURNING key.id
)
SELECT id FROM sluice.api_keys WHERE id = ANY ($1) AND id NOT IN (SELECT id FROM written)
"""


async def write_usage(usage: Usage, primary: Callable[[], Control]) -> None:
    """Write all of `usage` through the control connections that `primary` returns.

    Raises ClientError where there is no primary; what wasn't written stays in `usage`. Should the connection break
    while the server commits, or the caller give up, a batch may be counted twice.
    """
    waiting = len(usage)
    while waiting > 0:
        uses = usage.take(BATCH)
        waiting -= len(uses)
        try:
            usage.put_back(await _write(uses, primary()))
        except BaseException:
            # Also where the write is given up: better twice than never.
            usage.put_back(uses)
            raise


async def _write(uses: list[Use], control: Control) -> list[Use]:
    """Write one batch; returns those whose rows are locked."""
    async with control.connection() as connection:
        rows = await connection.fetch(
            _WRITE,
            [use.key_id for use in uses],
            [use.statements for use in uses],
            [use.last_at for use in uses],
        )
    locked = {row[0] for row in rows}
    return [use for use in uses if use.key_id in locked]
