"""The HTTP API: tasks, executions, validations, workflows and SQL, asked through the proxy's own sessions."""
