SET LOCAL ROLE sluice_owner;
DO $do$
DECLARE
    policy record;
    name text;
    columns text;
BEGIN
    FOR policy IN SELECT * FROM pg_catalog.pg_policies WHERE schemaname = 'taskmaster' LOOP
        EXECUTE format('DROP POLICY %I ON taskmaster.%I', policy.policyname, policy.tablename);
    END LOOP;
    FOR name, columns IN
        SELECT c.oid::regclass::text, string_agg(quote_ident(a.attname), ', ')
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'taskmaster'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          AND a.attnum > 0 AND NOT a.attisdropped
        GROUP BY c.oid
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM sluice_definer, sluice_admin, sluice_readwrite, sluice_readonly', name);
        EXECUTE format('REVOKE ALL (%s) ON %s FROM sluice_definer, sluice_admin, sluice_readwrite, sluice_readonly',
                       columns, name);
        EXECUTE format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', name);
    END LOOP;
END
$do$;
SET LOCAL ROLE sluice_definer;
DROP FUNCTION taskmaster.visible_tasks();
