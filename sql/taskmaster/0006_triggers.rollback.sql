SET LOCAL ROLE sluice_owner;
DO $do$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT t.tgname, t.tgrelid::regclass AS name FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = 'taskmaster'::regnamespace AND NOT t.tgisinternal AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', made.tgname, made.name);
    END LOOP;
END
$do$;
DROP FUNCTION taskmaster.touch(), taskmaster.check_links(), taskmaster.check_creator(),
    taskmaster.change_status(),
    taskmaster.next_statuses(text);
SET LOCAL ROLE sluice_definer;
DROP FUNCTION taskmaster.add_user(), taskmaster.log_status(), taskmaster.check_dependency(), taskmaster.audit(),
    taskmaster.mask_sensitive(jsonb);
