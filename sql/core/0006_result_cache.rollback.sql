-- Triggers on the application's tables go with the function that they call.
SET LOCAL ROLE sluice_owner;
DROP FUNCTION sluice.invalidate_cache() CASCADE;
DROP TRIGGER inherit_result_cache ON sluice.api_keys;
DROP TRIGGER announce_result_cache ON sluice.api_keys;
DROP FUNCTION sluice.inherit_result_cache();
ALTER TABLE sluice.api_keys DROP COLUMN result_cache;
SET LOCAL ROLE sluice_definer;
DROP FUNCTION sluice.keep_results(text, boolean);
