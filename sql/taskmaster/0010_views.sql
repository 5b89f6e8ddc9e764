-- Views. Those of users run as whoever reads them (security_invoker), so the policies of the tables decide. A
-- materialized view has no policies: its owner sees every row, and administrators alone may read it.

SET LOCAL ROLE sluice_owner;
SET LOCAL row_security = on;  -- the first refresh reads tables with policies, as sluice_definer

CREATE VIEW taskmaster.active_tasks WITH (security_invoker) AS
SELECT id, title, type, status, priority, complexity_score, project_id, workflow_id, parent_task_id, execution_order,
       created_by, assigned_to, retry_count, max_retries, started_at, created_at, updated_at
FROM taskmaster.tasks
WHERE status IN ('pending', 'in_progress');
COMMENT ON VIEW taskmaster.active_tasks IS 'Tasks that are pending or in progress';

CREATE VIEW taskmaster.task_execution_summary WITH (security_invoker) AS
SELECT task_id, count(*) AS executions,
       count(*) FILTER (WHERE status = 'completed') AS completed,
       count(*) FILTER (WHERE status = 'failed') AS failed,
       count(*) FILTER (WHERE status IN ('pending', 'running')) AS open,
       max(attempt) AS attempts,
       round(extract(epoch FROM avg(completed_at - started_at)), 3) AS average_seconds,
       max(started_at) AS last_started_at,
       (array_agg(agent_type ORDER BY created_at DESC, id DESC))[1] AS last_agent_type,
       (array_agg(status ORDER BY created_at DESC, id DESC))[1] AS last_status
FROM taskmaster.task_executions
GROUP BY task_id;
COMMENT ON VIEW taskmaster.task_execution_summary IS 'What agents made of each task';

CREATE VIEW taskmaster.pr_validation_summary WITH (security_invoker) AS
SELECT p.id AS pull_request_id, p.task_id, p.repository, p.pr_number, p.title, p.status,
       count(v.id) AS validations,
       count(v.id) FILTER (WHERE v.status = 'passed') AS passed,
       count(v.id) FILTER (WHERE v.status = 'failed') AS failed,
       count(v.id) FILTER (WHERE v.status IN ('pending', 'running')) AS open,
       round(avg(v.score), 2) AS average_score,
       max(v.updated_at) AS last_validated_at
FROM taskmaster.pull_requests p LEFT JOIN taskmaster.validations v ON v.pull_request_id = p.id
GROUP BY p.id;
COMMENT ON VIEW taskmaster.pr_validation_summary IS 'Pull requests with the results of their validations';

CREATE VIEW taskmaster.error_summary WITH (security_invoker) AS
SELECT (created_at AT TIME ZONE 'UTC')::date AS day, error_type, count(*) AS errors,
       count(*) FILTER (WHERE NOT resolved) AS unresolved,
       count(DISTINCT task_id) AS tasks, sum(recovery_attempts) AS recovery_attempts, max(created_at) AS last_at
FROM taskmaster.error_logs
GROUP BY 1, 2;
COMMENT ON VIEW taskmaster.error_summary IS 'Errors by day (UTC) and type, for administrators';

CREATE VIEW taskmaster.recent_activity WITH (security_invoker) AS
SELECT e.id, e.created_at, e.event_type, e.actor, e.task_id, t.title AS task_title, e.workflow_execution_id, e.payload
FROM taskmaster.workflow_events e LEFT JOIN taskmaster.tasks t ON t.id = e.task_id
WHERE e.created_at >= now() - interval '7 days';
COMMENT ON VIEW taskmaster.recent_activity IS 'Events of the last seven days; read it with ORDER BY created_at DESC';

CREATE VIEW taskmaster.system_health_dashboard WITH (security_invoker) AS
SELECT 'component' AS kind, name, version, status, health_status, last_health_check,
       coalesce(last_health_check < now() - interval '5 minutes', true) AS stale
FROM taskmaster.components
UNION ALL
SELECT 'agent', name, version, CASE WHEN is_active THEN 'active' ELSE 'inactive' END, health_status,
       last_health_check, coalesce(last_health_check < now() - interval '5 minutes', true)
FROM taskmaster.agent_configurations
UNION ALL
SELECT 'integration', integration_name, NULL, status, health_status, last_health_check,
       coalesce(last_health_check < now() - interval '5 minutes', true)
FROM taskmaster.external_integrations;
COMMENT ON VIEW taskmaster.system_health_dashboard IS
    'Components, agents and integrations with their health, for read:metrics; stale: not looked at for five minutes';

CREATE VIEW taskmaster.performance_monitoring WITH (security_invoker) AS
SELECT metric_name, component, metric_unit, count(*) AS samples, avg(metric_value) AS average,
       min(metric_value) AS least, max(metric_value) AS most,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY metric_value) AS p95, max(recorded_at) AS last_recorded_at
FROM taskmaster.system_metrics
WHERE recorded_at >= now() - interval '1 hour'
GROUP BY metric_name, component, metric_unit;
COMMENT ON VIEW taskmaster.performance_monitoring IS 'Metrics of the last hour, for read:metrics';

-- Names of earlier generations

CREATE VIEW taskmaster.performance_metrics WITH (security_invoker) AS
SELECT id, metric_name, metric_value, metric_type, metric_unit, component, source_system, tags, metric_metadata,
       recorded_at, created_at, updated_at
FROM taskmaster.system_metrics;
CREATE VIEW taskmaster.pr_validations WITH (security_invoker) AS
SELECT v.id, v.task_id, v.execution_id, v.pull_request_id, p.repository, p.pr_number, p.branch_name, v.validation_type,
       v.status, v.score, v.validation_results, v.webhook_payload, v.created_at, v.updated_at
FROM taskmaster.validations v JOIN taskmaster.pull_requests p ON p.id = v.pull_request_id;
CREATE VIEW taskmaster.system_config WITH (security_invoker) AS
SELECT id, key, value, value_type, is_sensitive, description, created_at, updated_at
FROM taskmaster.configuration_settings;
CREATE VIEW taskmaster.configurations WITH (security_invoker) AS
SELECT id, key, value, value_type, is_sensitive, description, created_at, updated_at
FROM taskmaster.configuration_settings;
CREATE VIEW taskmaster.dependencies WITH (security_invoker) AS
SELECT id, task_id, depends_on_id, dependency_type, satisfied_at, created_at, updated_at
FROM taskmaster.task_dependencies;
COMMENT ON VIEW taskmaster.performance_metrics IS 'Earlier name of system_metrics';
COMMENT ON VIEW taskmaster.pr_validations IS 'Earlier name of the validations of pull requests';
COMMENT ON VIEW taskmaster.system_config IS 'Earlier name of configuration_settings';
COMMENT ON VIEW taskmaster.configurations IS 'Earlier name of configuration_settings';
COMMENT ON VIEW taskmaster.dependencies IS 'Earlier name of task_dependencies';

GRANT SELECT ON taskmaster.active_tasks, taskmaster.task_execution_summary, taskmaster.pr_validation_summary,
    taskmaster.error_summary, taskmaster.recent_activity, taskmaster.system_health_dashboard,
    taskmaster.performance_monitoring, taskmaster.performance_metrics, taskmaster.pr_validations,
    taskmaster.system_config, taskmaster.configurations, taskmaster.dependencies TO authenticated_users;
-- What the tables allow can be written by the earlier names too.
GRANT INSERT ON taskmaster.performance_metrics TO sluice_readwrite, sluice_admin;
GRANT INSERT, UPDATE, DELETE ON taskmaster.dependencies TO sluice_readwrite, sluice_admin;
GRANT INSERT, UPDATE, DELETE ON taskmaster.system_config, taskmaster.configurations TO sluice_admin;
-- The invoker reads error_logs: without a grant users would get an error in place of nothing.
GRANT SELECT ON taskmaster.error_logs TO sluice_readwrite, sluice_readonly;

GRANT CREATE ON SCHEMA taskmaster TO sluice_definer;
SET LOCAL ROLE sluice_definer;

CREATE MATERIALIZED VIEW taskmaster.task_statistics_daily AS
SELECT (created_at AT TIME ZONE 'UTC')::date AS day, type, status, count(*) AS tasks,
       round(avg(priority), 2) AS average_priority, sum(retry_count) AS retries,
       round(extract(epoch FROM avg(completed_at - started_at)) / 3600, 2) AS average_hours
FROM taskmaster.tasks
GROUP BY 1, 2, 3;
CREATE UNIQUE INDEX task_statistics_daily_key ON taskmaster.task_statistics_daily (day, type, status);
COMMENT ON MATERIALIZED VIEW taskmaster.task_statistics_daily IS 'Tasks by the day (UTC) of their creation, type and status';

CREATE MATERIALIZED VIEW taskmaster.access_statistics_hourly AS
SELECT date_trunc('hour', at, 'UTC') AS hour, coalesce(key_id, '') AS key_id, coalesce(pool, '') AS pool,
       coalesce(intent, '') AS intent, max(user_id) AS user_id, count(*) AS statements,
       count(*) FILTER (WHERE sqlstate IS NOT NULL OR code IS NOT NULL) AS errors, sum(rows) AS rows,
       sum(bytes_out) AS bytes_out, round(avg(duration_us) / 1000, 3) AS average_ms,
       round((percentile_cont(0.95) WITHIN GROUP (ORDER BY duration_us) / 1000)::numeric, 3) AS p95_ms
FROM sluice.api_access_logs
WHERE event = 'statement'
GROUP BY 1, 2, 3, 4;
CREATE UNIQUE INDEX access_statistics_hourly_key ON taskmaster.access_statistics_hourly (hour, key_id, pool, intent);
COMMENT ON MATERIALIZED VIEW taskmaster.access_statistics_hourly IS 'Statements of the access log by hour, key, pool and intent';

GRANT SELECT ON taskmaster.task_statistics_daily, taskmaster.access_statistics_hourly TO sluice_admin;

CREATE FUNCTION taskmaster.refresh_materialized_views() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
DECLARE
    -- Readers don't wait for CONCURRENTLY, which needs a temporary table; a hardened database refuses those.
    how text := CASE WHEN has_database_privilege(current_database(), 'TEMPORARY') THEN 'CONCURRENTLY' ELSE '' END;
    name text;
    refreshed integer := 0;
BEGIN
    FOR name IN
        SELECT c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = 'taskmaster'::regnamespace AND c.relkind = 'm' ORDER BY 1
    LOOP
        EXECUTE format('REFRESH MATERIALIZED VIEW %s %s', how, name);
        refreshed := refreshed + 1;
    END LOOP;
    RETURN refreshed;
END
$f$;
COMMENT ON FUNCTION taskmaster.refresh_materialized_views() IS 'Refresh the materialized views, return how many there are';
REVOKE ALL ON FUNCTION taskmaster.refresh_materialized_views() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.refresh_materialized_views() TO sluice_control, sluice_admin;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA taskmaster FROM sluice_definer;
