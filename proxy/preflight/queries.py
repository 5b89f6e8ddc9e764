"""Every question to a server's catalogue. All of it may be asked by the control login, and on a standby.

$1 is the names of the roles that are looked at; for relations and functions, of the pools' logins. Names of schemas
and roles come as they are, those of relations and functions quoted and with their schema: the search_path is
pg_catalog.
"""

from __future__ import annotations

from typing import Final

# What PostgreSQL itself brings.
_OWN: Final = "n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
# What an extension brought is its author's business.
_EXTENSION: Final = (
    "EXISTS (SELECT FROM pg_depend e"
    " WHERE e.classid = '{table}'::regclass AND e.objid = {oid} AND e.deptype = 'e')"
)
# What follows from a membership that is a finding itself is none of its own.
_BOUND: Final = """NOT r.rolsuper
               AND NOT EXISTS (SELECT FROM pg_roles t WHERE pg_has_role(r.oid, t.oid, 'USAGE')
                               AND t.rolname IN ('sluice_owner', 'sluice_definer', 'sluice_control',
                                                 'pg_read_all_data', 'pg_write_all_data'))"""
_ROLES: Final = "unnest($1::text[]) AS asked (rolname) JOIN pg_roles r USING (rolname)"

HOST: Final = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS release,
       current_database() AS database, pg_is_in_recovery() AS in_recovery,
       extract(epoch FROM clock_timestamp())::float8 AS clock,
       (pg_control_system()).system_identifier AS system,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END
           - '0/0'::pg_lsn AS position,
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS paused,
       EXISTS (SELECT FROM pg_stat_wal_receiver) AS streaming,
       extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS replay_age,
       (SELECT CASE WHEN ssl THEN version END FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS tls,
       2 = (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'sluice' AND c.relname IN ('api_keys', 'signing_keys')) AS installed
"""

# The roles that are asked for and all that they are members of, however indirectly.
_REACHED: Final = """
WITH RECURSIVE reached (oid) AS (
    SELECT oid FROM pg_roles WHERE rolname = ANY ($1::text[])
    UNION SELECT m.roleid FROM pg_auth_members m JOIN reached ON m.member = reached.oid)
"""
ROLES: Final = (
    _REACHED
    + """
SELECT r.rolname AS role, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolcanlogin,
       rolvaliduntil <= now() AS expired, r.oid < 16384 AS builtin
FROM pg_roles r JOIN reached USING (oid)
"""
)
# Also who may become one of the roles that are trusted, whoever it is.
MEMBERSHIPS: Final = (
    _REACHED
    + """
SELECT u.rolname AS member, g.rolname AS role, b.rolname AS grantor, m.grantor = 10 AS by_superuser,
       m.admin_option AS admin, pg_has_role(u.oid, g.oid, 'USAGE') AS inherits, u.rolsuper AS member_is_superuser,
       u.rolcanlogin AS member_can_login
FROM pg_auth_members m
JOIN pg_roles u ON u.oid = m.member JOIN pg_roles g ON g.oid = m.roleid LEFT JOIN pg_roles b ON b.oid = m.grantor
WHERE m.member IN (SELECT oid FROM reached)
   OR g.rolname IN ('sluice_owner', 'sluice_definer', 'sluice_control')
ORDER BY 1, 2
"""
)
# What the roles own, but temporary objects, sequences of a column, and default privileges.
OWNED: Final = f"""
SELECT r.rolname AS role, o.type, o.identity, coalesce(c.relrowsecurity, false) AS protected,
       p.prosecdef AS definer
FROM {_ROLES}
JOIN pg_shdepend d ON d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'o'
     AND d.classid <> 'pg_default_acl'::regclass
     AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) o
LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
WHERE coalesce(o.schema, '') NOT LIKE 'pg\\_temp%' AND o.identity NOT LIKE 'pg\\_temp%'
  AND coalesce(c.relpersistence, 'p') <> 't'
  AND NOT EXISTS (SELECT FROM pg_depend s WHERE s.classid = d.classid AND s.objid = d.objid
                  AND s.refobjsubid > 0 AND s.deptype IN ('a', 'i') AND c.relkind = 'S')
ORDER BY 1, 2, 3
"""

RELATIONS: Final = f"""
SELECT c.oid::regclass::text AS relation, n.nspname AS schema, c.relkind::text AS kind,
       c.relispartition AS partition, c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced,
       o.rolname AS owner, o.rolsuper OR o.rolbypassrls AS owner_unbound,
       coalesce(pg_has_role(c.relowner, to_regrole('sluice_admin'), 'MEMBER'), false) AS owner_is_admin,
       'security_invoker=true' = ANY (c.reloptions) OR 'security_invoker=on' = ANY (c.reloptions)
           OR 'security_invoker=1' = ANY (c.reloptions) AS invoker,
       coalesce(obj_description(c.oid, 'pg_class') LIKE '%pgsluice: public%', false) AS public,
       coalesce(root.relrowsecurity OR root.relowner = to_regrole('sluice_owner'), false) AS root_protected,
       ARRAY(SELECT rolname::text FROM unnest($1::text[]) AS asked (rolname) JOIN pg_roles r USING (rolname)
             WHERE {_BOUND}
               AND has_schema_privilege(r.oid, n.oid, 'USAGE')
               AND (has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE')
                    OR has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE'))
             ORDER BY 1) AS open_to
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_roles o ON o.oid = c.relowner
LEFT JOIN pg_class root ON c.relispartition AND root.oid = pg_partition_root(c.oid)
WHERE {_OWN} AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
  AND NOT {_EXTENSION.format(table="pg_class", oid="c.oid")}
ORDER BY 1
"""

# A policy that lets everything through, for a role other than the administrators and our own.
OPEN_POLICIES: Final = f"""
SELECT c.oid::regclass::text AS relation, quote_ident(p.polname) AS policy,
       coalesce(r.rolname, 'PUBLIC') AS role
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN unnest(p.polroles) AS granted (oid) LEFT JOIN pg_roles r ON r.oid = granted.oid
WHERE {_OWN} AND p.polpermissive AND p.polcmd IN ('*', 'r') AND pg_get_expr(p.polqual, p.polrelid) = 'true'
  AND (granted.oid = 0 OR r.rolname = ANY ($1::text[]))
  AND NOT coalesce(obj_description(c.oid, 'pg_class') LIKE '%pgsluice: public%', false)
ORDER BY 1, 2
"""

# Privileges on tables, and on their columns, of the roles and of PUBLIC; an owner's own are left out.
RELATION_GRANTS: Final = f"""
SELECT c.oid::regclass::text AS relation, n.nspname AS schema, g.column, o.rolname AS owner,
       coalesce(r.rolname, 'PUBLIC') AS grantee, b.rolname AS grantor, g.privilege_type AS privilege,
       {_EXTENSION.format(table="pg_class", oid="c.oid")} AS extension
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_roles o ON o.oid = c.relowner
CROSS JOIN LATERAL (
    SELECT NULL::text AS column, x.* FROM aclexplode(c.relacl) x
    UNION ALL
    SELECT a.attname::text, x.* FROM pg_attribute a CROSS JOIN LATERAL aclexplode(a.attacl) x
    WHERE a.attrelid = c.oid AND NOT a.attisdropped) g
LEFT JOIN pg_roles r ON r.oid = g.grantee
LEFT JOIN pg_roles b ON b.oid = g.grantor
WHERE {_OWN} AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND g.grantee <> c.relowner
  AND (g.grantee = 0 OR r.rolname = ANY ($1::text[]))
ORDER BY 1, grantee, privilege
"""
KEY_COLUMNS: Final = """
SELECT quote_ident(a.attname) AS column
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'sluice' AND c.relname = 'api_keys' AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attname NOT IN ('secret_sha256', 'scram_verifier')
ORDER BY a.attnum
"""

SPACE_GRANTS: Final = f"""
SELECT 'SCHEMA' AS kind, n.nspname AS name, coalesce(r.rolname, 'PUBLIC') AS grantee, g.privilege_type AS privilege
FROM pg_namespace n
CROSS JOIN LATERAL aclexplode(n.nspacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
WHERE {_OWN} AND g.grantee <> n.nspowner AND (g.grantee = 0 OR r.rolname = ANY ($1::text[]))
UNION ALL
SELECT 'DATABASE', d.datname, coalesce(r.rolname, 'PUBLIC'), g.privilege_type
FROM pg_database d
CROSS JOIN LATERAL aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) g
LEFT JOIN pg_roles r ON r.oid = g.grantee
WHERE d.datname = current_database() AND g.grantee <> d.datdba
  AND (g.grantee = 0 OR r.rolname = ANY ($1::text[]))
ORDER BY 1, 2, 3, 4
"""

# What new tables and functions will be open to. A row with privilege NULL: to none of the roles.
DEFAULT_GRANTS: Final = """
SELECT o.rolname AS owner, n.nspname AS schema, d.defaclobjtype::text AS kind, g.grantee, g.privilege
FROM pg_default_acl d
JOIN pg_roles o ON o.oid = d.defaclrole
LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace
LEFT JOIN LATERAL (
    SELECT coalesce(r.rolname, 'PUBLIC') AS grantee, x.privilege_type AS privilege
    FROM aclexplode(d.defaclacl) x LEFT JOIN pg_roles r ON r.oid = x.grantee
    WHERE x.grantee <> d.defaclrole AND (x.grantee = 0 OR r.rolname = ANY ($1::text[]))) g ON true
ORDER BY 1, 2, 3, 4, 5
"""

# Our own functions, and all that run with their owner's rights.
FUNCTIONS: Final = f"""
SELECT p.oid::regprocedure::text AS function, n.nspname AS schema, o.rolname AS owner,
       o.rolsuper OR o.rolbypassrls AS owner_unbound, p.prosecdef AS definer,
       CASE p.prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END AS kind,
       coalesce(p.proconfig, '{{}}') AS settings,
       EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
               WHERE g.grantee = 0) AS by_public,
       ARRAY(SELECT rolname::text FROM unnest($1::text[]) AS asked (rolname) JOIN pg_roles r USING (rolname)
             WHERE {_BOUND}
               AND has_function_privilege(r.oid, p.oid, 'EXECUTE')
               AND has_schema_privilege(r.oid, n.oid, 'USAGE')
             ORDER BY 1) AS open_to
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_roles o ON o.oid = p.proowner
WHERE {_OWN} AND NOT {_EXTENSION.format(table="pg_proc", oid="p.oid")}
  AND (p.prosecdef OR o.rolname IN ('sluice_owner', 'sluice_definer') OR n.nspname = 'sluice')
ORDER BY 1
"""
# Whether the roles may call what they need.
CALLABLE: Final = """
SELECT r.rolname AS grantee, p.oid::regprocedure::text AS function,
       has_function_privilege(r.oid, p.oid, 'EXECUTE') AS may
FROM unnest($1::text[], $2::text[]) AS w (grantee, function)
JOIN pg_roles r ON r.rolname = w.grantee
JOIN pg_namespace n ON n.nspname = 'sluice'
JOIN pg_proc p ON p.pronamespace = n.oid AND p.oid::regprocedure::text = w.function
"""
# Functions and views of the server itself that show others' statements; PUBLIC may not use them.
STATISTICS: Final = """
SELECT 'FUNCTION' AS kind, p.oid::regprocedure::text AS name
FROM pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
WHERE g.grantee = 0
  AND (p.oid = 'pg_catalog.pg_stat_get_backend_activity(integer)'::regprocedure
       OR (p.proname IN ('pg_stat_statements', 'pg_stat_statements_info')
           AND EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                       WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
                         AND e.extname = 'pg_stat_statements')))
UNION ALL
SELECT 'TABLE', c.oid::regclass::text
FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) g
WHERE g.grantee = 0 AND c.relname IN ('pg_stat_statements', 'pg_stat_statements_info')
ORDER BY 1, 2
"""

SETTINGS: Final = """
SELECT r.rolname AS role, d.datname AS database, split_part(s.setting, '=', 1) AS setting,
       substr(s.setting, strpos(s.setting, '=') + 1) AS value
FROM pg_db_role_setting t CROSS JOIN LATERAL unnest(t.setconfig) AS s (setting)
LEFT JOIN pg_roles r ON r.oid = t.setrole LEFT JOIN pg_database d ON d.oid = t.setdatabase
WHERE (t.setrole = 0 OR r.rolname = ANY ($1::text[]))
  AND (t.setdatabase = 0 OR d.datname = current_database())
ORDER BY 1, 2, 3
"""

# A name can't be looked up in a schema that may not be used: the tables are found in pg_class.
CONTROL_MAY: Final = """
SELECT has_schema_privilege(n.oid, 'USAGE') AS schema,
       bool_and(has_table_privilege(c.oid, 'SELECT')) FILTER (WHERE c.relname = 'signing_keys') AS signing_keys,
       bool_and(has_table_privilege(c.oid, 'SELECT')) FILTER (WHERE c.relname = 'api_keys') AS api_keys,
       bool_and(has_table_privilege(c.oid, 'INSERT'))
           FILTER (WHERE c.relname = 'api_access_logs') IS NOT FALSE AS api_access_logs,
       bool_and(has_table_privilege(c.oid, 'SELECT'))
           FILTER (WHERE c.relname = 'schema_checksums') IS NOT FALSE AS schema_checksums
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
WHERE n.nspname = 'sluice'
GROUP BY n.oid
"""
SIGNING_KEYS: Final = "SELECT kid FROM sluice.signing_keys ORDER BY created_at DESC, kid"
CHECKSUMS: Final = "SELECT revision, sha256 FROM sluice.schema_checksums ORDER BY revision"
# As sluice.ensure_partitions() makes them: one a day, in UTC.
PARTITIONS: Final = """
SELECT c.oid::regclass::text AS relation, day::date::text AS day, day::date - (now() AT TIME ZONE 'UTC')::date AS ahead
FROM pg_partitioned_table p
JOIN pg_class c ON c.oid = p.partrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
JOIN pg_roles o ON o.oid = c.relowner
CROSS JOIN generate_series((now() AT TIME ZONE 'UTC')::date::timestamp,
                           (now() AT TIME ZONE 'UTC')::date::timestamp + interval '2 days', '1 day') AS day
WHERE p.partstrat = 'r' AND p.partnatts = 1 AND a.atttypid = 'timestamptz'::regtype AND o.rolname = 'sluice_owner'
  AND NOT EXISTS (
    SELECT FROM pg_inherits i JOIN pg_class part ON part.oid = i.inhrelid
    WHERE i.inhparent = c.oid AND part.relname = c.relname || to_char(day, '"_"YYYYMMDD'))
ORDER BY 1, 2
"""
EXTENSIONS: Final = """
SELECT e.extname AS extension, e.extversion AS version, a.default_version AS newest,
       (SELECT array_agg(p.oid::regprocedure::text ORDER BY p.oid)
        FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
        WHERE d.classid = 'pg_proc'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
          AND e.extname = 'dblink' AND EXISTS (
            SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g WHERE g.grantee = 0)
       ) AS by_public
FROM pg_extension e LEFT JOIN pg_available_extensions a ON a.name = e.extname
ORDER BY 1
"""
