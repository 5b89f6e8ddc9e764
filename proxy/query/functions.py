"""Which functions a read may call.

A name is judged, not a function: arguments decide among functions of one name only inside PostgreSQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Final

SNAPSHOT_QUERY: Final = """\
SELECT n.nspname, p.proname,
       CASE WHEN p.prokind = 'a' THEN coalesce((
                     SELECT pg_catalog.max(s.provolatile::text)
                       FROM pg_catalog.pg_aggregate a
                       JOIN pg_catalog.pg_proc s
                         ON s.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn,
                                      a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn)
                      WHERE a.aggfnoid = p.oid), 'v')
            WHEN p.provolatile = 'v' AND l.lanname = 'c' THEN 'c'
            ELSE p.provolatile::text END
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
 WHERE p.prokind <> 'p'"""
"""Gives the rows of `FunctionCatalog.from_rows` on a live database.

CREATE AGGREGATE marks every aggregate immutable, whatever its functions do: an aggregate is as volatile as they are.
"""


class Verdict(Enum):
    """What calling a function may do."""

    SAFE = "only reads"
    MAY_WRITE = "isn't known to only read, but leaves the session as it is"
    WRITES = "writes"
    UNKNOWN = "may do anything"


VOLATILE_READERS: Final = frozenset(
    {
        "array_sample",
        "array_shuffle",
        "clock_timestamp",
        "current_query",
        "gen_random_uuid",
        "pg_collation_actual_version",
        "pg_database_collation_actual_version",
        "pg_database_size",
        "pg_get_wal_replay_pause_state",
        "pg_indexes_size",
        "pg_is_in_recovery",
        "pg_is_wal_replay_paused",
        "pg_jit_available",
        "pg_last_wal_receive_lsn",
        "pg_last_wal_replay_lsn",
        "pg_last_xact_replay_timestamp",
        "pg_partition_ancestors",
        "pg_partition_tree",
        "pg_relation_size",
        "pg_sleep",
        "pg_sleep_for",
        "pg_sleep_until",
        "pg_table_size",
        "pg_tablespace_size",
        "pg_total_relation_size",
        "random",
        "random_normal",
        "timeofday",
        "uuidv4",
        "uuidv7",
    }
)
"""PostgreSQL's own functions that are marked volatile and only read; another schema's aren't meant."""

EXTENSION_READERS: Final = frozenset(
    {
        "gen_random_bytes",
        "gen_random_uuid",
        "gen_salt",
        "uuid_generate_v1",
        "uuid_generate_v1mc",
        "uuid_generate_v4",
    }
)
"""The same from pgcrypto and uuid-ossp, in whatever schema these were created; only functions in C are meant."""

_WRITES: Final = re.compile(
    r"(?:nextval|setval|pg_notify|pg_logical_emit_message|pg_stat_reset\w*"
    r"|lo_(?:creat|create|export|from_bytea|import|put|truncate|truncate64|unlink)|lowrite)\Z"
)
_MAY_WRITE: Final = re.compile(
    r"(?:currval|lastval|set_config|setseed|pg_advisory_.*|pg_try_advisory_.*|lo_.*|loread|txid_current"
    r"|pg_current_xact_id|pg_export_snapshot)\Z"
)
# They run text that they are given, or that a remote server runs.
_UNKNOWN: Final = re.compile(
    r"(?:query_to_xml.*|cursor_to_xml.*|ts_stat|ts_rewrite|dblink.*|crosstab.*|connectby|xpath_table)\Z"
)

# What is marked stable and yet tells of the server, of its connection or of settings: another one answers otherwise.
_OF_THE_SERVER: Final = re.compile(r"(?:pg_.*|txid_.*|inet_(?:client|server)_.*|current_setting)\Z")

_BUILTIN_FUNCTIONS: Final = Path(__file__).with_name("builtin_functions.txt")


class FunctionCatalog:
    """Verdicts on function names, from a snapshot of pg_proc and an operator's list of safe names."""

    def __init__(
        self,
        verdicts: dict[str, Verdict],
        known: frozenset[str],
        volatile: Mapping[str, str],
        restless: frozenset[str],
    ) -> None:
        self._known = known
        self._restless = restless
        self._volatile = volatile
        self._verdicts = {name: _severer(_listed(name), verdict) for name, verdict in verdicts.items()}

    @classmethod
    def builtin(cls, safe: Iterable[str] = ()) -> FunctionCatalog:
        """Return the catalogue of a database that holds PostgreSQL's own functions alone."""
        return cls.from_rows(_builtin_rows(), safe)

    @classmethod
    def from_rows(
        cls, rows: Iterable[tuple[str, str, str | bytes]], safe: Iterable[str] = ()
    ) -> FunctionCatalog:
        """Return the catalogue of a database: schema, name and provolatile of all its functions.

        A volatility of "c" is a volatile function in C, which only a superuser can have made. `safe` are names that
        the operator answers for; those that are known to write stay unsafe.
        """
        verdicts: dict[str, Verdict] = {}
        known = set()
        restless = set()
        volatile: dict[str, str] = {}
        for schema, name, volatility in rows:
            known.add(name)
            if volatility not in _STEADY:
                restless.add(name)
            verdict = _verdict_of_row(schema, name, volatility)
            if verdict is Verdict.UNKNOWN:
                volatile.setdefault(name, f"{schema}.{name}")
            if _SEVERITY[verdict] > _SEVERITY[verdicts.get(name, Verdict.SAFE)] or name not in verdicts:
                verdicts[name] = verdict
        for name in safe:
            verdicts[name] = Verdict.SAFE
        return cls(verdicts, frozenset(known), volatile, frozenset(restless))

    def judge(self, name: str) -> Verdict:
        """Return what a call of `name`, without its schema, may do; UNKNOWN for a name never heard of.

        A user's function under the name of one of PostgreSQL's counts as what it is: the name alone doesn't tell
        which of them is called.
        """
        return self._verdicts.get(name) or _listed(name) or Verdict.UNKNOWN

    def steady(self, name: str) -> bool:
        """Tell whether calls of `name` give the same again while the data stay the same.

        Every function of that name is immutable or stable, and it isn't about the server or its connection.
        """
        return name in self._known and name not in self._restless and _OF_THE_SERVER.match(name) is None

    def knows(self, name: str) -> bool:
        """Tell whether any schema holds a function of that name."""
        return name in self._known

    def volatile(self, name: str) -> str:
        """Return which user's function makes `name` unsafe, with its schema; "" where none does."""
        return self._volatile.get(name, "")

    def runs_text(self, name: str) -> bool:
        """Tell whether `name` is one of those that run SQL which they are given."""
        return _UNKNOWN.match(name) is not None


def _listed(name: str) -> Verdict | None:
    """Return the verdict on a name that no catalogue makes safe, None for any other."""
    if _WRITES.match(name):
        return Verdict.WRITES
    if _MAY_WRITE.match(name):
        return Verdict.MAY_WRITE
    return Verdict.UNKNOWN if _UNKNOWN.match(name) else None


def _severer(listed: Verdict | None, known: Verdict) -> Verdict:
    return known if listed is None or _SEVERITY[known] > _SEVERITY[listed] else listed


_STEADY: Final = ("i", "s", b"i", b"s")

_SEVERITY: Final = {Verdict.SAFE: 0, Verdict.MAY_WRITE: 1, Verdict.WRITES: 2, Verdict.UNKNOWN: 3}


def _verdict_of_row(schema: str, name: str, volatility: str | bytes) -> Verdict:
    if volatility in _STEADY or (volatility == "c" and name in EXTENSION_READERS):
        return Verdict.SAFE
    if schema != "pg_catalog":
        return Verdict.UNKNOWN
    return Verdict.SAFE if name in VOLATILE_READERS else Verdict.MAY_WRITE


@lru_cache(maxsize=1)
def _builtin_rows() -> tuple[tuple[str, str, str], ...]:
    """Read the file of PostgreSQL's own functions; its first lines tell how it is made."""
    lines = _BUILTIN_FUNCTIONS.read_text("ascii").splitlines()
    entries = [line.split(" ") for line in lines if not line.startswith("#")]
    return tuple(("pg_catalog", name, volatility) for volatility, name in entries)
