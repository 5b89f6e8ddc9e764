SET LOCAL ROLE sluice_owner;
DROP FUNCTION taskmaster.cleanup_old_logs(integer);
DROP TABLE taskmaster.system_metrics, taskmaster.audit_logs, taskmaster.logs, taskmaster.error_logs;
