SET LOCAL ROLE sluice_owner;
DROP TABLE taskmaster.task_dependencies, taskmaster.task_contexts, taskmaster.tasks, taskmaster.workflows,
    taskmaster.projects, taskmaster.users;
RESET ROLE;
DO $do$
BEGIN
    -- Only the one that was made here stands in this schema.
    IF EXISTS (SELECT FROM pg_catalog.pg_extension
               WHERE extname = 'pg_trgm' AND extnamespace = 'taskmaster'::regnamespace) THEN
        DROP EXTENSION pg_trgm;
    END IF;
END
$do$;
DROP SCHEMA taskmaster;
