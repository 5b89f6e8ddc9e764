"""What `pgsluice check` must find: hardenings that somebody took back by hand, and what mends each of them."""

from __future__ import annotations

from typing import Final

CASES: Final[dict[str, tuple[str, str, str]]] = {
    # what is undone, a part of what is found, and the statement that mends it
    "superuser": ("ALTER ROLE app_ro SUPERUSER", "app_ro has SUPERUSER", "ALTER ROLE app_ro NOSUPERUSER;"),
    "bypassrls": ("ALTER ROLE app_rw BYPASSRLS", "app_rw has BYPASSRLS", "ALTER ROLE app_rw NOBYPASSRLS;"),
    "createrole": ("ALTER ROLE app_rw CREATEROLE", "has CREATEROLE", "ALTER ROLE app_rw NOCREATEROLE;"),
    "createdb": ("ALTER ROLE app_admin CREATEDB", "has CREATEDB", "ALTER ROLE app_admin NOCREATEDB;"),
    "replication": ("ALTER ROLE app_rw REPLICATION", "has REPLICATION", "ALTER ROLE app_rw NOREPLICATION;"),
    "group bypassrls": (
        "ALTER ROLE sluice_readonly BYPASSRLS",
        "sluice_readonly has BYPASSRLS",
        "ALTER ROLE sluice_readonly NOBYPASSRLS;",
    ),
    "definer bypassrls": (
        "ALTER ROLE sluice_definer BYPASSRLS",
        "sluice_definer has BYPASSRLS",
        "ALTER ROLE sluice_definer NOBYPASSRLS;",
    ),
    "control attributes": (
        "ALTER ROLE sluice_control CREATEROLE",
        "sluice_control has CREATEROLE",
        "ALTER ROLE sluice_control NOCREATEROLE;",
    ),
    "owner logs in": ("ALTER ROLE sluice_owner LOGIN", "may log in", "ALTER ROLE sluice_owner NOLOGIN;"),
    "no login": ("ALTER ROLE app_ro NOLOGIN", "app_ro may not log in", "ALTER ROLE app_ro LOGIN;"),
    "password expired": (
        "ALTER ROLE app_ro VALID UNTIL '2020-01-01'",
        "the password of app_ro is no longer valid",
        "ALTER ROLE app_ro VALID UNTIL 'infinity';",
    ),
    "no group": (
        "REVOKE sluice_readwrite FROM app_rw",
        "app_rw is no member of sluice_readwrite",
        "GRANT sluice_readwrite TO app_rw;",
    ),
    "no common group": (
        "REVOKE authenticated_users FROM sluice_readonly",
        "sluice_readonly is no member of authenticated_users",
        "GRANT authenticated_users TO sluice_readonly;",
    ),
    "may grant its group": (
        "GRANT sluice_readwrite TO app_rw WITH ADMIN OPTION",
        "app_rw may grant sluice_readwrite",
        "REVOKE ADMIN OPTION FOR sluice_readwrite FROM app_rw;",
    ),
    "owner's member": (
        "GRANT sluice_owner TO app_rw",
        "app_rw is a member of sluice_owner",
        "REVOKE sluice_owner FROM app_rw;",
    ),
    "definer's member, by the group": (
        "GRANT sluice_definer TO sluice_readonly",
        "sluice_readonly is a member of sluice_definer",
        "REVOKE sluice_definer FROM sluice_readonly;",
    ),
    "control's member, by another role": (
        'DROP ROLE IF EXISTS "a step"; CREATE ROLE "a step" IN ROLE sluice_control; GRANT "a step" TO app_ro',
        "app_ro is a member of a step (and so of sluice_control)",
        'REVOKE "a step" FROM app_ro;',
    ),
    "administrator": (
        "GRANT sluice_admin TO app_rw",
        "app_rw is a member of sluice_admin",
        "REVOKE sluice_admin FROM app_rw;",
    ),
    "predefined role": (
        "GRANT pg_read_all_data TO app_ro",
        "app_ro is a member of pg_read_all_data",
        "REVOKE pg_read_all_data FROM app_ro;",
    ),
    "another role": (
        "CREATE ROLE team; GRANT team TO app_rw",
        "app_rw is a member of team",
        "REVOKE team FROM app_rw;",
    ),
    "somebody else can sign": (
        "CREATE ROLE somebody LOGIN; GRANT sluice_definer TO somebody",
        "somebody is a member of sluice_definer, which can sign for any user",
        "REVOKE sluice_definer FROM somebody;",
    ),
    "control's membership": (
        "GRANT pg_monitor TO sluice_control",
        "sluice_control is a member of pg_monitor",
        "REVOKE pg_monitor FROM sluice_control;",
    ),
    "no sight of timelines": (
        "REVOKE pg_read_all_stats FROM sluice_control",
        "sluice_control is no member of pg_read_all_stats",
        "GRANT pg_read_all_stats TO sluice_control;",
    ),
    "owns a table": (
        "DROP TABLE IF EXISTS public.mine; CREATE TABLE public.mine (); ALTER TABLE public.mine OWNER TO app_rw;"
        " ALTER TABLE public.mine ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "app_rw owns the table public.mine",
        "ALTER TABLE public.mine OWNER TO sluice_owner;",
    ),
    "owns a schema": (
        'CREATE SCHEMA "My Own" AUTHORIZATION app_ro',
        'app_ro owns the schema "My Own"',
        'ALTER SCHEMA "My Own" OWNER TO sluice_owner;',
    ),
    "owns a function of ours": (
        "ALTER FUNCTION sluice.uuid7() OWNER TO app_rw",
        "app_rw owns the function sluice.uuid7()",
        "ALTER FUNCTION sluice.uuid7() OWNER TO sluice_owner;",
    ),
    "truncate": (
        "GRANT TRUNCATE, TRIGGER ON sluice.api_keys TO sluice_readwrite",
        "sluice_readwrite has TRIGGER, TRUNCATE on sluice.api_keys",
        "REVOKE TRIGGER, TRUNCATE ON sluice.api_keys FROM sluice_readwrite;",
    ),
    "references": (
        "CREATE TABLE public.parent (id int PRIMARY KEY); GRANT REFERENCES (id) ON public.parent TO PUBLIC",
        "PUBLIC has REFERENCES on public.parent",
        "REVOKE REFERENCES (id) ON public.parent FROM PUBLIC;",
    ),
    "granted by another": (
        "CREATE ROLE giver; CREATE TABLE public.given (); GRANT TRUNCATE ON public.given TO giver WITH GRANT OPTION;"
        " SET ROLE giver; GRANT TRUNCATE ON public.given TO app_ro",
        "app_ro has TRUNCATE on public.given",
        "SET ROLE giver;\nREVOKE TRUNCATE ON public.given FROM app_ro;\nRESET ROLE;",
    ),
    "signing keys": (
        "GRANT SELECT ON sluice.signing_keys TO sluice_readwrite",
        "sluice_readwrite has SELECT on sluice.signing_keys",
        "REVOKE SELECT ON sluice.signing_keys FROM sluice_readwrite;",
    ),
    "a column of the signing keys": (
        "GRANT SELECT (opad) ON sluice.signing_keys TO PUBLIC",
        "PUBLIC has SELECT on sluice.signing_keys",
        "REVOKE SELECT (opad) ON sluice.signing_keys FROM PUBLIC;",
    ),
    "the log's table": (
        "GRANT SELECT ON sluice.api_access_logs TO authenticated_users",
        "authenticated_users has SELECT on sluice.api_access_logs",
        "REVOKE SELECT ON sluice.api_access_logs FROM authenticated_users;",
    ),
    "keys can be changed": (
        "GRANT UPDATE (permissions) ON sluice.api_keys TO app_rw",
        "app_rw has UPDATE on sluice.api_keys",
        "REVOKE UPDATE (permissions) ON sluice.api_keys FROM app_rw;",
    ),
    "verifiers can be read": (
        "GRANT SELECT (scram_verifier) ON sluice.api_keys TO sluice_readonly",
        "sluice_readonly may read what proves the keys",
        "REVOKE SELECT ON sluice.api_keys FROM sluice_readonly;",
    ),
    "keys can be read as a whole": (
        "GRANT SELECT ON sluice.api_keys TO authenticated_users",
        "authenticated_users may read what proves the keys",
        "REVOKE SELECT ON sluice.api_keys FROM authenticated_users;\nGRANT SELECT (id, name, user_id, permissions,"
        " default_pool, allowed_addresses, rate_limit_per_minute, expires_at, revoked_at, created_at, last_used_at,"
        " use_count, rotated_from, result_cache) ON sluice.api_keys TO authenticated_users;",
    ),
    "the control login reads a table": (
        "CREATE TABLE public.theirs (); GRANT SELECT ON public.theirs TO sluice_control",
        "sluice_control has SELECT on public.theirs",
        "REVOKE SELECT ON public.theirs FROM sluice_control;",
    ),
    "the control login makes signing keys": (
        "GRANT INSERT ON sluice.signing_keys TO sluice_control",
        "sluice_control has INSERT on sluice.signing_keys",
        "REVOKE INSERT ON sluice.signing_keys FROM sluice_control;",
    ),
    "the control login reads no signing keys": (
        "REVOKE SELECT ON sluice.signing_keys FROM sluice_control",
        "sluice_control lacks SELECT ON sluice.signing_keys",
        "GRANT SELECT ON sluice.signing_keys TO sluice_control;",
    ),
    "the control login reads no keys": (
        "REVOKE SELECT ON sluice.api_keys FROM sluice_control",
        "sluice_control lacks SELECT ON sluice.api_keys",
        "GRANT SELECT ON sluice.api_keys TO sluice_control;",
    ),
    "the control login writes no log": (
        "REVOKE INSERT ON sluice.api_access_logs FROM sluice_control",
        "sluice_control lacks INSERT ON sluice.api_access_logs",
        "GRANT INSERT ON sluice.api_access_logs TO sluice_control;",
    ),
    "the control login reads no versions": (
        "REVOKE SELECT ON sluice.schema_checksums FROM sluice_control",
        "sluice_control lacks SELECT ON sluice.schema_checksums",
        "GRANT SELECT ON sluice.schema_checksums TO sluice_control;",
    ),
    "the control login is shut out": (
        "REVOKE USAGE ON SCHEMA sluice FROM sluice_control",
        "sluice_control lacks USAGE ON SCHEMA sluice",
        "GRANT USAGE ON SCHEMA sluice TO sluice_control;",
    ),
    "the control login makes no partitions": (
        "REVOKE EXECUTE ON FUNCTION sluice.ensure_partitions(integer, integer) FROM sluice_control",
        "sluice_control may not call sluice.ensure_partitions(integer,integer)",
        "GRANT EXECUTE ON FUNCTION sluice.ensure_partitions(integer,integer) TO sluice_control;",
    ),
    "create in public": (
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "PUBLIC may create objects in schema public",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;",
    ),
    "an administrator in our schema": (
        "GRANT CREATE ON SCHEMA sluice TO sluice_admin",
        "sluice_admin may create objects in schema sluice",
        "REVOKE CREATE ON SCHEMA sluice FROM sluice_admin;",
    ),
    "create schemas": (
        "GRANT CREATE ON DATABASE app TO sluice_readwrite",
        "sluice_readwrite may create objects in database app",
        "REVOKE CREATE ON DATABASE app FROM sluice_readwrite;",
    ),
    "truncate on what comes": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner IN SCHEMA public GRANT TRUNCATE ON TABLES TO sluice_readwrite",
        "sluice_readwrite will have TRUNCATE on each new table of sluice_owner",
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner IN SCHEMA public REVOKE TRUNCATE ON TABLES"
        " FROM sluice_readwrite;",
    ),
    "no row security": (
        "ALTER TABLE sluice.api_keys DISABLE ROW LEVEL SECURITY",
        "sluice.api_keys is open to app_admin, app_ro, app_rw without row-level security",
        "ALTER TABLE sluice.api_keys ENABLE ROW LEVEL SECURITY;",
    ),
    "not forced": (
        "ALTER TABLE sluice.api_keys NO FORCE ROW LEVEL SECURITY",
        "sluice.api_keys is open to app_admin, app_ro, app_rw without FORCE",
        "ALTER TABLE sluice.api_keys FORCE ROW LEVEL SECURITY;",
    ),
    "an administrator's table": (
        'SET ROLE app_admin; CREATE TABLE public."of Admin" (id int)',
        'public."of Admin" is open to app_admin, app_ro, app_rw without row-level security',
        'ALTER TABLE public."of Admin" ENABLE ROW LEVEL SECURITY;',
    ),
    "a view with its owner's rights": (
        "CREATE VIEW public.seen AS SELECT id FROM sluice.api_keys; GRANT SELECT ON public.seen TO app_ro",
        "the view public.seen shows app_ro what its owner postgres may see",
        "ALTER VIEW public.seen SET (security_invoker = true);",
    ),
    "an administrator's view": (
        "SET ROLE app_admin; CREATE VIEW public.all_keys AS SELECT id FROM sluice.api_keys",
        "the view public.all_keys shows app_ro, app_rw what its owner app_admin may see",
        "ALTER VIEW public.all_keys SET (security_invoker = true);",
    ),
    "a materialized view": (
        "CREATE MATERIALIZED VIEW public.stored AS SELECT 1 AS one; GRANT SELECT ON public.stored TO sluice_readonly",
        "the materialized view public.stored can have no policies and is open to app_ro",
        "REVOKE ALL ON public.stored FROM PUBLIC, authenticated_users, app_ro, sluice_readonly;",
    ),
    "a policy for all": (
        "CREATE POLICY everything ON sluice.api_keys FOR SELECT TO sluice_readonly USING (true)",
        "policy everything shows all rows of sluice.api_keys to sluice_readonly",
        "DROP POLICY everything ON sluice.api_keys;",
    ),
    "a function of ours for all": (
        "GRANT EXECUTE ON FUNCTION sluice.create_signing_key() TO PUBLIC",
        "PUBLIC may call sluice.create_signing_key()",
        "REVOKE EXECUTE ON FUNCTION sluice.create_signing_key() FROM PUBLIC;",
    ),
    "new functions for all": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_definer GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
        "PUBLIC may call each new function of sluice_definer",
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_definer REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;",
    ),
    "new functions of one schema for all": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner IN SCHEMA sluice GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
        "PUBLIC may call each new function of sluice_owner",
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner IN SCHEMA sluice REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;",
    ),
    "a definer function's owner": (
        "ALTER FUNCTION sluice.current_user_id() OWNER TO postgres",
        "sluice.current_user_id() runs with the rights of its owner postgres",
        "ALTER FUNCTION sluice.current_user_id() OWNER TO sluice_definer;",
    ),
    "somebody's definer function": (
        "CREATE FUNCTION public.loophole() RETURNS int LANGUAGE sql SECURITY DEFINER"
        " SET search_path = pg_catalog, pg_temp AS 'SELECT 1'",
        "public.loophole() runs with the rights of its owner postgres, whom no policy binds",
        "ALTER FUNCTION public.loophole() OWNER TO sluice_definer;",
    ),
    "a definer function without a path": (
        "ALTER FUNCTION sluice.has_permission(text) RESET search_path",
        "sluice.has_permission(text) runs with its owner's rights and has no search_path of its own",
        "ALTER FUNCTION sluice.has_permission(text) SET search_path = pg_catalog, pg_temp;",
    ),
    "a path with temporary tables first": (
        "ALTER FUNCTION sluice.revoke_api_key(text) SET search_path = pg_catalog",
        "sluice.revoke_api_key(text) runs with its owner's rights and has a search_path that doesn't end",
        "ALTER FUNCTION sluice.revoke_api_key(text) SET search_path = pg_catalog, pg_temp;",
    ),
    "a function that tells too much": (
        "ALTER FUNCTION sluice.current_key_id() RESET debug_print_plan",
        "sluice.current_key_id() doesn't set debug_print_plan = off",
        "ALTER FUNCTION sluice.current_key_id() SET debug_print_plan = off;",
    ),
    "nobody may ask who is asking": (
        "REVOKE EXECUTE ON FUNCTION sluice.current_user_id(text) FROM authenticated_users",
        "authenticated_users may not call sluice.current_user_id(text)",
        "GRANT EXECUTE ON FUNCTION sluice.current_user_id(text) TO authenticated_users;",
    ),
    "others' statements": (
        "GRANT EXECUTE ON FUNCTION pg_stat_get_backend_activity(integer) TO PUBLIC",
        "pg_stat_get_backend_activity(integer) shows PUBLIC the statements of others",
        "REVOKE EXECUTE ON FUNCTION pg_stat_get_backend_activity(integer) FROM PUBLIC;\n"
        "GRANT EXECUTE ON FUNCTION pg_stat_get_backend_activity(integer) TO sluice_control, pg_monitor;",
    ),
    "statements of the past": (
        "CREATE EXTENSION pg_stat_statements SCHEMA public",
        "public.pg_stat_statements shows PUBLIC the statements of others",
        "REVOKE SELECT ON public.pg_stat_statements FROM PUBLIC;\n"
        "GRANT SELECT ON public.pg_stat_statements TO sluice_control, pg_monitor;",
    ),
    "activity is tracked": (
        "ALTER ROLE app_rw RESET track_activities",
        "app_rw doesn't start with track_activities = off",
        "ALTER ROLE app_rw SET track_activities = off;",
    ),
    "activity is tracked here": (
        "ALTER ROLE app_ro IN DATABASE app SET track_activities = on",
        "app_ro in database app starts with track_activities = 'on', not by setup",
        "ALTER ROLE app_ro IN DATABASE app RESET track_activities;",
    ),
    "readers write by default": (
        "ALTER ROLE app_ro SET default_transaction_read_only = off",
        "app_ro doesn't start with default_transaction_read_only = on",
        "ALTER ROLE app_ro SET default_transaction_read_only = on;",
    ),
    "a library for everybody": (
        "ALTER DATABASE app SET session_preload_libraries = 'auto_explain'",
        "database app starts with session_preload_libraries = 'auto_explain', not by setup",
        "ALTER DATABASE app RESET session_preload_libraries;",
    ),
    "a timeout for everybody": (
        "ALTER ROLE ALL SET statement_timeout = '1h'",
        "role all starts with statement_timeout = '1h', not by setup",
        "ALTER ROLE ALL RESET statement_timeout;",
    ),
    "an identity for everybody": (
        "ALTER ROLE app_rw SET sluice.identity = 'x'",
        "app_rw starts with sluice.identity = 'x', not by setup",
        "ALTER ROLE app_rw RESET sluice.identity;",
    ),
    "no signing key": (
        "DELETE FROM sluice.signing_keys",
        "there is no signing key",
        "SELECT sluice.create_signing_key();",
    ),
    "old extension": (
        "CREATE EXTENSION pg_trgm VERSION '1.5'",
        "extension pg_trgm is 1.5, 1.6 is installed",
        "ALTER EXTENSION pg_trgm UPDATE;",
    ),
}


# What serve refuses: an undoing, and what a client could do then.
BYPASSES: Final = (
    "superuser",
    "bypassrls",
    "createrole",
    "replication",
    "group bypassrls",
    "owner's member",
    "definer's member, by the group",
    "control's member, by another role",
    "administrator",
    "predefined role",
    "owns a table",
    "owns a function of ours",
    "signing keys",
    "a column of the signing keys",
)
