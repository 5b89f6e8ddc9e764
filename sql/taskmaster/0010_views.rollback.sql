SET LOCAL ROLE sluice_definer;
DROP FUNCTION taskmaster.refresh_materialized_views();
DROP MATERIALIZED VIEW taskmaster.access_statistics_hourly, taskmaster.task_statistics_daily;
SET LOCAL ROLE sluice_owner;
REVOKE SELECT ON taskmaster.error_logs FROM sluice_readwrite, sluice_readonly;
DROP VIEW taskmaster.dependencies, taskmaster.configurations, taskmaster.system_config, taskmaster.pr_validations,
    taskmaster.performance_metrics, taskmaster.performance_monitoring, taskmaster.system_health_dashboard,
    taskmaster.recent_activity, taskmaster.error_summary, taskmaster.pr_validation_summary,
    taskmaster.task_execution_summary, taskmaster.active_tasks;
