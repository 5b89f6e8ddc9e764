SET LOCAL ROLE sluice_owner;
DROP TABLE taskmaster.configuration_settings, taskmaster.external_api_calls, taskmaster.external_integrations,
    taskmaster.webhook_events, taskmaster.deployment_scripts, taskmaster.components, taskmaster.agent_configurations;
