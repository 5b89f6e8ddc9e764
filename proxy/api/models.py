"""What clients may send, checked before any of it is a parameter of a statement.

A field that isn't sent stays as it is, or gets the column's default; null is taken where the column may be NULL. Fields
that nobody knows are refused. Texts hold no NUL, which PostgreSQL can't store.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

NO_NUL: Final = r"^[^\x00]*$"
NOT_SENT: Final[Any] = None

# Stands for a reference to the component JsonValue, which pydantic would look up among its own.
_ANY: Final[dict[str, Any]] = {"JsonValue": True}
_VALUE: Final[dict[str, Any]] = {
    "description": "Any JSON without NUL characters",
    "anyOf": [
        {"type": "string", "pattern": NO_NUL},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "array", "items": _ANY},
        {
            "type": "object",
            "propertyNames": {"pattern": NO_NUL},
            "additionalProperties": _ANY,
        },
    ],
}
_OBJECT: Final[dict[str, Any]] = _VALUE["anyOf"][5]
_ARRAY: Final[dict[str, Any]] = _VALUE["anyOf"][4]


def _storable(value: Any) -> Any:
    """Return `value`; raise ValueError where jsonb can't hold it."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += each.keys()
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, str) and "\0" in each:
            raise ValueError("holds a NUL character")
        elif isinstance(each, float) and not math.isfinite(each):
            raise ValueError("holds a number that is too large")
    return value


def _whole(value: Any) -> Any:
    """Return 2.0 as 2: to JSON Schema both are integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _written_as(pattern: re.Pattern[str]) -> BeforeValidator:
    """Refuse what Python would take, and the format's own standard doesn't know: seconds as a time, for one."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise ValueError("is not written as its format asks")
        return value

    return BeforeValidator(check)


UUID_TEXT: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# RFC 3339, section 5.6.
_TIME_TEXT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)")

Id = Annotated[UUID, Field(strict=False), _written_as(UUID_TEXT)]
Time = Annotated[AwareDatetime, Field(strict=False), _written_as(_TIME_TEXT)]
_WHOLE: Final = BeforeValidator(_whole)

JsonObject = Annotated[dict[str, Any], AfterValidator(_storable), WithJsonSchema(_OBJECT)]
JsonArray = Annotated[list[Any], AfterValidator(_storable), WithJsonSchema(_ARRAY)]
Json = Annotated[
    dict[str, Any] | list[Any], AfterValidator(_storable), WithJsonSchema({"anyOf": [_OBJECT, _ARRAY]})
]
Title = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=NO_NUL)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=NO_NUL)]
Line = Annotated[str, StringConstraints(max_length=2000, pattern=NO_NUL)]
Text = Annotated[str, StringConstraints(max_length=100_000, pattern=NO_NUL)]
# As users.user_id.
User = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=r"^[^\x00|]*$")]
Rank = Annotated[int, Field(ge=0, le=10), _WHOLE]
Count = Annotated[int, Field(ge=0, le=2_147_483_647), _WHOLE]
Positive = Annotated[int, Field(ge=1, le=2_147_483_647), _WHOLE]
Hours = Annotated[float, Field(ge=0, le=999_999.99)]

TaskStatus = Literal["pending", "in_progress", "completed", "failed", "cancelled"]
ExecutionStatus = Literal["pending", "running", "completed", "failed", "cancelled"]
ValidationStatus = Literal["pending", "running", "passed", "failed", "cancelled"]
WorkflowStatus = Literal["draft", "active", "paused", "archived"]
Agent = Literal["claude-code", "codegen", "webhook-handler", "validation-engine"]


class Body(BaseModel):
    """What all bodies share: types as JSON has them, and no field that isn't known."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Change(Body):
    """A body of PATCH."""

    @model_validator(mode="after")
    def _says_something(self) -> Change:
        if not self.model_fields_set:
            raise ValueError("there is no field to change")
        return self


class _TaskFields(Body):
    description: Text | None = NOT_SENT
    type: Word = NOT_SENT
    status: TaskStatus = NOT_SENT
    priority: Rank = NOT_SENT
    complexity_score: Annotated[int, Field(ge=1, le=10), _WHOLE] | None = NOT_SENT
    requirements: Json = NOT_SENT
    acceptance_criteria: Json = NOT_SENT
    affected_files: JsonArray = NOT_SENT
    tags: JsonArray = NOT_SENT
    metadata: JsonObject = NOT_SENT
    project_id: Id | None = NOT_SENT
    workflow_id: Id | None = NOT_SENT
    parent_task_id: Id | None = NOT_SENT
    execution_order: Count | None = NOT_SENT
    assigned_to: User | None = NOT_SENT
    repository_url: Line | None = NOT_SENT
    branch_name: Line | None = NOT_SENT
    pr_number: Positive | None = NOT_SENT
    linear_issue_id: Line | None = NOT_SENT
    github_issue_number: Positive | None = NOT_SENT
    codegen_session_id: Line | None = NOT_SENT
    command: Text | None = NOT_SENT
    parameters: Json = NOT_SENT
    environment: JsonObject = NOT_SENT
    working_directory: Line | None = NOT_SENT
    timeout_seconds: Positive | None = NOT_SENT
    max_retries: Count = NOT_SENT
    estimated_hours: Hours | None = NOT_SENT
    actual_hours: Hours | None = NOT_SENT


class NewTask(_TaskFields):
    """A task to be made."""

    title: Title


class TaskChange(_TaskFields, Change):
    """What is to change of a task."""

    title: Title = NOT_SENT


class _ExecutionFields(Body):
    workflow_execution_id: Id | None = NOT_SENT
    agent_config: Json = NOT_SENT
    attempt: Positive = NOT_SENT
    status: ExecutionStatus = NOT_SENT
    logs: Text | None = NOT_SENT
    result: Json | None = NOT_SENT
    output: Text | None = NOT_SENT
    exit_code: Annotated[int, Field(ge=-2_147_483_648, le=2_147_483_647), _WHOLE] | None = NOT_SENT
    error_details: Json | None = NOT_SENT
    started_at: Time | None = NOT_SENT
    completed_at: Time | None = NOT_SENT


class NewExecution(_ExecutionFields):
    """An attempt of an agent at a task."""

    task_id: Id
    agent_type: Agent


class ExecutionChange(_ExecutionFields, Change):
    """What is to change of an execution."""

    agent_type: Agent = NOT_SENT


class _ValidationFields(Body):
    execution_id: Id | None = NOT_SENT
    pull_request_id: Id | None = NOT_SENT
    status: ValidationStatus = NOT_SENT
    score: Annotated[float, Field(ge=0, le=100)] | None = NOT_SENT
    validation_results: Json = NOT_SENT
    webhook_payload: Json | None = NOT_SENT


class NewValidation(_ValidationFields):
    """A check of a task's result."""

    task_id: Id
    validation_type: Word


class ValidationChange(_ValidationFields, Change):
    """What is to change of a validation."""

    validation_type: Word = NOT_SENT


class _WorkflowFields(Body):
    description: Text | None = NOT_SENT
    workflow_type: Word = NOT_SENT
    status: WorkflowStatus = NOT_SENT
    priority: Rank = NOT_SENT
    version: Positive = NOT_SENT
    definition: Json = NOT_SENT
    configuration: Json = NOT_SENT
    environment_variables: JsonObject = NOT_SENT
    tags: JsonArray = NOT_SENT
    metadata: JsonObject = NOT_SENT
    parent_workflow_id: Id | None = NOT_SENT
    project_id: Id | None = NOT_SENT
    scheduled_at: Time | None = NOT_SENT
    timeout_minutes: Positive | None = NOT_SENT
    max_retries: Count = NOT_SENT


class NewWorkflow(_WorkflowFields):
    """A workflow to be made."""

    name: Title


class WorkflowChange(_WorkflowFields, Change):
    """What is to change of a workflow."""

    name: Title = NOT_SENT


class TaskStatusChange(Body):
    """A task's next status, and why."""

    status: TaskStatus
    reason: Line | None = NOT_SENT


class ExecutionStatusChange(Body):
    """An execution's next status."""

    status: ExecutionStatus


class ValidationStatusChange(Body):
    """A validation's next status."""

    status: ValidationStatus


class WorkflowStatusChange(Body):
    """A workflow's next status."""

    status: WorkflowStatus


class Statement(Body):
    """A statement of an administrator's own."""

    sql: Annotated[str, StringConstraints(min_length=1, max_length=100_000, pattern=NO_NUL)]
    params: Annotated[list[Any], AfterValidator(_storable), Field(max_length=1000), WithJsonSchema(
        {**_ARRAY, "maxItems": 1000, "description": "Values of $1, $2, …; arrays become PostgreSQL's, objects JSON"}
    )] = Field(default_factory=list)  # fmt: skip
    pool: Literal["primary", "readonly", "priority", "background", "admin"] | None = NOT_SENT
    timeout_ms: Annotated[int, Field(ge=1, le=600_000), _WHOLE] = 30_000


_RankText = Annotated[int, Field(ge=0, le=10)]


class Filters(Body):
    """What all lists take in the query string."""

    page: Annotated[int, Field(ge=1, le=100_000, description="From 1")] = 1
    limit: Annotated[int, Field(ge=1, le=100, description="Items of a page")] = 20
    database: Annotated[str, StringConstraints(max_length=255)] | None = NOT_SENT


_Search = Annotated[
    str,
    StringConstraints(min_length=3, max_length=200, pattern=NO_NUL),
    Field(description="Text, in any case; of the matches the newest 1,000 are looked at"),
]
_Order = Literal["created_at", "-created_at", "updated_at", "-updated_at", "status", "-status"]
_RankedOrder = Literal[_Order, "priority", "-priority"]


class TaskFilters(Filters):
    """The query string of a list of tasks."""

    status: TaskStatus | None = NOT_SENT
    assigned_to: User | None = NOT_SENT
    priority: _RankText | None = NOT_SENT
    q: _Search | None = NOT_SENT
    sort: Literal[_RankedOrder, "title", "-title"] = "-created_at"


class ExecutionFilters(Filters):
    """The query string of a list of executions."""

    status: ExecutionStatus | None = NOT_SENT
    task_id: Id | None = NOT_SENT
    agent_type: Agent | None = NOT_SENT
    sort: Literal[_Order, "attempt", "-attempt"] = "-created_at"


class ValidationFilters(Filters):
    """The query string of a list of validations."""

    status: ValidationStatus | None = NOT_SENT
    task_id: Id | None = NOT_SENT
    execution_id: Id | None = NOT_SENT
    validation_type: Word | None = NOT_SENT
    sort: Literal[_Order, "score", "-score"] = "-created_at"


class WorkflowFilters(Filters):
    """The query string of a list of workflows."""

    status: WorkflowStatus | None = NOT_SENT
    workflow_type: Word | None = NOT_SENT
    priority: _RankText | None = NOT_SENT
    q: _Search | None = NOT_SENT
    sort: Literal[_RankedOrder, "name", "-name"] = "-created_at"


class Depth(Body):
    """The query string of a hierarchy."""

    depth: Annotated[int, Field(ge=0, le=100, description="Levels below the task")] = 20
    database: Annotated[str, StringConstraints(max_length=255)] | None = NOT_SENT


class Plain(Body):
    """A query string that names a database at most."""

    database: Annotated[
        str | None,
        Field(max_length=255, description="One of the configuration's; the first that knows the key"),
    ] = NOT_SENT


class _Described(GenerateJsonSchema):
    """Tells no default where there is none: NOT_SENT is no value."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        default = schema.get("default")
        return inner if default is None else {**inner, "default": default}


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model, with nothing to be looked up elsewhere but JsonValue."""
    schema = model.model_json_schema(schema_generator=_Described)
    schema.pop("title", None)
    for each in schema.get("properties", {}).values():
        each.pop("title", None)
    if issubclass(model, Change):
        schema["minProperties"] = 1
    described: dict[str, Any] = _referring(schema)
    return described


def json_value() -> dict[str, Any]:
    """Return the component JsonValue."""
    described: dict[str, Any] = _referring(_VALUE)
    return described


def _referring(schema: Any) -> Any:
    if schema == _ANY:
        return {"$ref": "#/components/schemas/JsonValue"}
    if isinstance(schema, dict):
        return {name: _referring(each) for name, each in schema.items()}
    return [_referring(each) for each in schema] if isinstance(schema, list) else schema
