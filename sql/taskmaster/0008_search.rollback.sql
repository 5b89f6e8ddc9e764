SET LOCAL ROLE sluice_definer;
DROP FUNCTION taskmaster.search_tasks(text, text[], integer, integer),
    taskmaster.search_tasks_by_tags(jsonb, jsonb, integer, integer),
    taskmaster.search_task_contexts(jsonb, integer), taskmaster.search_workflows(text, integer),
    taskmaster.get_runnable_tasks(integer, uuid),
    taskmaster.find_tasks(text, text, jsonb, jsonb, text[], integer, integer), taskmaster.like_pattern(text);
