DROP VIEW sluice.access_log;
DROP FUNCTION sluice.uuid7(), sluice.cleanup_old_logs(integer), sluice.ensure_partitions(integer, integer);
DROP TABLE sluice.api_access_logs;
