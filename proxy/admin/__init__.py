"""The admin console: a database of the proxy's own, with PgBouncer's commands and columns."""
