DROP TABLE sluice.schema_checksums;

ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner, sluice_definer GRANT EXECUTE ON FUNCTIONS TO PUBLIC;

REVOKE ALL ON SCHEMA sluice FROM sluice_definer, sluice_control, authenticated_users;
ALTER TABLE sluice.schema_version OWNER TO CURRENT_USER;
ALTER SCHEMA sluice OWNER TO CURRENT_USER;

-- A role that has logins as members, or that owns or may do something in this or another database, stays.
DO $do$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['sluice_readwrite', 'sluice_readonly', 'sluice_admin', 'authenticated_users',
                                     'sluice_control', 'sluice_definer', 'sluice_owner']
    LOOP
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_catalog.pg_auth_members m
            JOIN pg_catalog.pg_roles r ON r.oid = m.roleid
            JOIN pg_catalog.pg_roles u ON u.oid = m.member
            WHERE r.rolname = role_name AND u.rolname <> current_user);
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name AND rolcanlogin);
        BEGIN
            EXECUTE format('DROP ROLE %I', role_name);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            RAISE NOTICE 'role % is still in use and stays', role_name;
        END;
    END LOOP;
END
$do$;
