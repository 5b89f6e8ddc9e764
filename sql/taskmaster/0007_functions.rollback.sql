SET LOCAL ROLE sluice_owner;
DROP FUNCTION
    taskmaster.create_task(text, text, text, integer, uuid, uuid, uuid, text, jsonb, jsonb, uuid[]),
    taskmaster.update_task_status(uuid, text, text), taskmaster.get_task_hierarchy(uuid, integer),
    taskmaster.calculate_task_completion(uuid), taskmaster.get_task_statistics(uuid, timestamptz),
    taskmaster.create_workflow(text, jsonb, text, text, uuid, uuid, jsonb, integer, jsonb, text),
    taskmaster.update_workflow_step(uuid, text, text, jsonb), taskmaster.get_workflow_progress(uuid);
