-- The roles that own and use everything else, and the schema. Roles belong to the whole cluster, so a second
-- database finds them there already; their attributes are set again, because a role of that name that can
-- log in or bypass row-level security would break what the rest relies on.

DO $do$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['sluice_owner', 'sluice_definer', 'sluice_control', 'authenticated_users',
                                     'sluice_readwrite', 'sluice_readonly', 'sluice_admin']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        ELSIF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name
                      AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication
                           OR (rolcanlogin AND role_name <> 'sluice_control'))) THEN
            RAISE EXCEPTION 'role % exists with more rights than it may have', role_name
                USING HINT = format('ALTER ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION;',
                                    role_name);
        END IF;
    END LOOP;
    FOREACH role_name IN ARRAY ARRAY['sluice_readwrite', 'sluice_readonly', 'sluice_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_auth_members
                       WHERE roleid = 'authenticated_users'::regrole AND member = role_name::regrole) THEN
            EXECUTE format('GRANT authenticated_users TO %I', role_name);
        END IF;
    END LOOP;
    -- A superuser may act as any role. Anybody else who migrates has to be a member.
    IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        GRANT sluice_owner, sluice_definer, sluice_control TO CURRENT_USER;
    END IF;
END
$do$;

COMMENT ON ROLE sluice_owner IS 'pgsluice: owns tables and security_invoker views';
COMMENT ON ROLE sluice_definer IS 'pgsluice: owns the SECURITY DEFINER functions';
COMMENT ON ROLE sluice_control IS 'pgsluice: the proxy''s own login: keys, signing keys, access log, health';
COMMENT ON ROLE authenticated_users IS 'pgsluice: whatever every key may do';
COMMENT ON ROLE sluice_readwrite IS 'pgsluice: logins of pools that read and write';
COMMENT ON ROLE sluice_readonly IS 'pgsluice: logins of pools that only read';
COMMENT ON ROLE sluice_admin IS 'pgsluice: logins of pools for keys with the permission admin';

ALTER SCHEMA sluice OWNER TO sluice_owner;
-- Whoever may act as sluice_owner can migrate, not only who did it first.
ALTER TABLE sluice.schema_version OWNER TO sluice_owner;
GRANT USAGE ON SCHEMA sluice TO sluice_definer, sluice_control, authenticated_users;

-- Without IN SCHEMA: a revocation for one schema cannot take away what the global default grants.
ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner, sluice_definer REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

SET LOCAL ROLE sluice_owner;

CREATE TABLE sluice.schema_checksums (
    revision text PRIMARY KEY,
    file text NOT NULL,
    sha256 text NOT NULL CHECK (length(sha256) = 64),
    applied_at timestamptz NOT NULL DEFAULT now(),
    applied_by text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE sluice.schema_checksums IS 'The SHA-256 of each migration as it was applied: what `validate` compares';
