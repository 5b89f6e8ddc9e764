"""The HTTP port: metrics, health and, later, the HTTP API."""
