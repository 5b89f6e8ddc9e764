"""What the cases run on: tables, a sequence and functions, and a proxy with two server connections."""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from tests.integration.support import DATABASE, Installation

PROXY: Final[dict[str, Any]] = {
    "databases": {
        DATABASE: {
            "routing": {"enabled": False},
            "pool_defaults": {"acquire_timeout": "3s"},
            "pools": {
                "primary": {"min": 2, "max": 2},
                "readonly": {"min": 0, "max": 1},
                "priority": {"min": 0, "max": 1},
                "background": {"min": 0, "max": 1},
                "admin": {"min": 2, "max": 2},
            },
        }
    }
}
"""Changes to a test proxy's configuration: all that a client sends goes to the same login on the primary."""

ROLES: Final = {"writer": "app_rw", "admin": "app_admin"}
PERMISSIONS: Final = {
    "writer": ["read:tasks", "write:tasks"],
    "admin": ["admin", "read:tasks", "write:tasks"],
}

_MAKE: Final = """
CREATE SCHEMA differential;
GRANT USAGE ON SCHEMA differential TO PUBLIC;
CREATE SEQUENCE public.d_sequence;
CREATE TABLE public.d_items (id integer PRIMARY KEY, name text, amount numeric);
CREATE TABLE public.d_parents (id integer PRIMARY KEY);
CREATE TABLE public.d_children (
    id integer PRIMARY KEY, parent integer REFERENCES public.d_parents DEFERRABLE INITIALLY IMMEDIATE
);
CREATE TABLE differential.d_items (id integer PRIMARY KEY, name text);
INSERT INTO differential.d_items VALUES (1, 'of another schema');
GRANT SELECT, INSERT, UPDATE, DELETE ON
    public.d_items, public.d_parents, public.d_children, differential.d_items TO PUBLIC;
GRANT USAGE, SELECT, UPDATE ON SEQUENCE public.d_sequence TO PUBLIC;
CREATE FUNCTION public.d_set(name text, value text, local boolean) RETURNS text LANGUAGE plpgsql
    AS 'BEGIN RETURN set_config(name, value, local); END';
CREATE FUNCTION public.d_tokyo() RETURNS text LANGUAGE sql SET timezone = 'Asia/Tokyo'
    AS 'SELECT current_setting(''timezone'')';
CREATE FUNCTION public.d_notice(text) RETURNS text LANGUAGE plpgsql
    AS 'BEGIN RAISE NOTICE ''says %'', $1; RETURN $1; END';
CREATE FUNCTION public.d_fail(code text, message text) RETURNS integer LANGUAGE plpgsql
    AS 'BEGIN
        RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, DETAIL = ''a detail'', HINT = ''a hint'',
            COLUMN = ''name'', CONSTRAINT = ''a_rule'', DATATYPE = ''text'', TABLE = ''d_items'', SCHEMA = ''public'';
    END';
CREATE FUNCTION public.d_divide(integer) RETURNS integer LANGUAGE plpgsql AS 'BEGIN RETURN 10 / $1; END';
CREATE FUNCTION public.d_caught(integer) RETURNS integer LANGUAGE plpgsql
    AS 'BEGIN RETURN public.d_divide($1); EXCEPTION WHEN division_by_zero THEN RAISE NOTICE ''caught''; RETURN -1; END';
CREATE FUNCTION public.d_said(text) RETURNS void LANGUAGE plpgsql
    AS 'BEGIN
        RAISE DEBUG ''debug %'', $1; RAISE LOG ''log %'', $1; RAISE INFO ''info %'', $1;
        RAISE NOTICE ''notice %'', $1; RAISE WARNING ''warning %'', $1 USING ERRCODE = ''01234'', DETAIL = ''more'';
    END';
CREATE PROCEDURE public.d_commit(name text) LANGUAGE plpgsql
    AS 'BEGIN INSERT INTO public.d_items VALUES (100, name); COMMIT; END';
CREATE PROCEDURE public.d_setting(value text) LANGUAGE plpgsql
    AS 'BEGIN PERFORM set_config(''timezone'', value, false); END';
"""
_CLEAR: Final = """
SET lock_timeout = '5s';
DELETE FROM public.d_children; DELETE FROM public.d_parents; DELETE FROM public.d_items;
INSERT INTO public.d_items VALUES (1, 'one', 1.5), (2, 'two', NULL), (3, 'three', 3), (4, 'four', 4), (5, NULL, 5);
INSERT INTO public.d_parents VALUES (1), (2);
SELECT setval('public.d_sequence', 1, false);
"""
_REMOVE: Final = """
DROP SCHEMA differential CASCADE;
DROP TABLE public.d_children, public.d_parents, public.d_items;
DROP SEQUENCE public.d_sequence;
DROP FUNCTION public.d_set, public.d_tokyo, public.d_notice;
DROP FUNCTION public.d_fail, public.d_divide, public.d_caught, public.d_said;
DROP PROCEDURE public.d_commit, public.d_setting;
"""


class Stage:
    """The objects of the corpus, in an installation; made on entry, gone on exit."""

    def __init__(self, installation: Installation) -> None:
        self._connection: psycopg.Connection[Any] = installation.superuser().connect()
        self._replicas = [
            installation.superuser(server, "postgres").connect() for server in installation.cluster.replicas
        ]

    def __enter__(self) -> Stage:
        self._connection.execute(_MAKE)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.execute(_REMOVE)
        for connection in (self._connection, *self._replicas):
            connection.close()

    def clear(self) -> None:
        """Put tables and sequence back to where each case starts, and wait until replicas have them so."""
        self._connection.execute(_CLEAR)
        written = self._connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        for replica in self._replicas:
            replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            while replica.execute(replayed, written).fetchone() != (True,):
                time.sleep(0.001)
