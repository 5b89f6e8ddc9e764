SET LOCAL ROLE sluice_owner;
DROP FUNCTION taskmaster.record_metric(text, double precision, text, text, text, jsonb, text, jsonb),
    taskmaster.get_slow_queries(double precision, interval, integer);
SET LOCAL ROLE sluice_definer;
DROP FUNCTION taskmaster.log_api_call(uuid, text, text, jsonb, jsonb, integer, jsonb, jsonb, integer, text, uuid,
    text, integer);
