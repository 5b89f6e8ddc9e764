-- Results of reads that the proxy keeps: what a key says of it, and how the proxy hears of writes that pass it by.

SET LOCAL ROLE sluice_owner;

ALTER TABLE sluice.api_keys ADD COLUMN result_cache boolean;
COMMENT ON COLUMN sluice.api_keys.result_cache IS
    'whether results of the key''s reads are kept, where the database keeps any; NULL: as pool and database say';
GRANT SELECT (result_cache) ON sluice.api_keys TO authenticated_users;

CREATE TRIGGER announce_result_cache AFTER UPDATE OF result_cache ON sluice.api_keys
    FOR EACH ROW EXECUTE FUNCTION sluice.announce_key();

CREATE FUNCTION sluice.inherit_result_cache() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
    NEW.result_cache := (SELECT k.result_cache FROM sluice.api_keys k WHERE k.id = NEW.rotated_from);
    RETURN NEW;
END
$f$;
COMMENT ON FUNCTION sluice.inherit_result_cache() IS 'Give a key that replaces another what that said of results';
REVOKE ALL ON FUNCTION sluice.inherit_result_cache() FROM PUBLIC;

CREATE TRIGGER inherit_result_cache BEFORE UPDATE OF rotated_from ON sluice.api_keys
    FOR EACH ROW WHEN (NEW.rotated_from IS NOT NULL) EXECUTE FUNCTION sluice.inherit_result_cache();

-- For triggers AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE … FOR EACH STATEMENT. Whoever makes one needs EXECUTE;
-- whoever sets it off doesn't.
CREATE FUNCTION sluice.invalidate_cache() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
DECLARE
    relation text;
BEGIN
    PERFORM pg_notify('sluice_cache', TG_TABLE_NAME);
    FOREACH relation IN ARRAY coalesce(TG_ARGV, '{}') LOOP
        PERFORM pg_notify('sluice_cache', relation);
    END LOOP;
    RETURN NULL;
END
$f$;
COMMENT ON FUNCTION sluice.invalidate_cache() IS
    'Have the proxies drop the results that were read from the trigger''s table and from the relations in its arguments';
REVOKE ALL ON FUNCTION sluice.invalidate_cache() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sluice.invalidate_cache() TO sluice_admin;

GRANT CREATE ON SCHEMA sluice TO sluice_definer;
SET LOCAL ROLE sluice_definer;

CREATE FUNCTION sluice.keep_results(key_id text, keep boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
BEGIN
    PERFORM sluice.check_key_admin();
    UPDATE sluice.api_keys SET result_cache = keep WHERE id = key_id;
    RETURN FOUND;
END
$f$;
COMMENT ON FUNCTION sluice.keep_results(text, boolean) IS
    'Say whether results of a key''s reads are kept, NULL for as pool and database say; false if there is no such key. Needs admin';
REVOKE ALL ON FUNCTION sluice.keep_results(text, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sluice.keep_results(text, boolean) TO sluice_control, sluice_admin;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA sluice FROM sluice_definer;
