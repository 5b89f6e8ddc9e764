"""The attacks of the forgery suite: what Mallory tries on a server connection that Victor used before.

Both have a valid key with the same permissions, and share one server connection. `{t}` is a table of both users'
rows under row-level security, `{forged}` a claim in Victor's name under a mac that was made up, `{claim}` Mallory's
own claim made out to Victor; `{secret}` is something of Victor's that nobody else may see, `{key}` his key's id.
`public.run(text)` executes its argument: the careless function that some application always has.
"""

from __future__ import annotations

from dataclasses import dataclass

REFUSED = "42501"
DONE = ""


@dataclass(frozen=True)
class Attack:
    """One attack. Whatever comes out, nothing of Victor's may be in it, and he must be himself afterwards."""

    name: str
    tries: str
    steps: tuple[str, ...]
    """What Mallory sends, one after the other."""

    comes: tuple[str, ...] = (DONE,)
    """How each step may end: SQLSTATEs, "" for success. A standby may refuse what writes, too."""

    before: tuple[str, ...] = ()
    """What Victor does on that connection before, and leaves behind when he ends."""

    primary_only: bool = False
    sees: str | None = None
    """What the last step's first value has to be."""


_SET = "set_config('sluice.identity', '{forged}', false)"
_OWN = "SELECT owner, body FROM {t}"
_NOBODY = "SELECT coalesce(sluice.current_user_id(), 'nobody')"

CLAIMS = (
    Attack("SET", "write the claim", ("SET sluice.identity = '{forged}'", _OWN), (REFUSED, DONE)),
    Attack(
        "SET LOCAL and ROLLBACK",
        "have a rollback bring back what was there before one's own claim",
        ("BEGIN", "SET LOCAL sluice.identity = '{forged}'", "ROLLBACK", _OWN),
        (DONE, REFUSED),
    ),
    Attack(
        "a rollback of the own claim",
        "begin a transaction before one's claim is set, and roll back to the other's",
        ("BEGIN", "SELECT 1/0", "ROLLBACK", "SELECT current_setting('sluice.identity', true)", _OWN),
        (DONE, "22012"),
    ),
    Attack("set_config", "write the claim by the function", (f"SELECT {_SET}", _OWN), (REFUSED, DONE)),
    Attack(
        "set_config by its schema",
        "write it by the function's full name",
        (f"SELECT pg_catalog.{_SET}", _OWN),
        (REFUSED, DONE),
    ),
    Attack(
        "set_config of a computed name",
        "hide the setting's name from the proxy",
        (
            "SELECT set_config('sluice' || '.identity', '{forged}', false)",
            _NOBODY,
            _OWN,
        ),
    ),
    Attack(
        "set_config in the condition",
        "become another in the middle of a scan",
        (f"SELECT owner FROM {{t}} WHERE {_SET} > ''",),
        (REFUSED,),
    ),
    Attack(
        "set_config in a function, in the condition",
        "the same, where the proxy can't see it",
        (f"SELECT owner FROM {{t}} WHERE public.run($$SELECT {_SET}$$) > ''", _NOBODY),
    ),
    Attack(
        "UPDATE pg_settings",
        "write the claim through the view",
        ("UPDATE pg_settings SET setting = '{forged}' WHERE name = 'sluice.identity'", _OWN),
        (REFUSED, DONE),
    ),
    Attack("DO", "run a block", (f"DO $$ BEGIN PERFORM {_SET}; END $$",), (REFUSED,)),
    Attack(
        "a function that runs text",
        "write the claim where the proxy can't see it",
        (f"SELECT public.run($$SELECT {_SET}$$)", _NOBODY, _OWN),
    ),
    Attack(
        "such a function and the rows at once",
        "become another for the rest of the statement",
        (f"SELECT owner, body FROM {{t}}, public.run($$SELECT {_SET}$$)",),
    ),
    Attack(
        "EXECUTE of SET",
        "have PL/pgSQL run a SET",
        ("SELECT public.run($$SET sluice.identity = '{forged}'$$)", _OWN),
        (DONE,),
    ),
    Attack(
        "the own claim in another's name",
        "keep the mac and change the user",
        ("SELECT public.run(format('SET sluice.identity = %L', '{claim}'))", _NOBODY, _OWN),
        sees=None,
    ),
    Attack(
        "PREPARE and EXECUTE",
        "hide the function behind a prepared statement",
        (f"PREPARE forger AS SELECT {_SET}", "EXECUTE forger", _OWN),
        (REFUSED, "26000", DONE),
    ),
    Attack(
        "a cursor",
        "hide it behind a cursor",
        ("BEGIN", f"DECLARE c CURSOR FOR SELECT {_SET}", "FETCH c", "ROLLBACK", _OWN),
        (DONE, REFUSED, "25P02"),
    ),
    Attack(
        "EXPLAIN ANALYZE",
        "have it run by EXPLAIN",
        (f"EXPLAIN (ANALYZE, VERBOSE) SELECT {_SET}", _OWN),
        (REFUSED, DONE),
    ),
    Attack("COPY TO", "have it run by COPY", (f"COPY (SELECT {_SET}) TO STDOUT", _OWN), (REFUSED, DONE)),
    Attack(
        "query_to_xml",
        "have it run by a function that takes a query",
        (f"SELECT query_to_xml($$SELECT {_SET}$$, true, true, '')", _OWN),
        (DONE, "0A000"),
    ),
    Attack(
        "query_to_xml with the rows",
        "read under another's name within one call",
        (
            "SELECT query_to_xml($$SELECT owner, body FROM {t}, "
            "set_config('sluice.identity', '{forged}', false)$$, true, true, '')",
            "SELECT query_to_xml('SELECT owner, body FROM {t}', true, true, '')",
            "SELECT table_to_xml('sluice.signing_keys', true, true, '')",
        ),
        (DONE, "0A000", REFUSED),
    ),
    Attack(
        "ts_stat",
        "have it run by the other function that takes a query",
        (
            f"SELECT count(*) FROM ts_stat($$SELECT to_tsvector('simple', {_SET})$$)",
            "SELECT word FROM ts_stat($$SELECT to_tsvector('simple', owner || ' ' || body) FROM {t}$$)",
            _OWN,
        ),
    ),
    Attack(
        "ts_rewrite",
        "and by the third",
        (
            f"SELECT ts_rewrite('a'::tsquery, $$SELECT 'a'::tsquery, plainto_tsquery('simple', {_SET})$$)",
            "SELECT ts_rewrite('a'::tsquery, $$SELECT 'a'::tsquery, plainto_tsquery('simple', body) FROM {t}$$)",
            _OWN,
        ),
        (DONE, REFUSED),
    ),
    Attack(
        "an oversized statement",
        "send more than the proxy parses",
        (f"SELECT {_SET} /* {'x' * 20000} */", _OWN),
        (DONE, REFUSED),
    ),
    Attack("RESET ALL", "end up without a claim, or with an older one", ("RESET ALL", _OWN)),
    Attack("DISCARD ALL", "the same", ("DISCARD ALL", _OWN)),
    Attack(
        "RESET ALL in a function, in a transaction",
        "the same, unseen",
        ("BEGIN", "SELECT public.run('RESET ALL')", _NOBODY, _OWN, "COMMIT", _OWN),
    ),
    Attack(
        "the claim of this connection",
        "read what is set, hoping that it is the other's",
        (
            "SELECT current_setting('sluice.identity', true)",
            "SELECT setting, reset_val, boot_val FROM pg_settings WHERE name LIKE 'sluice.%'",
            "SHOW sluice.identity",
            "SHOW ALL",
        ),
        (DONE,),
    ),
)

ROLES = (
    Attack(
        "SET ROLE",
        "become another role",
        (
            "SET ROLE sluice_admin",
            "SET SESSION AUTHORIZATION app_admin",
            "SET LOCAL ROLE sluice_definer",
            _OWN,
        ),
        (REFUSED, DONE),
    ),
    Attack(
        "SET ROLE in a function",
        "the same, unseen",
        (
            "SELECT public.run('SET ROLE sluice_admin')",
            "SELECT public.run('SET SESSION AUTHORIZATION sluice_control')",
            _OWN,
        ),
        (REFUSED, DONE),
    ),
    Attack(
        "row_security",
        "switch the policies off",
        ("SET row_security = off", _OWN, "SELECT public.run('SET row_security = off')", _OWN),
        (DONE, REFUSED),
    ),
    Attack(
        "session_replication_role",
        "switch triggers off",
        (
            "SET session_replication_role = replica",
            "SELECT public.run('SET session_replication_role = replica')",
        ),
        (REFUSED,),
    ),
    Attack(
        "the table's own switches",
        "alter what protects it",
        (
            "ALTER TABLE {t} DISABLE ROW LEVEL SECURITY",
            "SELECT public.run('ALTER TABLE {t} DISABLE ROW LEVEL SECURITY')",
            "SELECT public.run('CREATE POLICY all_of_it ON {t} USING (true)')",
            "SELECT public.run('GRANT sluice_admin TO app_rw')",
            "SELECT public.run('CREATE RULE r AS ON SELECT TO {t} DO INSTEAD SELECT 1')",
            _OWN,
        ),
        (REFUSED, DONE),
    ),
    Attack(
        "keys and signing keys",
        "read what proves who one is",
        (
            "SELECT * FROM sluice.signing_keys",
            "SELECT public.run('SELECT string_agg(ipad::text, '' '') FROM sluice.signing_keys')",
            "SELECT secret_sha256, scram_verifier FROM sluice.api_keys",
            "SELECT sluice.rotate_signing_key(true)",
            "SELECT sluice.retire_signing_key('aaaa')",
            "SELECT generate_api_key('x', 'victor', '[]')",
            "SELECT rotate_api_key('{key}')",
            "SELECT revoke_api_key('{key}')",
            "UPDATE sluice.api_keys SET user_id = 'mallory'",
            "COPY sluice.signing_keys TO STDOUT",
            "SELECT most_common_vals::text FROM pg_stats WHERE schemaname = 'sluice' AND tablename = 'signing_keys'",
            "SELECT id, user_id, name FROM sluice.api_keys",
            "SELECT * FROM sluice.access_log",
            "SELECT * FROM sluice.api_access_logs",
        ),
        (REFUSED, DONE),
    ),
    Attack(
        "files and programs",
        "read the server's files",
        (
            "SELECT pg_read_file('postgresql.conf')",
            "SELECT pg_ls_dir('.')",
            "SELECT lo_import('/etc/passwd')",
            "COPY (SELECT 1) TO PROGRAM 'cat'",
            "SELECT public.run('CREATE EXTENSION file_fdw')",
            "SELECT * FROM pg_authid",
            "SELECT passwd FROM pg_shadow",
            "SELECT pg_reload_conf()",
        ),
        (REFUSED, "58P01"),
    ),
)

ROWS = (
    Attack(
        "other ways to the rows",
        "reach them past a plain scan",
        (
            "SELECT * FROM {t} WHERE ctid = '(0,2)'",
            "SELECT * FROM ONLY {t} TABLESAMPLE SYSTEM (100)",
            "SELECT count(*), min(body), max(body) FROM {t}",
            "SELECT row_to_json(r), r::text FROM {t} r",
            "SELECT * FROM {t} WHERE owner = '{victor}'",
            "SELECT * FROM {t} WHERE owner = '{victor}' OR true ORDER BY body",
            "TABLE {t}",
            "COPY {t} TO STDOUT",
            "COPY (SELECT * FROM {t}) TO STDOUT",
            "SELECT (SELECT string_agg(body, ',') FROM {t})",
            "SELECT a.body, b.body FROM {t} a FULL JOIN {t} b ON a.id = b.id",
            "WITH RECURSIVE r AS (SELECT id, body FROM {t} UNION SELECT t.id, t.body FROM {t} t, r) SELECT * FROM r",
        ),
    ),
    Attack(
        "other ways to change them",
        "touch what can't be seen",
        (
            "UPDATE {t} SET body = 'taken' RETURNING owner, body",
            "UPDATE {t} SET owner = '{victor}' RETURNING *",
            "DELETE FROM {t} WHERE owner = '{victor}' RETURNING *",
            "INSERT INTO {t} (id, owner, body) VALUES (77, '{victor}', 'planted')",
            "INSERT INTO {t} (id, body) VALUES (2, 'x') ON CONFLICT (id) DO UPDATE SET body = 'taken' RETURNING *",
            "INSERT INTO {t} (id, body) VALUES (2, 'x') ON CONFLICT (id) DO NOTHING RETURNING *",
            "MERGE INTO {t} USING (VALUES (2)) v (id) ON {t}.id = v.id WHEN MATCHED THEN DELETE",
            "SELECT * FROM {t} WHERE owner = '{victor}' FOR UPDATE",
            "TRUNCATE {t}",
            "UPDATE {t} SET body = 'row of mallory'",
        ),
        (DONE, REFUSED),
        primary_only=True,
    ),
    Attack(
        "a leaky function",
        "have a function called with rows before they are hidden",
        (
            "BEGIN",
            "SELECT public.run($$CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 "
            "AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN true; END'$$)",
            "SELECT * FROM {t} WHERE pg_temp.leak(body)",
            "SELECT * FROM sluice.access_log WHERE pg_temp.leak(statement)",
        ),
        primary_only=True,
    ),
    Attack(
        "operators of one's own",
        "have the policy use another =",
        (
            "CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)",
            "BEGIN",
            "SELECT public.run($$CREATE FUNCTION pg_temp.yes(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE "
            "AS 'SELECT true'$$)",
            "SELECT public.run('CREATE OPERATOR pg_temp.= (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.yes)')",
            "SELECT set_config('search_path', 'pg_temp, pg_catalog, public', false)",
            _OWN,
            "SELECT owner, body FROM {t} WHERE owner OPERATOR(pg_temp.=) 'anybody'",
        ),
        (DONE, REFUSED),
        primary_only=True,
    ),
    Attack(
        "temporary tables in the way",
        "have the functions read one's own tables",
        (
            "CREATE TEMP TABLE signing_keys AS SELECT 'aaaa' AS kid, ''::bytea AS ipad, ''::bytea AS opad, "
            "'aaaa'::bytea AS kid_bytes, ''::bytea AS compare_key",
            "CREATE TEMP TABLE api_keys (id text)",
            "SET search_path = pg_temp, sluice, pg_catalog, public",
            "SELECT public.run($$SELECT set_config('sluice.identity', '{forged}', false)$$)",
            _NOBODY,
            _OWN,
        ),
        primary_only=True,
    ),
    Attack(
        "functions in the way",
        "have the functions call one's own",
        (
            "BEGIN",
            "SELECT public.run($$CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql "
            "AS 'SELECT ''''::bytea'$$)",
            "SELECT public.run($$CREATE FUNCTION pg_temp.current_user_id() RETURNS text LANGUAGE sql "
            "AS 'SELECT ''{victor}'''$$)",
            "SET search_path = pg_temp, sluice, pg_catalog, public",
            _OWN,
        ),
        primary_only=True,
    ),
    Attack(
        "search_path",
        "find other tables and functions under the same names",
        ("SET search_path = pg_temp, pg_catalog", "SELECT sluice.current_user_id()", _OWN),
        (DONE, "42P01"),
        sees=None,
    ),
)

TELLING = (
    Attack(
        "pg_stat_activity",
        "read the others' statements",
        (
            "SELECT * FROM pg_stat_activity",
            "SELECT * FROM pg_stat_get_activity(NULL)",
            "SELECT pg_stat_get_backend_activity(id) FROM pg_stat_get_backend_idset() AS id",
            "SELECT public.run($$SELECT string_agg(query, ' ') FROM pg_stat_activity$$)",
        ),
        (DONE, REFUSED),
        before=("SELECT '{secret}', pg_sleep(0)",),
    ),
    Attack(
        "other views of what goes on",
        "find statements, names or claims in the catalogue",
        (
            "SELECT * FROM pg_prepared_statements",
            "SELECT * FROM pg_cursors",
            "SELECT * FROM pg_locks",
            "SELECT * FROM pg_stat_user_tables",
            "SELECT * FROM pg_listening_channels()",
            "SELECT * FROM pg_prepared_xacts",
            "SELECT * FROM pg_stats WHERE schemaname = 'public'",
            "SELECT * FROM pg_statistic",
            "SELECT * FROM pg_db_role_setting",
            "SELECT * FROM pg_file_settings",
            "SELECT * FROM pg_hba_file_rules",
            "SELECT * FROM pg_backend_memory_contexts",
            "SELECT * FROM pg_stat_statements",
            "SELECT * FROM pg_stat_replication",
        ),
        (DONE, REFUSED, "42P01", "55000"),
        before=("SELECT '{secret}', pg_sleep(0)",),
    ),
    Attack(
        "debug output",
        "have the server print plans and parse trees with what is secret in them",
        (
            "SET client_min_messages = debug5",
            "SET debug_print_parse = on",
            "SET debug_print_rewritten = on",
            "SET debug_print_plan = on",
            _OWN,
            "SELECT sluice.current_user_id(), sluice.has_permission('read:tasks')",
            "SET plan_cache_mode = force_custom_plan",
            _OWN,
            "SELECT pg_sleep(0)",
        ),
    ),
    Attack(
        "debug output for the next",
        "leave such settings behind for the other's session",
        ("SET client_min_messages = debug5", "SET debug_print_plan = on", "SET log_statement_stats = on"),
        (DONE, REFUSED),
    ),
    Attack(
        "EXPLAIN",
        "find values in a plan",
        (
            "EXPLAIN (ANALYZE, VERBOSE, SETTINGS, FORMAT JSON) SELECT owner, body FROM {t}",
            "EXPLAIN (VERBOSE) SELECT * FROM {t} WHERE body > 'a'",
            "EXPLAIN (GENERIC_PLAN) SELECT * FROM {t} WHERE body = $1",
        ),
        (DONE, "42601", "42P02"),
    ),
    Attack(
        "error texts",
        "have an error show a row",
        (
            "SELECT body::int FROM {t}",
            "SELECT 1 / (CASE WHEN owner = '{victor}' THEN 0 ELSE 1 END) FROM {t}",
            "SELECT xmlparse(content body) FROM {t}",
            "SELECT to_date(body, 'YYYY') FROM {t}",
            "INSERT INTO {t} (id, body) VALUES (2, 'x')",
        ),
        (DONE, "22P02", "22007", "0A000", "2200N", "23505", REFUSED),
    ),
)

LEFT = (
    Attack(
        "temporary tables",
        "read the other's",
        (
            "SELECT * FROM pg_temp.left_behind",
            "SELECT * FROM left_behind",
            "SELECT relname FROM pg_class WHERE relname = 'left_behind'",
        ),
        (DONE, "42P01"),
        before=("CREATE TEMP TABLE left_behind AS SELECT '{secret}' AS body",),
        primary_only=True,
    ),
    Attack(
        "prepared statements",
        "execute the other's",
        ("EXECUTE left_behind", "DEALLOCATE left_behind", "SELECT statement FROM pg_prepared_statements"),
        (DONE, "26000"),
        before=("PREPARE left_behind AS SELECT '{secret}'",),
    ),
    Attack(
        "cursors",
        "fetch from the other's",
        ("FETCH ALL FROM left_behind", "MOVE left_behind", "CLOSE left_behind"),
        ("34000",),
        before=("DECLARE left_behind CURSOR WITH HOLD FOR SELECT '{secret}' FROM {t}",),
    ),
    Attack(
        "advisory locks",
        "find the other's still held, or let it go",
        ("SELECT pg_advisory_unlock(815)", "SELECT pg_try_advisory_xact_lock(815)"),
        before=("SELECT pg_advisory_lock(815)",),
        sees="True",
    ),
    Attack(
        "currval and lastval",
        "learn the other's last number",
        ("SELECT currval('public.forgery_numbers')", "SELECT lastval()"),
        ("55000",),
        before=("SELECT nextval('public.forgery_numbers')",),
        primary_only=True,
    ),
    Attack(
        "LISTEN",
        "hear what the other listened for",
        ("SELECT pg_notify('left_behind', 'for {victor}')", "SELECT 1", "SELECT pg_listening_channels()"),
        before=("LISTEN left_behind", "SELECT pg_notify('left_behind', '{secret}')"),
        primary_only=True,
    ),
    Attack(
        "settings",
        "find the other's values",
        (
            "SHOW app.secret",
            "SELECT current_setting('app.secret', true)",
            "SHOW application_name",
            "SELECT * FROM pg_settings",
        ),
        (DONE, "42704"),
        before=(
            "SET app.secret = '{secret}'",
            "SET application_name = '{secret}'",
            "SELECT public.run($$SET app.unseen = '{secret}'$$)",
        ),
    ),
    Attack(
        "an open transaction",
        "find the other's still open",
        ("SELECT * FROM {t} WHERE body = 'uncommitted'", "SELECT count(*) FROM {t} WHERE id = 99"),
        before=("BEGIN", "INSERT INTO {t} (id, body) VALUES (99, 'uncommitted {secret}')"),
        primary_only=True,
        sees="0",
    ),
    Attack(
        "a failed transaction",
        "find the other's still failed",
        ("SELECT 'goes on'",),
        before=("BEGIN", "SELECT 1/0"),
        sees="goes on",
    ),
)

OTHERS = (
    Attack(
        "forged notifications",
        "have the other's session ended by a made-up change of his key",
        (
            "SELECT pg_notify('sluice_keys', '{key}') FROM generate_series(1, 100)",
            "NOTIFY sluice_keys, '{key}'",
        ),
        primary_only=True,
    ),
    Attack(
        "the own backend's end",
        "end the connection that the other will use next",
        ("SELECT pg_cancel_backend(pg_backend_pid())", "SELECT pg_terminate_backend(pg_backend_pid())"),
        (DONE, "57014", "57P01", "08006"),
    ),
)

ATTACKS = (*CLAIMS, *ROLES, *ROWS, *TELLING, *LEFT, *OTHERS)
