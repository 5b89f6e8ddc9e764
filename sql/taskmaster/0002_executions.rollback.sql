SET LOCAL ROLE sluice_owner;
DROP TABLE taskmaster.validations, taskmaster.pull_requests, taskmaster.workflow_events, taskmaster.workflow_states,
    taskmaster.task_executions, taskmaster.workflow_executions;
