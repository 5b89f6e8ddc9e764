-- Who sees and changes what. Every policy's arm is `column = (SELECT …)` or `column = ANY (ARRAY(SELECT …))`, which
-- indexes serve; each call of sluice.current_user_id or has_permission in a plan is a verification, so a table's
-- policies hold three at most. They refer downward only: users <- projects <- workflows, tasks <- children.
--
--   own      the rows of a user, for whatever the role is granted
--   write    restrictive: rows are made and changed with write:tasks alone
--   remove   restrictive: rows are deleted with write:tasks alone
--   admin    all rows, for logins of the admin pool
--   definer  what the functions of sluice_definer need

SET LOCAL ROLE sluice_owner;

DO $do$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'taskmaster'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY admin ON %s TO sluice_admin USING (true) WITH CHECK (true)', name);
        EXECUTE format('GRANT SELECT ON %s TO sluice_admin', name);
        -- Events and the audit are only ever added to.
        CONTINUE WHEN name = 'taskmaster.audit_logs';
        EXECUTE format('GRANT INSERT ON %s TO sluice_admin', name);
        CONTINUE WHEN name = 'taskmaster.workflow_events';
        EXECUTE format('GRANT UPDATE, DELETE ON %s TO sluice_admin', name);
    END LOOP;
END
$do$;

-- Whose a row is

CREATE POLICY own ON taskmaster.users TO sluice_readwrite, sluice_readonly
    USING (user_id = (SELECT sluice.current_user_id('read:tasks')));
CREATE POLICY own ON taskmaster.projects TO sluice_readwrite, sluice_readonly
    USING (owner_id = (SELECT sluice.current_user_id('read:tasks')));
CREATE POLICY own ON taskmaster.workflows TO sluice_readwrite, sluice_readonly
    USING (created_by = (SELECT sluice.current_user_id('read:tasks'))
           OR project_id = ANY (ARRAY(SELECT p.id FROM taskmaster.projects p)));
-- Users see themselves alone in users, and a foreign key says that an assignee has a row there: max() is of one row.
-- With = the planner knows how few rows that is; with ANY it expects ten times as many, and walks the index of
-- somebody's ORDER BY through everybody's tasks.
CREATE POLICY own ON taskmaster.tasks TO sluice_readwrite, sluice_readonly
    USING (created_by = (SELECT sluice.current_user_id('read:tasks'))
           OR assigned_to = (SELECT max(u.user_id) FROM taskmaster.users u)
           OR project_id = ANY (ARRAY(SELECT p.id FROM taskmaster.projects p)));

-- Through the policy of tasks, each child would fetch all of the user's tasks, row by row, and verify three times.
-- This reads three indexes, and verifies once.
GRANT CREATE ON SCHEMA taskmaster TO sluice_definer;
SET LOCAL ROLE sluice_definer;
CREATE FUNCTION taskmaster.visible_tasks() RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
DECLARE
    me text := sluice.current_user_id('read:tasks');
BEGIN
    IF me IS NOT NULL THEN
        RETURN QUERY
        SELECT t.id FROM taskmaster.tasks t WHERE t.created_by = me
        UNION
        SELECT t.id FROM taskmaster.tasks t WHERE t.assigned_to = me
        UNION
        SELECT t.id FROM taskmaster.projects p JOIN taskmaster.tasks t ON t.project_id = p.id WHERE p.owner_id = me;
    END IF;
END
$f$;
COMMENT ON FUNCTION taskmaster.visible_tasks() IS
    'Return the ids of the tasks that the policy `own` of tasks shows to the key''s user';
REVOKE ALL ON FUNCTION taskmaster.visible_tasks() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.visible_tasks() TO authenticated_users;
SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA taskmaster FROM sluice_definer;

CREATE POLICY own ON taskmaster.task_contexts TO sluice_readwrite, sluice_readonly
    USING (task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks())));
CREATE POLICY own ON taskmaster.task_dependencies TO sluice_readwrite, sluice_readonly
    USING (task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks())));
CREATE POLICY own ON taskmaster.workflow_executions TO sluice_readwrite, sluice_readonly
    USING (workflow_id = ANY (ARRAY(SELECT w.id FROM taskmaster.workflows w))
           OR task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks())));
CREATE POLICY own ON taskmaster.task_executions TO sluice_readwrite, sluice_readonly
    USING (task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks())));
CREATE POLICY own ON taskmaster.workflow_states TO sluice_readwrite, sluice_readonly
    USING (workflow_execution_id = ANY (ARRAY(SELECT e.id FROM taskmaster.workflow_executions e)));
CREATE POLICY own ON taskmaster.workflow_events FOR SELECT TO sluice_readwrite, sluice_readonly
    USING (task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks()))
           OR workflow_execution_id = ANY (ARRAY(SELECT e.id FROM taskmaster.workflow_executions e)));
CREATE POLICY own ON taskmaster.pull_requests TO sluice_readwrite, sluice_readonly
    USING (task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks())));
CREATE POLICY own ON taskmaster.validations TO sluice_readwrite, sluice_readonly
    USING (task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks())));
CREATE POLICY own ON taskmaster.external_api_calls FOR SELECT TO sluice_readwrite, sluice_readonly
    USING (user_id = (SELECT sluice.current_user_id('read:tasks'))
           OR task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks())));
CREATE POLICY own ON taskmaster.logs FOR SELECT TO sluice_readwrite, sluice_readonly
    USING (workflow_execution_id = ANY (ARRAY(SELECT e.id FROM taskmaster.workflow_executions e)));

DO $do$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['users', 'projects', 'workflows', 'tasks', 'task_contexts', 'task_dependencies',
        'workflow_executions', 'task_executions', 'workflow_states', 'pull_requests', 'validations']
    LOOP
        EXECUTE format($p$CREATE POLICY write ON taskmaster.%I AS RESTRICTIVE TO sluice_readwrite, sluice_readonly
            USING (true) WITH CHECK ((SELECT sluice.has_permission('write:tasks')))$p$, name);
        EXECUTE format($p$CREATE POLICY remove ON taskmaster.%I AS RESTRICTIVE FOR DELETE
            TO sluice_readwrite, sluice_readonly USING ((SELECT sluice.has_permission('write:tasks')))$p$, name);
    END LOOP;
END
$do$;

CREATE POLICY write ON taskmaster.workflow_events FOR INSERT TO sluice_readwrite
    WITH CHECK (actor = (SELECT sluice.current_user_id('write:tasks'))
                AND (task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks()))
                     OR workflow_execution_id = ANY (ARRAY(SELECT e.id FROM taskmaster.workflow_executions e))));
CREATE POLICY write ON taskmaster.error_logs FOR INSERT TO sluice_readwrite
    WITH CHECK ((SELECT sluice.has_permission('write:tasks'))
                AND (task_id IS NULL OR task_id = ANY (ARRAY(SELECT taskmaster.visible_tasks()))));
CREATE POLICY write ON taskmaster.logs FOR INSERT TO sluice_readwrite
    WITH CHECK ((SELECT sluice.has_permission('write:tasks'))
                AND workflow_execution_id = ANY (ARRAY(SELECT e.id FROM taskmaster.workflow_executions e)));

-- What belongs to no user

CREATE POLICY metrics ON taskmaster.system_metrics FOR SELECT TO sluice_readwrite, sluice_readonly
    USING ((SELECT sluice.has_permission('read:metrics')));
CREATE POLICY write ON taskmaster.system_metrics FOR INSERT TO sluice_readwrite
    WITH CHECK ((SELECT sluice.has_permission('write:metrics')));
CREATE POLICY metrics ON taskmaster.components FOR SELECT TO sluice_readwrite, sluice_readonly
    USING ((SELECT sluice.has_permission('read:metrics')));
CREATE POLICY metrics ON taskmaster.agent_configurations FOR SELECT TO sluice_readwrite, sluice_readonly
    USING ((SELECT sluice.has_permission('read:metrics')));
CREATE POLICY metrics ON taskmaster.external_integrations FOR SELECT TO sluice_readwrite, sluice_readonly
    USING ((SELECT sluice.has_permission('read:metrics')));
CREATE POLICY plain ON taskmaster.configuration_settings FOR SELECT TO sluice_readwrite, sluice_readonly
    USING (NOT is_sensitive AND (SELECT sluice.has_permission('read:tasks')));

-- What the functions need

DO $do$
DECLARE
    need record;
    command text;
BEGIN
    FOR need IN
        SELECT * FROM (VALUES
            ('users', '{SELECT,INSERT}'::text[]),
            ('projects', '{SELECT,INSERT}'),
            ('workflows', '{SELECT,INSERT}'),
            ('tasks', '{SELECT,INSERT,UPDATE}'),
            ('task_contexts', '{SELECT,INSERT}'),
            ('task_dependencies', '{SELECT,INSERT,UPDATE}'),
            ('workflow_executions', '{SELECT,INSERT}'),
            ('task_executions', '{SELECT,INSERT}'),
            ('workflow_states', '{INSERT}'),
            ('workflow_events', '{SELECT,INSERT}'),
            ('pull_requests', '{SELECT,INSERT}'),
            ('validations', '{INSERT}'),
            ('agent_configurations', '{INSERT}'),
            ('components', '{INSERT}'),
            ('external_integrations', '{SELECT,INSERT,UPDATE}'),
            ('external_api_calls', '{INSERT}'),
            ('configuration_settings', '{INSERT}'),
            ('system_metrics', '{INSERT}'),
            ('audit_logs', '{INSERT}')
        ) AS needs (name, commands)
    LOOP
        FOREACH command IN ARRAY need.commands LOOP
            EXECUTE format('CREATE POLICY definer_%s ON taskmaster.%I FOR %s TO sluice_definer %s', lower(command),
                need.name, command,
                CASE command WHEN 'INSERT' THEN 'WITH CHECK (true)'
                             WHEN 'UPDATE' THEN 'USING (true) WITH CHECK (true)' ELSE 'USING (true)' END);
            EXECUTE format('GRANT %s ON taskmaster.%I TO sluice_definer', command, need.name);
        END LOOP;
    END LOOP;
END
$do$;

-- Grants

GRANT SELECT ON taskmaster.users, taskmaster.projects, taskmaster.workflows, taskmaster.tasks,
    taskmaster.task_contexts, taskmaster.task_dependencies, taskmaster.workflow_executions,
    taskmaster.task_executions, taskmaster.workflow_states, taskmaster.workflow_events, taskmaster.pull_requests,
    taskmaster.validations, taskmaster.external_api_calls, taskmaster.logs, taskmaster.system_metrics,
    taskmaster.components, taskmaster.agent_configurations, taskmaster.configuration_settings
    TO sluice_readwrite, sluice_readonly;
-- All but the configuration.
GRANT SELECT (id, integration_type, integration_name, status, last_used_at, health_check_url, last_health_check,
              health_status, rate_limit_per_minute, current_usage, usage_reset_at, created_at, updated_at)
    ON taskmaster.external_integrations TO sluice_readwrite, sluice_readonly;
GRANT INSERT ON taskmaster.users, taskmaster.projects, taskmaster.workflows, taskmaster.tasks,
    taskmaster.task_contexts, taskmaster.task_dependencies, taskmaster.workflow_executions,
    taskmaster.task_executions, taskmaster.workflow_states, taskmaster.workflow_events, taskmaster.pull_requests,
    taskmaster.validations, taskmaster.error_logs, taskmaster.logs, taskmaster.system_metrics TO sluice_readwrite;
GRANT DELETE ON taskmaster.projects, taskmaster.workflows, taskmaster.tasks, taskmaster.task_contexts,
    taskmaster.task_dependencies, taskmaster.workflow_executions, taskmaster.task_executions,
    taskmaster.workflow_states, taskmaster.pull_requests, taskmaster.validations TO sluice_readwrite;

-- Users may change everything but who made a row, when, and what triggers keep.
DO $do$
DECLARE
    changeable record;
BEGIN
    FOR changeable IN
        SELECT c.oid::regclass AS name, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) AS columns
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'taskmaster'::regnamespace
          AND c.relname IN ('users', 'projects', 'workflows', 'tasks', 'task_contexts', 'task_dependencies',
                            'workflow_executions', 'task_executions', 'workflow_states', 'pull_requests', 'validations')
          AND a.attnum > 0 AND NOT a.attisdropped
          AND a.attname NOT IN ('id', 'created_at', 'created_by', 'owner_id', 'user_id', 'is_active', 'satisfied_at')
        GROUP BY c.oid
    LOOP
        EXECUTE format('GRANT UPDATE (%s) ON %s TO sluice_readwrite', changeable.columns, changeable.name);
    END LOOP;
END
$do$;
