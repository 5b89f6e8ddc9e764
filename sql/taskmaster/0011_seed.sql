-- Sample rows of two users, for a look around. Nothing calls this by itself.

SET LOCAL ROLE sluice_owner;
GRANT CREATE ON SCHEMA taskmaster TO sluice_definer;
SET LOCAL ROLE sluice_definer;

CREATE FUNCTION taskmaster.seed_demo(first_user text, second_user text) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
DECLARE
    me text;
    other text;
    project uuid;
    flow uuid;
    run uuid;
    made integer := 0;
    tasks_made integer;
BEGIN
    INSERT INTO taskmaster.users (user_id, display_name)
    SELECT u, initcap(split_part(u, '@', 1)) FROM unnest(ARRAY[first_user, second_user]) AS u
    ON CONFLICT DO NOTHING;
    FOR me, other IN VALUES (first_user, second_user), (second_user, first_user) LOOP
        -- Ids are made from names, so that a second call finds everything there.
        project := md5('project' || me)::uuid;
        flow := md5('workflow' || me)::uuid;
        run := md5('run' || me)::uuid;
        INSERT INTO taskmaster.projects (id, name, description, repository_url, owner_id)
        VALUES (project, 'Website of ' || split_part(me, '@', 1), 'Shop, blog and search', 'https://example.com/website.git', me)
        ON CONFLICT DO NOTHING;
        INSERT INTO taskmaster.workflows (id, name, workflow_type, status, definition, project_id, created_by, tags)
        VALUES (flow, 'Release', 'release', 'active', '{"steps": ["build", "test", "deploy"]}', project, me, '["release"]')
        ON CONFLICT DO NOTHING;
        INSERT INTO taskmaster.tasks (id, title, description, type, status, priority, complexity_score, project_id,
            workflow_id, parent_task_id, created_by, assigned_to, tags, metadata, started_at, completed_at)
        SELECT md5('task' || t.number || me)::uuid, t.title, t.description, t.type, t.status, t.priority, t.complexity,
               project, CASE WHEN t.number IN (1, 2, 3) THEN flow END,
               CASE WHEN t.number IN (2, 3) THEN md5('task1' || me)::uuid END, me,
               CASE WHEN t.number = 4 THEN other ELSE me END, t.tags::jsonb, '{"origin": "demo"}',
               CASE WHEN t.status <> 'pending' THEN now() - interval '2 hours' END,
               CASE WHEN t.status IN ('completed', 'failed', 'cancelled') THEN now() - interval '1 hour' END
        FROM (VALUES
            (1, 'Release version 2.0', 'Everything that has to happen before the release', 'release', 'in_progress', 9, 8, '["release"]'),
            (2, 'Fix the login page', 'The login page forgets where the user came from', 'bug', 'completed', 8, 3, '["frontend", "bug"]'),
            (3, 'Write the release notes', 'What changed since version 1.9', 'docs', 'pending', 5, 2, '["docs"]'),
            (4, 'Review the search index', 'Searching for two words is slow', 'review', 'pending', 6, 5, '["backend", "search"]'),
            (5, 'Upgrade the database', 'To the newest minor version', 'maintenance', 'failed', 7, 4, '["backend"]'),
            (6, 'Try another font', NULL, 'idea', 'cancelled', 1, 1, '["frontend"]')
        ) AS t (number, title, description, type, status, priority, complexity, tags)
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS tasks_made = ROW_COUNT;
        made := made + tasks_made;
        CONTINUE WHEN tasks_made = 0;
        INSERT INTO taskmaster.task_dependencies (task_id, depends_on_id)
        VALUES (md5('task1' || me)::uuid, md5('task2' || me)::uuid), (md5('task1' || me)::uuid, md5('task3' || me)::uuid),
               (md5('task3' || me)::uuid, md5('task2' || me)::uuid);
        INSERT INTO taskmaster.task_contexts (task_id, context_type, content, source)
        VALUES (md5('task2' || me)::uuid, 'files', '{"files": ["src/login.ts"], "language": "typescript"}', 'codegen');
        INSERT INTO taskmaster.workflow_executions (id, workflow_id, task_id, status, current_step, total_steps,
                                                    steps_completed, started_at)
        VALUES (run, flow, md5('task1' || me)::uuid, 'running', 'test', 3, 1, now() - interval '20 minutes');
        INSERT INTO taskmaster.workflow_states (workflow_execution_id, step, status, entered_at, left_at)
        VALUES (run, 'build', 'completed', now() - interval '20 minutes', now() - interval '15 minutes'),
               (run, 'test', 'running', now() - interval '15 minutes', NULL);
        INSERT INTO taskmaster.workflow_events (workflow_execution_id, task_id, event_type, payload, actor)
        VALUES (run, md5('task1' || me)::uuid, 'step_completed', '{"step": "build"}', me);
        INSERT INTO taskmaster.task_executions (id, task_id, workflow_execution_id, agent_type, status, exit_code,
                                                started_at, completed_at)
        VALUES (md5('execution' || me)::uuid, md5('task2' || me)::uuid, run, 'claude-code', 'completed', 0,
                now() - interval '90 minutes', now() - interval '80 minutes');
        INSERT INTO taskmaster.pull_requests (id, task_id, repository, pr_number, branch_name, title, status)
        VALUES (md5('pull request' || me)::uuid, md5('task2' || me)::uuid, 'example/website', 42, 'fix-login',
                'Return to where the user came from', 'merged');
        INSERT INTO taskmaster.validations (task_id, execution_id, pull_request_id, validation_type, status, score)
        VALUES (md5('task2' || me)::uuid, md5('execution' || me)::uuid, md5('pull request' || me)::uuid, 'tests', 'passed', 98),
               (md5('task2' || me)::uuid, md5('execution' || me)::uuid, md5('pull request' || me)::uuid, 'lint', 'passed', 100);
    END LOOP;
    IF made > 0 THEN
        INSERT INTO taskmaster.components (name, type, version, health_status, last_health_check)
        VALUES ('scheduler', 'service', '2.0', 'healthy', now()), ('webhooks', 'service', '2.0', 'degraded', now())
        ON CONFLICT DO NOTHING;
        INSERT INTO taskmaster.agent_configurations (agent_type, name, configuration, health_status, last_health_check)
        VALUES ('claude-code', 'default', '{"max_turns": 40}', 'healthy', now()) ON CONFLICT DO NOTHING;
        INSERT INTO taskmaster.external_integrations (integration_type, integration_name, configuration, rate_limit_per_minute)
        VALUES ('github', 'example', '{"token": "env:GITHUB_TOKEN"}', 60) ON CONFLICT DO NOTHING;
        INSERT INTO taskmaster.configuration_settings (key, value, value_type, is_sensitive, description)
        VALUES ('tasks.default_timeout', '3600', 'number', false, 'Seconds'),
               ('webhooks.signing_secret', '"env:WEBHOOK_SECRET"', 'string', true, 'Verifies deliveries')
        ON CONFLICT DO NOTHING;
        INSERT INTO taskmaster.system_metrics (metric_name, metric_value, metric_unit, component, recorded_at)
        SELECT 'queue_length', 10 + i % 7, 'tasks', 'scheduler', now() - make_interval(mins => i) FROM generate_series(0, 59) AS i;
    END IF;
    RETURN made;
END
$f$;
COMMENT ON FUNCTION taskmaster.seed_demo(text, text) IS
    'Make sample rows of two users, who share one task each, and return how many tasks were made; a second call makes none';
REVOKE ALL ON FUNCTION taskmaster.seed_demo(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.seed_demo(text, text) TO sluice_admin;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA taskmaster FROM sluice_definer;
