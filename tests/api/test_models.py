from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.api import models
from proxy.api.resources import RESOURCES, Resource

ID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "x", "priority": 10, "pr_number": 3.0, "estimated_hours": 1},
        {"title": "x" * 255, "description": None, "project_id": ID},
        {"title": "x", "tags": ["a", {"b": None}], "metadata": {"a": [1.5]}, "requirements": []},
    ],
)
def test_a_task_is_taken(fields: dict[str, Any]) -> None:
    sent = models.NewTask.model_validate_json(json.dumps(fields))
    assert json.loads(sent.model_dump_json(exclude_unset=True)) == fields


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        '{"title": ""}',
        '{"title": null}',
        '{"title": 1}',
        '{"title": "x", "nobody_knows": 1}',
        '{"title": "x", "created_by": "mallory"}',
        '{"title": "x", "id": "' + ID + '"}',
        '{"title": "' + "x" * 256 + '"}',
        '{"title": "a\\u0000b"}',
        '{"title": "\\ud800"}',
        '{"title": "x", "priority": "5"}',
        '{"title": "x", "priority": true}',
        '{"title": "x", "priority": 5.5}',
        '{"title": "x", "priority": 11}',
        '{"title": "x", "priority": null}',
        '{"title": "x", "status": "done"}',
        '{"title": "x", "tags": {}}',
        '{"title": "x", "tags": ["a\\u0000"]}',
        '{"title": "x", "metadata": {"a\\u0000": 1}}',
        '{"title": "x", "metadata": {"a": 1e999}}',
        '{"title": "x", "metadata": []}',
        '{"title": "x", "pr_number": 2147483648}',
        '{"title": "x", "pr_number": 1e999}',
        '{"title": "x", "project_id": "6ba7b8109dad11d180b400c04fd430c8"}',
        '{"title": "x", "assigned_to": "a|b"}',
        '{"title": "x", "metadata": ' + '{"a":' * 500 + "1" + "}" * 500 + "}",
    ],
)
def test_no_other_task_is_taken(text: str) -> None:
    with pytest.raises(ValidationError):
        models.NewTask.model_validate_json(text)


@pytest.mark.parametrize(
    "time", ["1494012000", "2026-11-28", "2026-11-28T17:01:43", "soon", "99999-01-01T00:00:00Z"]
)
def test_a_time_is_written_as_rfc_3339_says(time: str) -> None:
    with pytest.raises(ValidationError):
        models.ExecutionChange.model_validate_json(json.dumps({"started_at": time}))
    sent = models.ExecutionChange.model_validate_json('{"started_at": "2026-11-28t17:01:43.5+02:00"}')
    assert sent.started_at is not None


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: str(each.name))
def test_a_change_has_something_to_change(resource: Resource) -> None:
    with pytest.raises(ValidationError, match="no field"):
        resource.change.model_validate_json("{}")


@pytest.mark.parametrize(
    "query",
    [
        {"page": "0"},
        {"page": "1.5"},
        {"page": "-1"},
        {"page": "x"},
        {"limit": "101"},
        {"limit": ""},
        {"q": "ab"},
        {"sort": "title; DROP TABLE"},
        {"status": "PENDING"},
        {"unknown": "1"},
        {"priority": "true"},
    ],
)
def test_no_other_query_string_is_taken(query: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        models.TaskFilters.model_validate_strings(query)


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: str(each.name))
def test_each_limit_is_told_in_the_schema(resource: Resource) -> None:
    schema = json.dumps(models.described(resource.new))
    for word in ("maxLength", "minimum", "enum", "additionalProperties"):
        assert word in schema
    assert "$defs" not in schema and "JsonValue" not in schema.replace("#/components/schemas/JsonValue", "")
