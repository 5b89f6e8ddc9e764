-- What applications call for tasks and workflows. These functions run as their caller: the policies decide.

SET LOCAL ROLE sluice_owner;
-- Nothing here touches rows, but the bodies of SQL functions are checked as queries of their owner.
SET LOCAL row_security = on;

CREATE FUNCTION taskmaster.create_task(title text, description text DEFAULT NULL, type text DEFAULT 'general',
    priority integer DEFAULT 5, project_id uuid DEFAULT NULL, workflow_id uuid DEFAULT NULL,
    parent_task_id uuid DEFAULT NULL, assigned_to text DEFAULT NULL, tags jsonb DEFAULT '[]',
    metadata jsonb DEFAULT '{}', depends_on uuid[] DEFAULT '{}') RETURNS taskmaster.tasks
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $f$
#variable_conflict error
DECLARE
    made taskmaster.tasks;
BEGIN
    INSERT INTO taskmaster.tasks (title, description, type, priority, project_id, workflow_id, parent_task_id,
                                  assigned_to, tags, metadata)
    VALUES (create_task.title, create_task.description, create_task.type, create_task.priority,
            create_task.project_id, create_task.workflow_id, create_task.parent_task_id, create_task.assigned_to,
            create_task.tags, create_task.metadata)
    RETURNING * INTO made;
    INSERT INTO taskmaster.task_dependencies (task_id, depends_on_id)
    SELECT made.id, needed FROM unnest(create_task.depends_on) AS needed;
    RETURN made;
END
$f$;
COMMENT ON FUNCTION taskmaster.create_task(text, text, text, integer, uuid, uuid, uuid, text, jsonb, jsonb, uuid[]) IS
    'Make a task of the key''s user, with the tasks that it waits for, and return it';

CREATE FUNCTION taskmaster.update_task_status(task_id uuid, new_status text, reason text DEFAULT NULL)
RETURNS taskmaster.tasks
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $f$
DECLARE
    changed taskmaster.tasks;
BEGIN
    -- For the trigger that logs the change; gone with the transaction, and before another change in it.
    PERFORM set_config('taskmaster.status_reason', coalesce(reason, ''), true);
    UPDATE taskmaster.tasks t SET status = new_status WHERE t.id = update_task_status.task_id RETURNING * INTO changed;
    PERFORM set_config('taskmaster.status_reason', '', true);
    IF changed.id IS NULL THEN
        RAISE no_data_found USING MESSAGE = format('there is no task %s', task_id);
    END IF;
    RETURN changed;
END
$f$;
COMMENT ON FUNCTION taskmaster.update_task_status(uuid, text, text) IS
    'Change a task''s status, if next_statuses allows it, log it with the reason and return the task. Raises 23514 for '
    'what is not allowed, P0002 for a task that is not there or not seen';

CREATE FUNCTION taskmaster.get_task_hierarchy(root_id uuid, max_depth integer DEFAULT 20)
RETURNS TABLE (id uuid, parent_task_id uuid, title text, status text, priority integer, depth integer, path uuid[])
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $f$
    WITH RECURSIVE below AS (
        SELECT t.id, t.parent_task_id, t.title, t.status, t.priority, 0 AS depth, ARRAY[t.id] AS path
        FROM taskmaster.tasks t WHERE t.id = root_id
        UNION ALL
        SELECT t.id, t.parent_task_id, t.title, t.status, t.priority, b.depth + 1, b.path || t.id
        FROM below b JOIN taskmaster.tasks t ON t.parent_task_id = b.id
        WHERE b.depth < max_depth AND t.id <> ALL (b.path)
    )
    SELECT * FROM below ORDER BY path
$f$;
COMMENT ON FUNCTION taskmaster.get_task_hierarchy(uuid, integer) IS
    'Return a task and what is below it, parents before children; path leads from the root';

CREATE FUNCTION taskmaster.calculate_task_completion(root_id uuid) RETURNS numeric
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $f$
    WITH below AS (SELECT h.id, h.parent_task_id, h.status FROM taskmaster.get_task_hierarchy(root_id, 100) h)
    SELECT round(100.0 * count(*) FILTER (WHERE b.status = 'completed') / nullif(count(*), 0), 1)
    FROM below b
    WHERE b.status <> 'cancelled' AND NOT EXISTS (SELECT FROM below c WHERE c.parent_task_id = b.id)
$f$;
COMMENT ON FUNCTION taskmaster.calculate_task_completion(uuid) IS
    'Return the percentage of completed tasks among the leaves below a task, cancelled ones left out; NULL if none is left';

CREATE FUNCTION taskmaster.get_task_statistics(project_id uuid DEFAULT NULL, since timestamptz DEFAULT NULL)
RETURNS TABLE (status text, tasks bigint, average_priority numeric, average_hours numeric, oldest timestamptz)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $f$
    SELECT t.status, count(*), round(avg(t.priority), 2),
           round((extract(epoch FROM avg(t.completed_at - t.started_at)) / 3600)::numeric, 2), min(t.created_at)
    FROM taskmaster.tasks t
    WHERE (get_task_statistics.project_id IS NULL OR t.project_id = get_task_statistics.project_id)
      AND (since IS NULL OR t.created_at >= since)
    GROUP BY t.status
    ORDER BY t.status
$f$;
COMMENT ON FUNCTION taskmaster.get_task_statistics(uuid, timestamptz) IS
    'Count the caller''s tasks by status; administrators of many tasks read task_statistics_daily instead';

CREATE FUNCTION taskmaster.create_workflow(name text, definition jsonb DEFAULT '{}', description text DEFAULT NULL,
    workflow_type text DEFAULT 'general', project_id uuid DEFAULT NULL, parent_workflow_id uuid DEFAULT NULL,
    configuration jsonb DEFAULT '{}', priority integer DEFAULT 5, tags jsonb DEFAULT '[]',
    status text DEFAULT 'draft') RETURNS taskmaster.workflows
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $f$
#variable_conflict error
DECLARE
    made taskmaster.workflows;
BEGIN
    INSERT INTO taskmaster.workflows (name, definition, description, workflow_type, project_id, parent_workflow_id,
                                      configuration, priority, tags, status)
    VALUES (create_workflow.name, create_workflow.definition, create_workflow.description,
            create_workflow.workflow_type, create_workflow.project_id, create_workflow.parent_workflow_id,
            create_workflow.configuration, create_workflow.priority, create_workflow.tags, create_workflow.status)
    RETURNING * INTO made;
    RETURN made;
END
$f$;
COMMENT ON FUNCTION taskmaster.create_workflow(text, jsonb, text, text, uuid, uuid, jsonb, integer, jsonb, text) IS
    'Make a workflow of the key''s user and return it; definition has its steps as {"steps": ["build", …]}';

CREATE FUNCTION taskmaster.update_workflow_step(execution_id uuid, step text, step_status text, data jsonb DEFAULT '{}')
RETURNS taskmaster.workflow_executions
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $f$
#variable_conflict use_variable
DECLARE
    run taskmaster.workflow_executions;
    flow taskmaster.workflows;
    steps integer;
    done integer;
BEGIN
    SELECT * INTO run FROM taskmaster.workflow_executions e WHERE e.id = execution_id FOR UPDATE;
    IF run.id IS NULL THEN
        RAISE no_data_found USING MESSAGE = format('there is no workflow execution %s', execution_id);
    ELSIF run.status IN ('completed', 'failed', 'cancelled') THEN
        RAISE check_violation USING MESSAGE = format('the workflow execution %s is %s', execution_id, run.status);
    END IF;
    -- NULL for an assignee who sees the run, but not the workflow.
    SELECT * INTO flow FROM taskmaster.workflows w WHERE w.id = run.workflow_id;
    steps := CASE WHEN run.total_steps = 0 AND jsonb_typeof(flow.definition -> 'steps') = 'array'
                  THEN jsonb_array_length(flow.definition -> 'steps') ELSE run.total_steps END;

    UPDATE taskmaster.workflow_states s
    SET status = step_status, data = s.data || update_workflow_step.data,
        left_at = CASE WHEN step_status IN ('completed', 'failed', 'skipped') THEN greatest(now(), s.entered_at) END
    WHERE s.workflow_execution_id = execution_id AND s.step = update_workflow_step.step AND s.left_at IS NULL;
    IF NOT FOUND THEN
        INSERT INTO taskmaster.workflow_states (workflow_execution_id, step, status, data, left_at)
        VALUES (execution_id, step, step_status, data,
                CASE WHEN step_status IN ('completed', 'failed', 'skipped') THEN now() END);
    END IF;
    SELECT count(DISTINCT s.step) INTO done FROM taskmaster.workflow_states s
    WHERE s.workflow_execution_id = execution_id AND s.status IN ('completed', 'skipped');

    UPDATE taskmaster.workflow_executions e
    SET current_step = step,
        total_steps = steps,
        steps_completed = done,
        started_at = coalesce(e.started_at, now()),
        retry_count = e.retry_count + CASE WHEN step_status = 'failed' THEN 1 ELSE 0 END,
        error_log = CASE WHEN step_status = 'failed'
                         THEN e.error_log || jsonb_build_object('step', step, 'at', now(), 'data', data)
                         ELSE e.error_log END,
        status = CASE WHEN step_status = 'failed' AND e.retry_count >= coalesce(flow.max_retries, 0) THEN 'failed'
                      WHEN steps > 0 AND done >= steps THEN 'completed'
                      ELSE 'running' END,
        completed_at = CASE WHEN step_status = 'failed' AND e.retry_count >= coalesce(flow.max_retries, 0)
                              OR steps > 0 AND done >= steps
                            THEN greatest(now(), e.started_at) END
    WHERE e.id = execution_id
    RETURNING * INTO run;
    INSERT INTO taskmaster.workflow_events (workflow_execution_id, task_id, event_type, payload)
    VALUES (execution_id, run.task_id, 'step_' || step_status, jsonb_build_object('step', step, 'data', data));
    RETURN run;
END
$f$;
COMMENT ON FUNCTION taskmaster.update_workflow_step(uuid, text, text, jsonb) IS
    'Enter or leave a step of a run (pending, running, completed, failed, skipped), and return the run: completed with '
    'its last step, failed once steps failed more often than the workflow''s max_retries';

CREATE FUNCTION taskmaster.get_workflow_progress(execution_id uuid)
RETURNS TABLE (status text, current_step text, total_steps integer, steps_completed integer, percent numeric,
               open_steps text[], started_at timestamptz, elapsed interval)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $f$
    SELECT e.status, e.current_step, e.total_steps, e.steps_completed,
           round(100.0 * least(e.steps_completed, e.total_steps) / nullif(e.total_steps, 0), 1),
           ARRAY(SELECT s.step FROM taskmaster.workflow_states s
                 WHERE s.workflow_execution_id = e.id AND s.left_at IS NULL ORDER BY s.entered_at, s.step),
           e.started_at, coalesce(e.completed_at, now()) - e.started_at
    FROM taskmaster.workflow_executions e
    WHERE e.id = execution_id
$f$;
COMMENT ON FUNCTION taskmaster.get_workflow_progress(uuid) IS
    'Return how far a run is; percent is NULL while the number of steps is not known';

REVOKE ALL ON FUNCTION
    taskmaster.create_task(text, text, text, integer, uuid, uuid, uuid, text, jsonb, jsonb, uuid[]),
    taskmaster.update_task_status(uuid, text, text), taskmaster.get_task_hierarchy(uuid, integer),
    taskmaster.calculate_task_completion(uuid), taskmaster.get_task_statistics(uuid, timestamptz),
    taskmaster.create_workflow(text, jsonb, text, text, uuid, uuid, jsonb, integer, jsonb, text),
    taskmaster.update_workflow_step(uuid, text, text, jsonb), taskmaster.get_workflow_progress(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    taskmaster.create_task(text, text, text, integer, uuid, uuid, uuid, text, jsonb, jsonb, uuid[]),
    taskmaster.update_task_status(uuid, text, text),
    taskmaster.create_workflow(text, jsonb, text, text, uuid, uuid, jsonb, integer, jsonb, text),
    taskmaster.update_workflow_step(uuid, text, text, jsonb) TO sluice_readwrite, sluice_admin;
GRANT EXECUTE ON FUNCTION
    taskmaster.get_task_hierarchy(uuid, integer), taskmaster.calculate_task_completion(uuid),
    taskmaster.get_task_statistics(uuid, timestamptz),
    taskmaster.get_workflow_progress(uuid) TO authenticated_users;
