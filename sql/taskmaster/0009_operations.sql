-- Metrics, calls of integrations, slow statements.

SET LOCAL ROLE sluice_owner;
-- Nothing here touches rows, but the bodies of SQL functions are checked as queries of their owner.
SET LOCAL row_security = on;

CREATE FUNCTION taskmaster.record_metric(metric_name text, metric_value double precision,
    metric_type text DEFAULT 'gauge', metric_unit text DEFAULT NULL, component text DEFAULT NULL,
    tags jsonb DEFAULT '{}', source_system text DEFAULT NULL, metric_metadata jsonb DEFAULT '{}') RETURNS uuid
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $f$
#variable_conflict error
DECLARE
    new_id uuid := sluice.uuid7();
BEGIN
    INSERT INTO taskmaster.system_metrics (id, metric_name, metric_value, metric_type, metric_unit, component, tags,
                                           source_system, metric_metadata)
    VALUES (new_id, record_metric.metric_name, record_metric.metric_value, record_metric.metric_type,
            record_metric.metric_unit, record_metric.component, record_metric.tags, record_metric.source_system,
            record_metric.metric_metadata);
    RETURN new_id;
END
$f$;
COMMENT ON FUNCTION taskmaster.record_metric(text, double precision, text, text, text, jsonb, text, jsonb) IS
    'Write a measurement of now and return its id; needs write:metrics';

CREATE FUNCTION taskmaster.get_slow_queries(slower_than_ms double precision DEFAULT 1000,
    since interval DEFAULT '1 day', max_rows integer DEFAULT 20)
RETURNS TABLE (fingerprint text, statement text, calls bigint, average_ms numeric, p95_ms numeric, slowest_ms numeric,
               last_at timestamptz)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $f$
    SELECT l.fingerprint, max(l.statement), count(*), round(avg(l.duration_us) / 1000, 1),
           round((percentile_cont(0.95) WITHIN GROUP (ORDER BY l.duration_us) / 1000)::numeric, 1),
           round(max(l.duration_us) / 1000.0, 1), max(l.at)
    FROM sluice.access_log l
    WHERE l.at >= now() - since AND l.event = 'statement' AND l.duration_us >= slower_than_ms * 1000
    GROUP BY l.fingerprint
    ORDER BY max(l.duration_us) DESC
    LIMIT max_rows
$f$;
COMMENT ON FUNCTION taskmaster.get_slow_queries(double precision, interval, integer) IS
    'Return statements of the access log that took longer, the slowest first: one''s own, all of them for administrators';

GRANT CREATE ON SCHEMA taskmaster TO sluice_definer;
SET LOCAL ROLE sluice_definer;

CREATE FUNCTION taskmaster.log_api_call(integration_id uuid, endpoint text, method text,
    request_headers jsonb DEFAULT '{}', request_body jsonb DEFAULT NULL, response_status integer DEFAULT NULL,
    response_headers jsonb DEFAULT '{}', response_body jsonb DEFAULT NULL, response_time_ms integer DEFAULT NULL,
    correlation_id text DEFAULT NULL, task_id uuid DEFAULT NULL, error_message text DEFAULT NULL,
    retry_count integer DEFAULT 0) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
#variable_conflict error
DECLARE
    everything boolean := pg_has_role(session_user, 'sluice_admin', 'USAGE');
    me text := CASE WHEN everything THEN sluice.current_user_id() ELSE sluice.current_user_id('write:tasks') END;
    used taskmaster.external_integrations;
    new_id uuid := sluice.uuid7();
BEGIN
    IF me IS NULL AND NOT everything THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied to log calls of integrations',
            DETAIL = 'INSUFFICIENT_PERMISSIONS', HINT = 'Use a key that holds the permission write:tasks.';
    END IF;
    IF NOT everything AND log_api_call.task_id IS NOT NULL
       AND log_api_call.task_id NOT IN (SELECT taskmaster.visible_tasks())
    THEN
        RAISE foreign_key_violation USING MESSAGE = format('there is no row %s in tasks', log_api_call.task_id);
    END IF;
    SELECT * INTO used FROM taskmaster.external_integrations i WHERE i.id = log_api_call.integration_id FOR UPDATE;
    IF used.id IS NULL OR used.status <> 'active' THEN
        RAISE no_data_found USING MESSAGE = format('there is no active integration %s', log_api_call.integration_id);
    END IF;
    -- clock_timestamp(): a long transaction must not live in a minute of its own.
    IF used.usage_reset_at IS NULL OR used.usage_reset_at <= clock_timestamp() THEN
        used.current_usage := 0;
        used.usage_reset_at := clock_timestamp() + interval '1 minute';
    END IF;
    IF used.current_usage >= used.rate_limit_per_minute THEN
        RAISE configuration_limit_exceeded USING
            MESSAGE = format('%s has been called %s times in this minute', used.integration_name, used.current_usage),
            DETAIL = 'RATE_LIMIT_EXCEEDED',
            HINT = format('Try again in %s seconds.',
                          ceil(extract(epoch FROM used.usage_reset_at - clock_timestamp()))::integer);
    END IF;
    UPDATE taskmaster.external_integrations i
    SET current_usage = used.current_usage + 1, usage_reset_at = used.usage_reset_at, last_used_at = clock_timestamp()
    WHERE i.id = used.id;
    INSERT INTO taskmaster.external_api_calls (id, integration_id, endpoint, method, request_headers, request_body,
        response_status, response_headers, response_body, response_time_ms, correlation_id, user_id, task_id,
        error_message, retry_count)
    VALUES (new_id, used.id, log_api_call.endpoint, upper(log_api_call.method),
        taskmaster.mask_sensitive(log_api_call.request_headers), taskmaster.mask_sensitive(log_api_call.request_body),
        log_api_call.response_status, taskmaster.mask_sensitive(log_api_call.response_headers),
        taskmaster.mask_sensitive(log_api_call.response_body), log_api_call.response_time_ms,
        log_api_call.correlation_id, me, log_api_call.task_id, log_api_call.error_message, log_api_call.retry_count);
    RETURN new_id;
END
$f$;
COMMENT ON FUNCTION taskmaster.log_api_call(uuid, text, text, jsonb, jsonb, integer, jsonb, jsonb, integer, text, uuid,
    text, integer) IS
    'Write a call of an integration, with sensitive values masked, count it, and return its id. Raises 53400 over the '
    'integration''s limit, P0002 where none is active; needs write:tasks';

REVOKE ALL ON FUNCTION taskmaster.log_api_call(uuid, text, text, jsonb, jsonb, integer, jsonb, jsonb, integer, text,
    uuid, text, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.log_api_call(uuid, text, text, jsonb, jsonb, integer, jsonb, jsonb, integer, text,
    uuid, text, integer) TO sluice_readwrite, sluice_admin;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA taskmaster FROM sluice_definer;
REVOKE ALL ON FUNCTION taskmaster.record_metric(text, double precision, text, text, text, jsonb, text, jsonb),
    taskmaster.get_slow_queries(double precision, interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.record_metric(text, double precision, text, text, text, jsonb, text, jsonb)
    TO sluice_readwrite, sluice_admin;
GRANT EXECUTE ON FUNCTION taskmaster.get_slow_queries(double precision, interval, integer) TO authenticated_users;
