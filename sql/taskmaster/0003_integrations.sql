-- What tasks are done with: agents, components, integrations, and settings.

SET LOCAL ROLE sluice_owner;

CREATE TABLE taskmaster.agent_configurations (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    agent_type text NOT NULL CHECK (agent_type IN ('claude-code', 'codegen', 'webhook-handler', 'validation-engine')),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    version text NOT NULL DEFAULT '1',
    configuration jsonb NOT NULL DEFAULT '{}',
    endpoint text,
    health_status text NOT NULL DEFAULT 'unknown' CHECK (health_status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
    last_health_check timestamptz,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (agent_type, name, version)
);
COMMENT ON TABLE taskmaster.agent_configurations IS 'Agents that executions can use, by version';

CREATE TABLE taskmaster.components (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    name text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    type text NOT NULL DEFAULT 'service' CHECK (type <> ''),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive', 'maintenance', 'error')),
    version text,
    configuration jsonb NOT NULL DEFAULT '{}',
    endpoints jsonb NOT NULL DEFAULT '{}',
    health_check_url text,
    health_status text NOT NULL DEFAULT 'unknown' CHECK (health_status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
    last_health_check timestamptz,
    performance_metrics jsonb NOT NULL DEFAULT '{}',
    dependencies jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(dependencies) = 'array'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE taskmaster.components IS 'Parts of the system, for its health and its metrics';
COMMENT ON COLUMN taskmaster.components.dependencies IS 'Array of names of components';

CREATE TABLE taskmaster.deployment_scripts (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    version text NOT NULL DEFAULT '1',
    script text NOT NULL,
    parameters jsonb NOT NULL DEFAULT '{}',
    status text NOT NULL DEFAULT 'draft' CHECK (status IN ('draft', 'active', 'running', 'retired')),
    last_run_at timestamptz,
    last_result jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, version)
);
COMMENT ON TABLE taskmaster.deployment_scripts IS 'Scripts of the deployment; for administrators alone';

CREATE TABLE taskmaster.webhook_events (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    source text NOT NULL CHECK (source <> ''),
    event_type text NOT NULL CHECK (event_type <> ''),
    delivery_id text NOT NULL CHECK (delivery_id <> ''),
    payload jsonb NOT NULL DEFAULT '{}',
    signature_valid boolean NOT NULL DEFAULT false,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'processing', 'processed', 'failed', 'ignored')),
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    processed_at timestamptz,
    error_message text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (source, delivery_id)
);
CREATE INDEX webhook_events_open_idx ON taskmaster.webhook_events (created_at)
    WHERE status IN ('pending', 'processing', 'failed');
COMMENT ON TABLE taskmaster.webhook_events IS 'Deliveries of webhooks, each once; for administrators alone';
COMMENT ON COLUMN taskmaster.webhook_events.delivery_id IS 'The source''s id of the delivery: a repetition violates UNIQUE (source, delivery_id)';

CREATE TABLE taskmaster.external_integrations (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    integration_type text NOT NULL CHECK (integration_type IN ('codegen', 'github', 'linear', 'claude', 'other')),
    integration_name text NOT NULL CHECK (length(integration_name) BETWEEN 1 AND 255),
    configuration jsonb NOT NULL DEFAULT '{}',
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive', 'error')),
    last_used_at timestamptz,
    health_check_url text,
    last_health_check timestamptz,
    health_status text NOT NULL DEFAULT 'unknown' CHECK (health_status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
    rate_limit_per_minute integer CHECK (rate_limit_per_minute > 0),
    current_usage integer NOT NULL DEFAULT 0 CHECK (current_usage >= 0),
    usage_reset_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (integration_type, integration_name)
);
COMMENT ON TABLE taskmaster.external_integrations IS 'Services that are called; taskmaster.log_api_call counts the calls';
COMMENT ON COLUMN taskmaster.external_integrations.configuration IS
    'Secrets by reference alone, as {"token": "env:GITHUB_TOKEN"}; administrators read it';
COMMENT ON COLUMN taskmaster.external_integrations.rate_limit_per_minute IS 'calls per minute; NULL: no limit';
COMMENT ON COLUMN taskmaster.external_integrations.current_usage IS 'calls in the minute that ends at usage_reset_at';

CREATE TABLE taskmaster.external_api_calls (
    id uuid NOT NULL DEFAULT sluice.uuid7(),
    integration_id uuid NOT NULL,
    endpoint text NOT NULL,
    method text NOT NULL CHECK (method IN ('GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS')),
    request_headers jsonb NOT NULL DEFAULT '{}',
    request_body jsonb,
    response_status integer CHECK (response_status BETWEEN 100 AND 599),
    response_headers jsonb NOT NULL DEFAULT '{}',
    response_body jsonb,
    response_time_ms integer CHECK (response_time_ms >= 0),
    correlation_id text,
    user_id text,
    task_id uuid,
    error_message text,
    retry_count integer NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE INDEX external_api_calls_user_id_idx ON taskmaster.external_api_calls (user_id, created_at DESC);
CREATE INDEX external_api_calls_task_id_idx ON taskmaster.external_api_calls (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX external_api_calls_integration_id_idx ON taskmaster.external_api_calls (integration_id, created_at DESC);
CREATE INDEX external_api_calls_correlation_id_idx ON taskmaster.external_api_calls (correlation_id)
    WHERE correlation_id IS NOT NULL;
COMMENT ON TABLE taskmaster.external_api_calls IS
    'Calls of integrations, written by taskmaster.log_api_call. No foreign keys: logs outlive what they tell of';
COMMENT ON COLUMN taskmaster.external_api_calls.request_headers IS 'Sensitive values masked, as in bodies and response_headers';

CREATE TABLE taskmaster.configuration_settings (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    key text NOT NULL UNIQUE CHECK (length(key) BETWEEN 1 AND 255),
    value jsonb,
    value_type text NOT NULL DEFAULT 'string' CHECK (value_type IN ('string', 'number', 'boolean', 'json')),
    is_sensitive boolean NOT NULL DEFAULT false,
    description text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (value IS NULL OR value_type = 'json' OR jsonb_typeof(value) IN (value_type, 'null'))
);
COMMENT ON TABLE taskmaster.configuration_settings IS 'Settings of the system; administrators write them';
COMMENT ON COLUMN taskmaster.configuration_settings.is_sensitive IS 'Only administrators see the row, and the audit masks its value';

SELECT sluice.ensure_partitions();
