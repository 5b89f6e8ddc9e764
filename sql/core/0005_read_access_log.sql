-- `pgsluice logs` reads the access log under the login that writes it. Partitions get no grant: the parent's counts.

SET LOCAL ROLE sluice_owner;

GRANT SELECT ON sluice.api_access_logs TO sluice_control;
