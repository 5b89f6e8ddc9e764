-- Errors, logs, audit and metrics, in partitions of a day. They have no foreign keys: logs outlive what they
-- tell of. sluice.ensure_partitions() makes the partitions, taskmaster.cleanup_old_logs() drops old ones.

SET LOCAL ROLE sluice_owner;

CREATE TABLE taskmaster.error_logs (
    id uuid NOT NULL DEFAULT sluice.uuid7(),
    task_id uuid,
    execution_id uuid,
    error_type text NOT NULL CHECK (error_type IN ('database', 'api', 'validation', 'network', 'timeout',
                                                   'authentication', 'authorization', 'system')),
    error_message text NOT NULL,
    error_stack text,
    context jsonb NOT NULL DEFAULT '{}',
    recovery_attempts integer NOT NULL DEFAULT 0 CHECK (recovery_attempts >= 0),
    resolved boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE INDEX error_logs_type_idx ON taskmaster.error_logs (error_type, created_at DESC);
CREATE INDEX error_logs_task_id_idx ON taskmaster.error_logs (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX error_logs_execution_id_idx ON taskmaster.error_logs (execution_id) WHERE execution_id IS NOT NULL;
CREATE INDEX error_logs_open_idx ON taskmaster.error_logs (created_at DESC) WHERE NOT resolved;
COMMENT ON TABLE taskmaster.error_logs IS 'Errors: users report those of their tasks, administrators read and resolve them';
COMMENT ON COLUMN taskmaster.error_logs.execution_id IS 'id of a task_execution';

CREATE TABLE taskmaster.logs (
    id uuid NOT NULL DEFAULT sluice.uuid7(),
    component_name text NOT NULL CHECK (component_name <> ''),
    level text NOT NULL DEFAULT 'info' CHECK (level IN ('debug', 'info', 'warning', 'error', 'critical')),
    message text NOT NULL,
    context jsonb NOT NULL DEFAULT '{}',
    workflow_execution_id uuid,
    "timestamp" timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, "timestamp")
) PARTITION BY RANGE ("timestamp");
CREATE INDEX logs_execution_idx ON taskmaster.logs (workflow_execution_id, "timestamp")
    WHERE workflow_execution_id IS NOT NULL;
CREATE INDEX logs_component_idx ON taskmaster.logs (component_name, level, "timestamp" DESC);
COMMENT ON TABLE taskmaster.logs IS 'Log lines of components; users read those of their workflows'' runs';

CREATE TABLE taskmaster.audit_logs (
    id uuid NOT NULL DEFAULT sluice.uuid7(),
    entity_type text NOT NULL,
    entity_id uuid NOT NULL,
    action text NOT NULL CHECK (action IN ('insert', 'update', 'delete')),
    old_values jsonb,
    new_values jsonb,
    user_id text,
    key_id text,
    session_role text NOT NULL DEFAULT session_user,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE INDEX audit_logs_entity_idx ON taskmaster.audit_logs (entity_type, entity_id, created_at);
CREATE INDEX audit_logs_user_id_idx ON taskmaster.audit_logs (user_id, created_at DESC);
COMMENT ON TABLE taskmaster.audit_logs IS 'Who changed what: written by a trigger, in the transaction of the change';
COMMENT ON COLUMN taskmaster.audit_logs.entity_type IS 'name of the table';
COMMENT ON COLUMN taskmaster.audit_logs.old_values IS 'row before a delete; of an update the columns that changed; sensitive values masked';
COMMENT ON COLUMN taskmaster.audit_logs.new_values IS 'row after an insert; of an update the columns that changed; sensitive values masked';
COMMENT ON COLUMN taskmaster.audit_logs.user_id IS 'user of the verified claim; NULL: not through a key';
COMMENT ON COLUMN taskmaster.audit_logs.session_role IS 'login of the connection';

CREATE TABLE taskmaster.system_metrics (
    id uuid NOT NULL DEFAULT sluice.uuid7(),
    metric_name text NOT NULL CHECK (length(metric_name) BETWEEN 1 AND 255),
    metric_value double precision NOT NULL,
    metric_type text NOT NULL DEFAULT 'gauge' CHECK (metric_type IN ('counter', 'gauge', 'histogram', 'timer')),
    metric_unit text,
    component text,
    source_system text,
    tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
    metric_metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metric_metadata) = 'object'),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, recorded_at)
) PARTITION BY RANGE (recorded_at);
CREATE INDEX system_metrics_name_idx ON taskmaster.system_metrics (metric_name, recorded_at DESC);
CREATE INDEX system_metrics_component_idx ON taskmaster.system_metrics (component, recorded_at DESC);
COMMENT ON TABLE taskmaster.system_metrics IS 'Measurements: read with read:metrics, written with write:metrics';

SELECT sluice.ensure_partitions();

CREATE FUNCTION taskmaster.cleanup_old_logs(days integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET lock_timeout = '5s'
AS $f$
DECLARE
    oldest text := to_char((now() AT TIME ZONE 'UTC')::date - days, 'YYYYMMDD');
    part record;
    dropped integer := 0;
BEGIN
    IF days IS NULL OR days < 1 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'logs are kept for one day at least';
    END IF;
    FOR part IN
        SELECT c.oid::regclass AS name
        FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        JOIN pg_class p ON p.oid = i.inhparent
        WHERE p.relkind = 'p' AND p.relnamespace = 'taskmaster'::regnamespace
          AND c.relname ~ ('^' || p.relname || '_[0-9]{8}$') AND right(c.relname, 8) < oldest
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE %s', part.name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$f$;
COMMENT ON FUNCTION taskmaster.cleanup_old_logs(integer) IS
    'Drop the partitions of taskmaster''s logs, audit and metrics that ended at least so many days ago; return how '
    'many. Owned by sluice_owner, because only a table''s owner may drop it';
REVOKE ALL ON FUNCTION taskmaster.cleanup_old_logs(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.cleanup_old_logs(integer) TO sluice_control, sluice_admin;
