-- Runs of workflows and tasks, and what came of them.

SET LOCAL ROLE sluice_owner;

CREATE TABLE taskmaster.workflow_executions (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    workflow_id uuid NOT NULL REFERENCES taskmaster.workflows ON DELETE CASCADE,
    task_id uuid REFERENCES taskmaster.tasks ON DELETE CASCADE,
    status text NOT NULL DEFAULT 'initialized'
        CHECK (status IN ('initialized', 'running', 'paused', 'completed', 'failed', 'cancelled')),
    current_step text,
    total_steps integer NOT NULL DEFAULT 0 CHECK (total_steps >= 0),
    steps_completed integer NOT NULL DEFAULT 0 CHECK (steps_completed >= 0),
    error_log jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(error_log) = 'array'),
    retry_count integer NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    claude_session_id text,
    codegen_pr_url text,
    validation_results jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz,
    completed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (completed_at >= started_at)
);
CREATE INDEX workflow_executions_workflow_id_idx ON taskmaster.workflow_executions (workflow_id, created_at DESC);
CREATE INDEX workflow_executions_task_id_idx ON taskmaster.workflow_executions (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX workflow_executions_active_idx ON taskmaster.workflow_executions (status, created_at)
    WHERE status IN ('initialized', 'running', 'paused');
COMMENT ON TABLE taskmaster.workflow_executions IS 'Runs of a workflow: seen with the workflow, or with the task it is for';
COMMENT ON COLUMN taskmaster.workflow_executions.error_log IS 'Array of what taskmaster.update_workflow_step was told of failed steps';

CREATE TABLE taskmaster.task_executions (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    task_id uuid NOT NULL REFERENCES taskmaster.tasks ON DELETE CASCADE,
    workflow_execution_id uuid REFERENCES taskmaster.workflow_executions ON DELETE SET NULL,
    agent_type text NOT NULL CHECK (agent_type IN ('claude-code', 'codegen', 'webhook-handler', 'validation-engine')),
    agent_config jsonb NOT NULL DEFAULT '{}',
    attempt integer NOT NULL DEFAULT 1 CHECK (attempt > 0),
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
    logs text,
    result jsonb,
    output text,
    exit_code integer,
    error_details jsonb,
    started_at timestamptz,
    completed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (task_id, attempt, agent_type),
    CHECK (completed_at >= started_at)
);
CREATE INDEX task_executions_workflow_execution_id_idx ON taskmaster.task_executions (workflow_execution_id)
    WHERE workflow_execution_id IS NOT NULL;
CREATE INDEX task_executions_active_idx ON taskmaster.task_executions (status, created_at)
    WHERE status IN ('pending', 'running');
COMMENT ON TABLE taskmaster.task_executions IS 'Attempts of agents at a task';

CREATE TABLE taskmaster.workflow_states (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    workflow_execution_id uuid NOT NULL REFERENCES taskmaster.workflow_executions ON DELETE CASCADE,
    step text NOT NULL CHECK (step <> ''),
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('pending', 'running', 'completed', 'failed', 'skipped')),
    data jsonb NOT NULL DEFAULT '{}',
    entered_at timestamptz NOT NULL DEFAULT now(),
    left_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (left_at >= entered_at)
);
CREATE INDEX workflow_states_execution_idx ON taskmaster.workflow_states (workflow_execution_id, step, entered_at);
COMMENT ON TABLE taskmaster.workflow_states IS 'The steps that a run entered; left_at is NULL for those that it is in';

CREATE TABLE taskmaster.workflow_events (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    workflow_execution_id uuid REFERENCES taskmaster.workflow_executions ON DELETE CASCADE,
    task_id uuid REFERENCES taskmaster.tasks ON DELETE CASCADE,
    event_type text NOT NULL CHECK (event_type <> ''),
    payload jsonb NOT NULL DEFAULT '{}',
    actor text DEFAULT sluice.current_user_id(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (workflow_execution_id IS NOT NULL OR task_id IS NOT NULL)
);
CREATE INDEX workflow_events_execution_idx ON taskmaster.workflow_events (workflow_execution_id, created_at)
    WHERE workflow_execution_id IS NOT NULL;
CREATE INDEX workflow_events_task_id_idx ON taskmaster.workflow_events (task_id, created_at) WHERE task_id IS NOT NULL;
COMMENT ON TABLE taskmaster.workflow_events IS 'What happened to tasks and runs, in order; nobody may change or delete a row';
COMMENT ON COLUMN taskmaster.workflow_events.actor IS 'User of the key; NULL: not through a key';

CREATE TABLE taskmaster.pull_requests (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    task_id uuid NOT NULL REFERENCES taskmaster.tasks ON DELETE CASCADE,
    repository text NOT NULL CHECK (repository <> ''),
    pr_number integer NOT NULL CHECK (pr_number > 0),
    branch_name text,
    url text,
    title text,
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'merged', 'closed')),
    head_sha text CHECK (head_sha ~ '^[0-9a-f]{7,64}$'),
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- With task_id: one tenant's row must not keep another from having its own.
    UNIQUE (task_id, repository, pr_number)
);
CREATE INDEX pull_requests_repository_idx ON taskmaster.pull_requests (repository, pr_number);
COMMENT ON TABLE taskmaster.pull_requests IS 'Pull requests that came of a task';

CREATE TABLE taskmaster.validations (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    task_id uuid NOT NULL REFERENCES taskmaster.tasks ON DELETE CASCADE,
    execution_id uuid REFERENCES taskmaster.task_executions ON DELETE SET NULL,
    pull_request_id uuid REFERENCES taskmaster.pull_requests ON DELETE CASCADE,
    validation_type text NOT NULL CHECK (validation_type <> ''),
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'passed', 'failed', 'cancelled')),
    score numeric(5, 2) CHECK (score BETWEEN 0 AND 100),
    validation_results jsonb NOT NULL DEFAULT '{}',
    webhook_payload jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX validations_task_id_idx ON taskmaster.validations (task_id, created_at DESC);
CREATE INDEX validations_execution_id_idx ON taskmaster.validations (execution_id) WHERE execution_id IS NOT NULL;
CREATE INDEX validations_pull_request_id_idx ON taskmaster.validations (pull_request_id)
    WHERE pull_request_id IS NOT NULL;
COMMENT ON TABLE taskmaster.validations IS 'Checks of a task''s result, of one execution or pull request where one is named';
COMMENT ON COLUMN taskmaster.validations.score IS 'Percent';
