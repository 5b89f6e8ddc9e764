SET LOCAL ROLE sluice_owner;
REVOKE SELECT ON sluice.api_access_logs FROM sluice_control;
