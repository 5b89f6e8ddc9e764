-- depends: core_0004
-- Users, their projects, workflows and tasks, and what hangs on a task. Nobody has a grant on these tables
-- before 0005 gives them their policies.

-- Trigram indexes serve the search functions; without the extension those scan.
CREATE SCHEMA taskmaster;
ALTER SCHEMA taskmaster OWNER TO sluice_owner;
DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'pg_trgm') THEN
        CREATE EXTENSION pg_trgm SCHEMA taskmaster;
    END IF;
EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
    RAISE NOTICE 'pg_trgm is left out, searching text will scan: %', SQLERRM;
END
$do$;

SET LOCAL ROLE sluice_owner;
GRANT USAGE ON SCHEMA taskmaster TO sluice_definer, sluice_control, authenticated_users;
COMMENT ON SCHEMA taskmaster IS 'pgsluice: tasks, workflows, their executions, integrations and observations';

CREATE TABLE taskmaster.users (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    user_id text NOT NULL UNIQUE CHECK (length(user_id) BETWEEN 1 AND 320 AND strpos(user_id, '|') = 0),
    email text CHECK (length(email) <= 320),
    display_name text CHECK (length(display_name) <= 255),
    is_active boolean NOT NULL DEFAULT true,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE taskmaster.users IS 'Who owns, makes and does things; a row comes by itself with a user''s first one';
COMMENT ON COLUMN taskmaster.users.user_id IS 'user_id of the user''s API keys';

CREATE TABLE taskmaster.projects (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    description text,
    repository_url text,
    settings jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(settings) = 'object'),
    owner_id text NOT NULL DEFAULT sluice.current_user_id() REFERENCES taskmaster.users (user_id) ON UPDATE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projects_owner_id_idx ON taskmaster.projects (owner_id, name);
COMMENT ON TABLE taskmaster.projects IS 'What tasks and workflows are gathered in; the owner sees all of them';

CREATE TABLE taskmaster.workflows (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    description text,
    workflow_type text NOT NULL DEFAULT 'general' CHECK (workflow_type <> ''),
    status text NOT NULL DEFAULT 'draft' CHECK (status IN ('draft', 'active', 'paused', 'archived')),
    priority integer NOT NULL DEFAULT 5 CHECK (priority BETWEEN 0 AND 10),
    version integer NOT NULL DEFAULT 1 CHECK (version > 0),
    definition jsonb NOT NULL DEFAULT '{}',
    configuration jsonb NOT NULL DEFAULT '{}',
    environment_variables jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(environment_variables) = 'object'),
    tags jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(tags) = 'array'),
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    parent_workflow_id uuid REFERENCES taskmaster.workflows ON DELETE SET NULL CHECK (parent_workflow_id <> id),
    project_id uuid REFERENCES taskmaster.projects ON DELETE SET NULL,
    created_by text NOT NULL DEFAULT sluice.current_user_id() REFERENCES taskmaster.users (user_id) ON UPDATE CASCADE,
    scheduled_at timestamptz,
    timeout_minutes integer CHECK (timeout_minutes > 0),
    max_retries integer NOT NULL DEFAULT 3 CHECK (max_retries >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX workflows_created_by_idx ON taskmaster.workflows (created_by, status);
CREATE INDEX workflows_project_id_idx ON taskmaster.workflows (project_id);
CREATE INDEX workflows_parent_workflow_id_idx ON taskmaster.workflows (parent_workflow_id)
    WHERE parent_workflow_id IS NOT NULL;
CREATE INDEX workflows_status_idx ON taskmaster.workflows (status, priority DESC, created_at);
CREATE INDEX workflows_scheduled_at_idx ON taskmaster.workflows (scheduled_at)
    WHERE status = 'active' AND scheduled_at IS NOT NULL;
CREATE INDEX workflows_tags_idx ON taskmaster.workflows USING gin (tags jsonb_path_ops);
COMMENT ON TABLE taskmaster.workflows IS 'Definitions of steps that are run again and again; a run is a workflow_execution';
COMMENT ON COLUMN taskmaster.workflows.environment_variables IS 'Names and values for the steps; the audit masks the values';

CREATE TABLE taskmaster.tasks (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    title text NOT NULL CHECK (length(title) BETWEEN 1 AND 255),
    description text,
    type text NOT NULL DEFAULT 'general' CHECK (type <> ''),
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'in_progress', 'completed', 'failed', 'cancelled')),
    priority integer NOT NULL DEFAULT 5 CHECK (priority BETWEEN 0 AND 10),
    complexity_score integer CHECK (complexity_score BETWEEN 1 AND 10),
    requirements jsonb NOT NULL DEFAULT '{}',
    acceptance_criteria jsonb NOT NULL DEFAULT '{}',
    affected_files jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(affected_files) = 'array'),
    tags jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(tags) = 'array'),
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    project_id uuid REFERENCES taskmaster.projects ON DELETE SET NULL,
    workflow_id uuid REFERENCES taskmaster.workflows ON DELETE SET NULL,
    parent_task_id uuid REFERENCES taskmaster.tasks ON DELETE SET NULL CHECK (parent_task_id <> id),
    execution_order integer CHECK (execution_order >= 0),
    created_by text NOT NULL DEFAULT sluice.current_user_id() REFERENCES taskmaster.users (user_id) ON UPDATE CASCADE,
    assigned_to text REFERENCES taskmaster.users (user_id) ON UPDATE CASCADE,
    repository_url text,
    branch_name text,
    pr_number integer CHECK (pr_number > 0),
    linear_issue_id text,
    github_issue_number integer CHECK (github_issue_number > 0),
    codegen_session_id text,
    command text,
    parameters jsonb NOT NULL DEFAULT '{}',
    environment jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(environment) = 'object'),
    working_directory text,
    timeout_seconds integer CHECK (timeout_seconds > 0),
    retry_count integer NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    max_retries integer NOT NULL DEFAULT 3 CHECK (max_retries >= 0),
    estimated_hours numeric(8, 2) CHECK (estimated_hours >= 0),
    actual_hours numeric(8, 2) CHECK (actual_hours >= 0),
    started_at timestamptz,
    completed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (completed_at >= started_at)
);
-- The three arms of the policy, each in the order in which tasks are taken, and with the id that taskmaster.visible_tasks reads.
CREATE INDEX tasks_created_by_idx ON taskmaster.tasks (created_by, status, priority DESC, created_at) INCLUDE (id);
CREATE INDEX tasks_assigned_to_idx ON taskmaster.tasks (assigned_to, status, priority DESC, created_at) INCLUDE (id);
CREATE INDEX tasks_project_id_idx ON taskmaster.tasks (project_id, status, priority DESC, created_at) INCLUDE (id);
CREATE INDEX tasks_status_idx ON taskmaster.tasks (status, priority DESC, created_at);
CREATE INDEX tasks_active_idx ON taskmaster.tasks (priority DESC, created_at)
    WHERE status IN ('pending', 'in_progress');
CREATE INDEX tasks_created_at_idx ON taskmaster.tasks (created_at DESC);
CREATE INDEX tasks_workflow_id_idx ON taskmaster.tasks (workflow_id, execution_order) WHERE workflow_id IS NOT NULL;
CREATE INDEX tasks_parent_task_id_idx ON taskmaster.tasks (parent_task_id) WHERE parent_task_id IS NOT NULL;
CREATE INDEX tasks_tags_idx ON taskmaster.tasks USING gin (tags jsonb_path_ops);
CREATE INDEX tasks_metadata_idx ON taskmaster.tasks USING gin (metadata jsonb_path_ops);
COMMENT ON TABLE taskmaster.tasks IS 'Units of work: seen by their creator, their assignee and the owner of their project';
COMMENT ON COLUMN taskmaster.tasks.status IS 'Changes only as taskmaster.update_task_status allows';
COMMENT ON COLUMN taskmaster.tasks.priority IS '0 to 10, 10 first';
COMMENT ON COLUMN taskmaster.tasks.affected_files IS 'Array of paths in the repository';
COMMENT ON COLUMN taskmaster.tasks.environment IS 'Names and values for the command; the audit masks the values';
COMMENT ON COLUMN taskmaster.tasks.retry_count IS 'How often it went from failed back to pending; at most max_retries';
COMMENT ON COLUMN taskmaster.tasks.started_at IS 'Set by the first change to in_progress';
COMMENT ON COLUMN taskmaster.tasks.completed_at IS 'Set by the change to completed, failed or cancelled';

DO $do$
DECLARE
    trgm text := (SELECT extnamespace::regnamespace::text FROM pg_catalog.pg_extension WHERE extname = 'pg_trgm');
BEGIN
    IF trgm IS NOT NULL THEN
        EXECUTE format('CREATE INDEX tasks_title_trgm_idx ON taskmaster.tasks USING gin (title %s.gin_trgm_ops)', trgm);
        EXECUTE format('CREATE INDEX tasks_description_trgm_idx ON taskmaster.tasks'
                       ' USING gin (description %s.gin_trgm_ops)', trgm);
        EXECUTE format('CREATE INDEX workflows_name_trgm_idx ON taskmaster.workflows USING gin (name %s.gin_trgm_ops)', trgm);
    END IF;
END
$do$;

CREATE TABLE taskmaster.task_contexts (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    task_id uuid NOT NULL REFERENCES taskmaster.tasks ON DELETE CASCADE,
    context_type text NOT NULL CHECK (context_type <> ''),
    content jsonb NOT NULL DEFAULT '{}',
    source text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX task_contexts_task_id_idx ON taskmaster.task_contexts (task_id, context_type);
CREATE INDEX task_contexts_content_idx ON taskmaster.task_contexts USING gin (content jsonb_path_ops);
COMMENT ON TABLE taskmaster.task_contexts IS 'What an agent needs to know for a task: files, conversations, results of others';

CREATE TABLE taskmaster.task_dependencies (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    task_id uuid NOT NULL REFERENCES taskmaster.tasks ON DELETE CASCADE,
    depends_on_id uuid NOT NULL REFERENCES taskmaster.tasks ON DELETE CASCADE,
    dependency_type text NOT NULL DEFAULT 'blocks' CHECK (dependency_type IN ('blocks', 'relates_to')),
    satisfied_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (task_id, depends_on_id),
    CHECK (task_id <> depends_on_id)
);
CREATE INDEX task_dependencies_depends_on_id_idx ON taskmaster.task_dependencies (depends_on_id, task_id);
CREATE INDEX task_dependencies_open_idx ON taskmaster.task_dependencies (task_id)
    WHERE satisfied_at IS NULL AND dependency_type = 'blocks';
COMMENT ON TABLE taskmaster.task_dependencies IS 'Which task waits for which; never in a circle';
COMMENT ON COLUMN taskmaster.task_dependencies.dependency_type IS 'blocks: task_id can''t run before; relates_to: told only';
COMMENT ON COLUMN taskmaster.task_dependencies.satisfied_at IS 'When depends_on_id was completed; kept by triggers';
