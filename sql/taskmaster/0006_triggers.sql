-- What happens by itself: updated_at, a new user's row, links that must be visible, legal changes of status,
-- dependencies without circles, and the audit.

SET LOCAL ROLE sluice_owner;
GRANT CREATE ON SCHEMA taskmaster TO sluice_definer;

CREATE FUNCTION taskmaster.touch() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$f$;
COMMENT ON FUNCTION taskmaster.touch() IS 'Trigger: set updated_at to the transaction''s start';

-- Foreign keys look past row-level security, so they alone would let a user hang rows on what isn't theirs. It
-- runs as the user. What can't be seen is refused just like what isn't there.
CREATE FUNCTION taskmaster.check_links() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
DECLARE
    given jsonb := to_jsonb(NEW);
    before jsonb := CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) END;
    seen boolean;
BEGIN
    -- Arguments come in pairs: a column, and the table that its value is looked up in.
    FOR i IN 0 .. TG_NARGS - 1 BY 2 LOOP
        CONTINUE WHEN given ->> TG_ARGV[i] IS NULL OR given ->> TG_ARGV[i] = before ->> TG_ARGV[i];
        EXECUTE format('SELECT EXISTS (SELECT FROM taskmaster.%I WHERE id = $1)', TG_ARGV[i + 1])
            INTO seen USING (given ->> TG_ARGV[i])::uuid;
        IF NOT seen THEN
            RAISE foreign_key_violation USING
                MESSAGE = format('there is no row %s in %s', given ->> TG_ARGV[i], TG_ARGV[i + 1]),
                COLUMN = TG_ARGV[i], TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
        END IF;
    END LOOP;
    RETURN NEW;
END
$f$;
COMMENT ON FUNCTION taskmaster.check_links() IS 'Trigger: refuse a reference to a row that the user does not see';

-- The policies let a row pass by its assignee or its project, so they alone would let a user make one in another's
-- name. It runs as the user; functions of sluice_definer and administrators may name whom they like.
CREATE FUNCTION taskmaster.check_creator() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
    IF pg_has_role(current_user, 'sluice_readwrite', 'USAGE') AND NOT pg_has_role(current_user, 'sluice_admin', 'USAGE')
       AND NEW.created_by IS DISTINCT FROM sluice.current_user_id()
    THEN
        RAISE insufficient_privilege USING
            MESSAGE = format('rows of %s are made in one''s own name', TG_TABLE_NAME),
            COLUMN = 'created_by', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NEW;
END
$f$;
COMMENT ON FUNCTION taskmaster.check_creator() IS 'Trigger: refuse a new row in the name of another user';

CREATE FUNCTION taskmaster.next_statuses(status text) RETURNS text[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $f$
    SELECT CASE status
        WHEN 'pending' THEN '{in_progress,cancelled}'
        WHEN 'in_progress' THEN '{completed,failed,cancelled,pending}'
        WHEN 'failed' THEN '{pending,cancelled}'
        WHEN 'cancelled' THEN '{pending}'
        ELSE '{}' END::text[]
$f$;
COMMENT ON FUNCTION taskmaster.next_statuses(text) IS 'Return the statuses that a task may go to from this one';

CREATE FUNCTION taskmaster.change_status() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
    IF NEW.status <> ALL (taskmaster.next_statuses(OLD.status)) THEN
        RAISE check_violation USING
            MESSAGE = format('a task cannot go from %s to %s', OLD.status, NEW.status),
            HINT = 'Possible here: ' || coalesce(nullif(array_to_string(taskmaster.next_statuses(OLD.status), ', '), ''),
                                                 'nothing, it is final') || '.',
            CONSTRAINT = 'tasks_status_transition', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    IF OLD.status = 'failed' AND NEW.status = 'pending' THEN
        IF OLD.retry_count >= OLD.max_retries THEN
            RAISE check_violation USING
                MESSAGE = format('a task is tried again at most %s times', OLD.max_retries),
                CONSTRAINT = 'tasks_max_retries', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
        END IF;
        NEW.retry_count := OLD.retry_count + 1;
    END IF;
    IF NEW.status = 'in_progress' THEN
        NEW.started_at := coalesce(NEW.started_at, now());
    END IF;
    NEW.completed_at := CASE WHEN NEW.status IN ('completed', 'failed', 'cancelled')
                             THEN greatest(now(), NEW.started_at) END;
    RETURN NEW;
END
$f$;
COMMENT ON FUNCTION taskmaster.change_status() IS
    'Trigger: refuse a change of status that next_statuses does not name, keep started_at, completed_at, retry_count';
REVOKE ALL ON FUNCTION taskmaster.touch(), taskmaster.check_links(), taskmaster.check_creator(), taskmaster.change_status(),
    taskmaster.next_statuses(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.next_statuses(text) TO authenticated_users, sluice_definer;

SET LOCAL ROLE sluice_definer;

CREATE FUNCTION taskmaster.add_user() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
BEGIN
    INSERT INTO taskmaster.users (user_id)
    SELECT me FROM sluice.current_user_id() AS me WHERE me IS NOT NULL
    ON CONFLICT (user_id) DO NOTHING;
    RETURN NULL;
END
$f$;
COMMENT ON FUNCTION taskmaster.add_user() IS 'Trigger: give the key''s user a row in users, which others refer to';

CREATE FUNCTION taskmaster.log_status() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
BEGIN
    INSERT INTO taskmaster.workflow_events (task_id, event_type, payload)
    VALUES (NEW.id, 'task_status_changed', jsonb_strip_nulls(jsonb_build_object(
        'from', OLD.status, 'to', NEW.status,
        'reason', nullif(current_setting('taskmaster.status_reason', true), ''))));
    IF NEW.status = 'completed' THEN
        UPDATE taskmaster.task_dependencies SET satisfied_at = now()
        WHERE depends_on_id = NEW.id AND satisfied_at IS NULL;
    END IF;
    RETURN NULL;
END
$f$;
COMMENT ON FUNCTION taskmaster.log_status() IS
    'Trigger: write the change of status to workflow_events, and satisfy the dependencies on a completed task';

-- As definer: a circle may lead through tasks that the user doesn't see.
CREATE FUNCTION taskmaster.check_dependency() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
BEGIN
    -- Two halves of a circle, added at the same time, would not see each other.
    PERFORM pg_advisory_xact_lock('taskmaster.task_dependencies'::regclass::oid::bigint);
    IF NEW.task_id <> NEW.depends_on_id AND EXISTS (
        WITH RECURSIVE waits_for (id) AS (
            SELECT NEW.depends_on_id
            UNION
            SELECT d.depends_on_id FROM waits_for w JOIN taskmaster.task_dependencies d ON d.task_id = w.id
            WHERE d.id <> NEW.id
        )
        SELECT FROM waits_for WHERE id = NEW.task_id)
    THEN
        RAISE check_violation USING
            MESSAGE = format('task %s would wait for itself', NEW.task_id),
            CONSTRAINT = 'task_dependencies_no_cycle', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    -- FOR SHARE waits for a change of status that is under way.
    NEW.satisfied_at := (SELECT coalesce(t.completed_at, now()) FROM taskmaster.tasks t
                         WHERE t.id = NEW.depends_on_id AND t.status = 'completed' FOR SHARE);
    RETURN NEW;
END
$f$;
COMMENT ON FUNCTION taskmaster.check_dependency() IS 'Trigger: refuse a circle of dependencies, and set satisfied_at';

CREATE FUNCTION taskmaster.mask_sensitive(value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
    -- No backslashes: what they mean depends on standard_conforming_strings.
    RETURN CASE jsonb_typeof(value)
        WHEN 'object' THEN (
            SELECT coalesce(jsonb_object_agg(f.key, CASE
                WHEN jsonb_typeof(f.value) = 'null' THEN f.value
                WHEN f.key ~* '(passw|secret|token|api.?key|authorization|credential|private.?key|cookie|signature|dsn)'
                    AND jsonb_typeof(f.value) <> 'boolean' THEN '"***"'
                ELSE taskmaster.mask_sensitive(f.value) END), '{}')
            FROM jsonb_each(value) AS f)
        WHEN 'array' THEN (
            SELECT coalesce(jsonb_agg(taskmaster.mask_sensitive(e.value) ORDER BY e.place), '[]')
            FROM jsonb_array_elements(value) WITH ORDINALITY AS e (value, place))
        WHEN 'string' THEN CASE
            WHEN value #>> '{}' ~ 'ctm_[0-9A-Za-z]{12}_|://[^/@[:space:]]+:[^/@[:space:]]+@|(Bearer|Basic) [0-9A-Za-z]|gh[pousr]_[0-9A-Za-z]{20}|sk-[0-9A-Za-z-]{20}|-----BEGIN [A-Z ]*PRIVATE KEY'
            THEN '"***"' ELSE value END
        ELSE value END;
END
$f$;
COMMENT ON FUNCTION taskmaster.mask_sensitive(jsonb) IS
    'Return the value with *** for what a sensitive name holds, at any depth, and for strings that look like secrets';

CREATE FUNCTION taskmaster.audit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
DECLARE
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    after jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    entity uuid := coalesce(after, before) ->> 'id';
    hidden boolean := before -> 'is_sensitive' = 'true' OR after -> 'is_sensitive' = 'true';
    name text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        SELECT jsonb_object_agg(n.key, o.value), jsonb_object_agg(n.key, n.value) INTO before, after
        FROM jsonb_each(to_jsonb(OLD)) AS o JOIN jsonb_each(to_jsonb(NEW)) AS n USING (key)
        WHERE o.value <> n.value AND n.key <> ALL (TG_ARGV || ARRAY['updated_at']);
        IF after IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    -- The values of environments are masked whatever they are called, and of settings if they are sensitive.
    FOREACH name IN ARRAY ARRAY['environment', 'environment_variables'] LOOP
        before := before || CASE WHEN before ? name THEN jsonb_build_object(name, (
            SELECT coalesce(jsonb_object_agg(e, '***'), '{}') FROM jsonb_object_keys(before -> name) AS e)) ELSE '{}' END;
        after := after || CASE WHEN after ? name THEN jsonb_build_object(name, (
            SELECT coalesce(jsonb_object_agg(e, '***'), '{}') FROM jsonb_object_keys(after -> name) AS e)) ELSE '{}' END;
    END LOOP;
    IF hidden THEN
        before := before || CASE WHEN before ? 'value' THEN '{"value": "***"}' ELSE '{}' END::jsonb;
        after := after || CASE WHEN after ? 'value' THEN '{"value": "***"}' ELSE '{}' END::jsonb;
    END IF;
    INSERT INTO taskmaster.audit_logs (entity_type, entity_id, action, old_values, new_values, user_id, key_id)
    VALUES (TG_TABLE_NAME, entity, lower(TG_OP), taskmaster.mask_sensitive(before), taskmaster.mask_sensitive(after),
            sluice.current_user_id(), sluice.current_key_id());
    RETURN NULL;
END
$f$;
COMMENT ON FUNCTION taskmaster.audit() IS
    'Trigger: write a change to audit_logs; its arguments are columns whose changes alone are not worth a row';

REVOKE ALL ON FUNCTION taskmaster.add_user(), taskmaster.log_status(), taskmaster.check_dependency(),
    taskmaster.mask_sensitive(jsonb), taskmaster.audit() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.add_user(), taskmaster.log_status(), taskmaster.check_dependency(),
    taskmaster.audit() TO sluice_owner;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA taskmaster FROM sluice_definer;

DO $do$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT c.oid::regclass AS name FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'taskmaster'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    LOOP
        EXECUTE format('CREATE TRIGGER touch BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION taskmaster.touch()',
                       made.name);
    END LOOP;
    FOR made IN
        SELECT * FROM (VALUES
            ('users', ''), ('projects', ''), ('workflows', ''), ('tasks', ''), ('task_dependencies', 'satisfied_at'),
            ('pull_requests', ''), ('validations', ''), ('deployment_scripts', ''), ('configuration_settings', ''),
            ('agent_configurations', 'last_health_check'),
            ('components', 'last_health_check, performance_metrics'),
            ('external_integrations', 'current_usage, usage_reset_at, last_used_at, last_health_check')
        ) AS audited (name, arguments)
    LOOP
        EXECUTE format('CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON taskmaster.%I'
                       ' FOR EACH ROW EXECUTE FUNCTION taskmaster.audit(%s)', made.name, made.arguments);
    END LOOP;
    FOR made IN
        SELECT * FROM (VALUES
            ('workflows', 'project_id, projects, parent_workflow_id, workflows'),
            ('tasks', 'project_id, projects, workflow_id, workflows, parent_task_id, tasks'),
            ('task_contexts', 'task_id, tasks'),
            ('task_dependencies', 'task_id, tasks, depends_on_id, tasks'),
            ('workflow_executions', 'workflow_id, workflows, task_id, tasks'),
            ('task_executions', 'task_id, tasks, workflow_execution_id, workflow_executions'),
            ('workflow_states', 'workflow_execution_id, workflow_executions'),
            ('workflow_events', 'task_id, tasks, workflow_execution_id, workflow_executions'),
            ('pull_requests', 'task_id, tasks'),
            ('validations', 'task_id, tasks, execution_id, task_executions, pull_request_id, pull_requests'),
            ('error_logs', 'task_id, tasks, execution_id, task_executions')
        ) AS linked (name, arguments)
    LOOP
        EXECUTE format('CREATE TRIGGER links BEFORE INSERT OR UPDATE ON taskmaster.%I'
                       ' FOR EACH ROW EXECUTE FUNCTION taskmaster.check_links(%s)', made.name, made.arguments);
    END LOOP;
END
$do$;

CREATE TRIGGER add_user BEFORE INSERT ON taskmaster.projects
    FOR EACH STATEMENT EXECUTE FUNCTION taskmaster.add_user();
CREATE TRIGGER add_user BEFORE INSERT ON taskmaster.workflows
    FOR EACH STATEMENT EXECUTE FUNCTION taskmaster.add_user();
CREATE TRIGGER add_user BEFORE INSERT ON taskmaster.tasks
    FOR EACH STATEMENT EXECUTE FUNCTION taskmaster.add_user();
CREATE TRIGGER creator BEFORE INSERT ON taskmaster.workflows
    FOR EACH ROW EXECUTE FUNCTION taskmaster.check_creator();
CREATE TRIGGER creator BEFORE INSERT ON taskmaster.tasks
    FOR EACH ROW EXECUTE FUNCTION taskmaster.check_creator();
CREATE TRIGGER change_status BEFORE UPDATE OF status ON taskmaster.tasks
    FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION taskmaster.change_status();
CREATE TRIGGER log_status AFTER UPDATE OF status ON taskmaster.tasks
    FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION taskmaster.log_status();
CREATE TRIGGER no_circle BEFORE INSERT OR UPDATE OF task_id, depends_on_id ON taskmaster.task_dependencies
    FOR EACH ROW EXECUTE FUNCTION taskmaster.check_dependency();
