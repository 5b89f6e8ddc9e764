-- Search. LIKE and the operators of jsonb are not leakproof, so under a policy no trigram or GIN index serves
-- them. These functions run as sluice_definer, whose policy lets every row pass, and repeat the predicate of the
-- policy `own` of tasks and workflows; logins of sluice_admin search everything.

SET LOCAL ROLE sluice_owner;
GRANT CREATE ON SCHEMA taskmaster TO sluice_definer;
SET LOCAL ROLE sluice_definer;

CREATE FUNCTION taskmaster.like_pattern(query text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
    IF query IS NULL OR length(query) NOT BETWEEN 3 AND 200 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a search has 3 to 200 characters';
    END IF;
    RETURN '%' || replace(replace(replace(query, chr(92), chr(92) || chr(92)), '%', chr(92) || '%'), '_', chr(92) || '_') || '%';
END
$f$;
COMMENT ON FUNCTION taskmaster.like_pattern(text) IS
    'Return a pattern of LIKE that finds the text anywhere; raises 22023 for less than the 3 characters of a trigram';

CREATE FUNCTION taskmaster.search_tasks(query text, statuses text[] DEFAULT NULL, max_rows integer DEFAULT 50,
    skip_rows integer DEFAULT 0) RETURNS SETOF taskmaster.tasks
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
SET plan_cache_mode = force_custom_plan
AS $f$
DECLARE
    pattern text := taskmaster.like_pattern(query);
    everything boolean := pg_has_role(session_user, 'sluice_admin', 'USAGE');
    me text := sluice.current_user_id('read:tasks');
BEGIN
    RETURN QUERY
    SELECT t.* FROM taskmaster.tasks t
    WHERE (t.title ILIKE pattern OR t.description ILIKE pattern)
      AND (everything OR t.created_by = me OR t.assigned_to = me
           OR t.project_id = ANY (ARRAY(SELECT p.id FROM taskmaster.projects p WHERE p.owner_id = me)))
      AND (statuses IS NULL OR t.status = ANY (statuses))
    ORDER BY t.created_at DESC, t.id
    LIMIT least(max_rows, 1000) OFFSET skip_rows;
END
$f$;
COMMENT ON FUNCTION taskmaster.search_tasks(text, text[], integer, integer) IS
    'Return tasks whose title or description has the text, in any case, the newest first; at most 1,000';

CREATE FUNCTION taskmaster.search_tasks_by_tags(tags jsonb, metadata jsonb DEFAULT '{}', max_rows integer DEFAULT 50,
    skip_rows integer DEFAULT 0) RETURNS SETOF taskmaster.tasks
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
SET plan_cache_mode = force_custom_plan
AS $f$
DECLARE
    everything boolean := pg_has_role(session_user, 'sluice_admin', 'USAGE');
    me text := sluice.current_user_id('read:tasks');
BEGIN
    RETURN QUERY
    SELECT t.* FROM taskmaster.tasks t
    WHERE (search_tasks_by_tags.tags = '[]' OR t.tags @> search_tasks_by_tags.tags)
      AND (search_tasks_by_tags.metadata = '{}' OR t.metadata @> search_tasks_by_tags.metadata)
      AND (everything OR t.created_by = me OR t.assigned_to = me
           OR t.project_id = ANY (ARRAY(SELECT p.id FROM taskmaster.projects p WHERE p.owner_id = me)))
    ORDER BY t.created_at DESC, t.id
    LIMIT least(max_rows, 1000) OFFSET skip_rows;
END
$f$;
COMMENT ON FUNCTION taskmaster.search_tasks_by_tags(jsonb, jsonb, integer, integer) IS
    'Return tasks that have all the tags of an array, and contain the metadata, the newest first; at most 1,000';

CREATE FUNCTION taskmaster.search_task_contexts(content jsonb, max_rows integer DEFAULT 50)
RETURNS SETOF taskmaster.task_contexts
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
SET plan_cache_mode = force_custom_plan
AS $f$
DECLARE
    everything boolean := pg_has_role(session_user, 'sluice_admin', 'USAGE');
    me text := sluice.current_user_id('read:tasks');
BEGIN
    RETURN QUERY
    SELECT c.* FROM taskmaster.task_contexts c JOIN taskmaster.tasks t ON t.id = c.task_id
    WHERE c.content @> search_task_contexts.content
      AND (everything OR t.created_by = me OR t.assigned_to = me
           OR t.project_id = ANY (ARRAY(SELECT p.id FROM taskmaster.projects p WHERE p.owner_id = me)))
    ORDER BY c.created_at DESC, c.id
    LIMIT least(max_rows, 1000);
END
$f$;
COMMENT ON FUNCTION taskmaster.search_task_contexts(jsonb, integer) IS
    'Return contexts of tasks whose content contains this, the newest first; at most 1,000';

CREATE FUNCTION taskmaster.search_workflows(query text, max_rows integer DEFAULT 50)
RETURNS SETOF taskmaster.workflows
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
SET plan_cache_mode = force_custom_plan
AS $f$
DECLARE
    pattern text := taskmaster.like_pattern(query);
    everything boolean := pg_has_role(session_user, 'sluice_admin', 'USAGE');
    me text := sluice.current_user_id('read:tasks');
BEGIN
    RETURN QUERY
    SELECT w.* FROM taskmaster.workflows w
    WHERE w.name ILIKE pattern
      AND (everything OR w.created_by = me
           OR w.project_id = ANY (ARRAY(SELECT p.id FROM taskmaster.projects p WHERE p.owner_id = me)))
    ORDER BY w.created_at DESC, w.id
    LIMIT least(max_rows, 1000);
END
$f$;
COMMENT ON FUNCTION taskmaster.search_workflows(text, integer) IS
    'Return workflows whose name has the text, in any case, the newest first; at most 1,000';

REVOKE ALL ON FUNCTION taskmaster.like_pattern(text), taskmaster.search_tasks(text, text[], integer, integer),
    taskmaster.search_tasks_by_tags(jsonb, jsonb, integer, integer),
    taskmaster.search_task_contexts(jsonb, integer), taskmaster.search_workflows(text, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.search_tasks(text, text[], integer, integer),
    taskmaster.search_tasks_by_tags(jsonb, jsonb, integer, integer),
    taskmaster.search_task_contexts(jsonb, integer), taskmaster.search_workflows(text, integer)
    TO authenticated_users;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA taskmaster FROM sluice_definer;
