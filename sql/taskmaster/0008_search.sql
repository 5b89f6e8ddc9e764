-- Search, and tasks to run. LIKE and the operators of jsonb are not leakproof, so under a policy no trigram or GIN index serves
-- them. These functions run as sluice_definer, whose policy lets every row pass, and repeat the predicate of the
-- policy `own` of tasks and workflows; logins of sluice_admin search everything.

SET LOCAL ROLE sluice_owner;
SET LOCAL row_security = on;  -- for the check of SQL functions
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

CREATE FUNCTION taskmaster.find_tasks(condition text, pattern text, tags jsonb, metadata jsonb, statuses text[],
    max_rows integer, skip_rows integer) RETURNS SETOF taskmaster.tasks
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $f$
DECLARE
    everything boolean := pg_has_role(session_user, 'sluice_admin', 'USAGE');
    me text := sluice.current_user_id('read:tasks');
    wanted integer := least(greatest(max_rows, 0), 1000) + least(greatest(skip_rows, 0), 100000);
    mine text := '(t.created_by = $5 OR t.assigned_to = $5 OR t.project_id = ANY (ARRAY('
        'SELECT p.id FROM taskmaster.projects p WHERE p.owner_id = $5)))';
    cut timestamptz;
    found uuid[];
    older uuid[];
BEGIN
    condition := format('(%s) AND ($4 IS NULL OR t.status = ANY ($4))', condition);
    IF NOT everything THEN
        -- A user's few tasks are looked through one by one, sooner than an index tells all that have a common word.
        IF (SELECT count(*) FROM (SELECT FROM taskmaster.visible_tasks() LIMIT 10001) AS few) <= 10000 THEN
            RETURN QUERY EXECUTE format($q$WITH mine AS MATERIALIZED (SELECT t.* FROM taskmaster.tasks t WHERE %s)
                SELECT * FROM mine t WHERE %s ORDER BY t.created_at DESC, t.id LIMIT $6 OFFSET $7$q$, mine, condition)
                USING pattern, tags, metadata, statuses, me, least(greatest(max_rows, 0), 1000), greatest(skip_rows, 0);
            RETURN;
        END IF;
        condition := format('%s AND %s', condition, mine);
    END IF;
    -- What is common is found among the newest, what is rare by its index: the planner can't tell which it is.
    cut := coalesce((SELECT t.created_at FROM taskmaster.tasks t ORDER BY t.created_at DESC OFFSET 5000 LIMIT 1), '-infinity');
    EXECUTE format($q$SELECT ARRAY(SELECT t.id FROM taskmaster.tasks t WHERE t.created_at > $7 AND %s
        ORDER BY t.created_at DESC, t.id LIMIT $6)$q$, condition)
        INTO found USING pattern, tags, metadata, statuses, me, wanted, cut;
    IF cardinality(found) < wanted THEN
        EXECUTE format($q$WITH hits AS MATERIALIZED (
            SELECT t.id, t.created_at FROM taskmaster.tasks t WHERE %s
        ) SELECT ARRAY(SELECT h.id FROM hits h WHERE h.created_at <= $7
                       ORDER BY h.created_at DESC, h.id LIMIT $6)$q$, condition)
            INTO older USING pattern, tags, metadata, statuses, me, wanted - cardinality(found), cut;
        found := found || older;
    END IF;
    RETURN QUERY
    SELECT t.* FROM unnest(found) WITH ORDINALITY AS f (id, place) JOIN taskmaster.tasks t ON t.id = f.id
    ORDER BY f.place OFFSET greatest(skip_rows, 0);
END
$f$;
COMMENT ON FUNCTION taskmaster.find_tasks(text, text, jsonb, jsonb, text[], integer, integer) IS
    'Return what the search functions of tasks find; condition is theirs, with $1 to $3 for pattern, tags and metadata';

CREATE FUNCTION taskmaster.search_tasks(query text, statuses text[] DEFAULT NULL, max_rows integer DEFAULT 50,
    skip_rows integer DEFAULT 0) RETURNS SETOF taskmaster.tasks
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
    SELECT * FROM taskmaster.find_tasks('t.title ILIKE $1 OR t.description ILIKE $1', taskmaster.like_pattern(query),
                                        NULL, NULL, statuses, max_rows, skip_rows)
$f$;
COMMENT ON FUNCTION taskmaster.search_tasks(text, text[], integer, integer) IS
    'Return tasks whose title or description has the text, in any case, the newest first; at most 1,000';

CREATE FUNCTION taskmaster.search_tasks_by_tags(tags jsonb, metadata jsonb DEFAULT '{}', max_rows integer DEFAULT 50,
    skip_rows integer DEFAULT 0) RETURNS SETOF taskmaster.tasks
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
    SELECT * FROM taskmaster.find_tasks($c$($2 = '[]' OR t.tags @> $2) AND ($3 = '{}' OR t.metadata @> $3)$c$,
                                        NULL, tags, metadata, NULL, max_rows, skip_rows)
$f$;
COMMENT ON FUNCTION taskmaster.search_tasks_by_tags(jsonb, jsonb, integer, integer) IS
    'Return tasks that have all the tags of an array, and contain the metadata, the newest first; at most 1,000';

CREATE FUNCTION taskmaster.get_runnable_tasks(max_tasks integer DEFAULT 50, project_id uuid DEFAULT NULL)
RETURNS SETOF taskmaster.tasks
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
SET plan_cache_mode = force_custom_plan
AS $f$
DECLARE
    me text := sluice.current_user_id('read:tasks');
BEGIN
    IF pg_has_role(session_user, 'sluice_admin', 'USAGE') THEN
        RETURN QUERY
        SELECT t.* FROM taskmaster.tasks t
        WHERE t.status = 'pending'
          AND (get_runnable_tasks.project_id IS NULL OR t.project_id = get_runnable_tasks.project_id)
          AND NOT EXISTS (SELECT FROM taskmaster.task_dependencies d
                          WHERE d.task_id = t.id AND d.satisfied_at IS NULL AND d.dependency_type = 'blocks')
        ORDER BY t.priority DESC, t.created_at
        LIMIT max_tasks;
        RETURN;
    END IF;
    RETURN QUERY
    WITH mine AS MATERIALIZED (
        SELECT t.id, t.priority, t.created_at FROM taskmaster.tasks t
        WHERE t.status = 'pending'
          AND (t.created_by = me OR t.assigned_to = me
               OR t.project_id = ANY (ARRAY(SELECT p.id FROM taskmaster.projects p WHERE p.owner_id = me)))
          AND (get_runnable_tasks.project_id IS NULL OR t.project_id = get_runnable_tasks.project_id)
    ), chosen AS MATERIALIZED (
        SELECT m.id FROM mine m
        WHERE NOT EXISTS (SELECT FROM taskmaster.task_dependencies d
                          WHERE d.task_id = m.id AND d.satisfied_at IS NULL AND d.dependency_type = 'blocks')
        ORDER BY m.priority DESC, m.created_at
        LIMIT max_tasks
    )
    SELECT t.* FROM chosen c JOIN taskmaster.tasks t ON t.id = c.id ORDER BY t.priority DESC, t.created_at;
END
$f$;
COMMENT ON FUNCTION taskmaster.get_runnable_tasks(integer, uuid) IS
    'Return pending tasks that wait for no other, the most urgent first';

CREATE FUNCTION taskmaster.search_task_contexts(content jsonb, max_rows integer DEFAULT 50)
RETURNS SETOF taskmaster.task_contexts
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
SET plan_cache_mode = force_custom_plan
AS $f$
DECLARE
    seen uuid[] := CASE WHEN NOT pg_has_role(session_user, 'sluice_admin', 'USAGE')
                        THEN ARRAY(SELECT taskmaster.visible_tasks()) END;
BEGIN
    RETURN QUERY
    SELECT c.* FROM taskmaster.task_contexts c
    WHERE c.content @> search_task_contexts.content AND (seen IS NULL OR c.task_id = ANY (seen))
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

REVOKE ALL ON FUNCTION taskmaster.like_pattern(text),
    taskmaster.find_tasks(text, text, jsonb, jsonb, text[], integer, integer), taskmaster.get_runnable_tasks(integer, uuid),
    taskmaster.search_tasks(text, text[], integer, integer),
    taskmaster.search_tasks_by_tags(jsonb, jsonb, integer, integer),
    taskmaster.search_task_contexts(jsonb, integer), taskmaster.search_workflows(text, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.get_runnable_tasks(integer, uuid),
    taskmaster.search_tasks(text, text[], integer, integer),
    taskmaster.search_tasks_by_tags(jsonb, jsonb, integer, integer),
    taskmaster.search_task_contexts(jsonb, integer), taskmaster.search_workflows(text, integer)
    TO authenticated_users;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA taskmaster FROM sluice_definer;
