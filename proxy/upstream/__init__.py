"""Server connections, their pools, hosts and roles."""
