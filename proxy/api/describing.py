"""The API's description for OpenAPI: what each operation takes and answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel

from proxy.api.bodies import IDEMPOTENCY_KEY, MOST_BODY
from proxy.api.models import Depth, Plain, Statement, described, json_value
from proxy.api.query import MOST_BYTES, MOST_ROWS, NDJSON
from proxy.api.resources import RESOURCES, Resource

Description = dict[str, Any]

_TAG: Final = {"type": "string", "pattern": '^"[0-9a-f]{32}"$'}
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}

_REASONS: Final = {
    "304": "It is as the client has it",
    "400": "The body is no JSON, or ended too soon",
    "401": "MISSING_API_KEY, INVALID_API_KEY",
    "403": "INSUFFICIENT_PERMISSIONS, ADDRESS_NOT_ALLOWED",
    "404": "NOT_FOUND: there is nothing of that id, or the key's user doesn't see it. UNKNOWN_DATABASE",
    "408": "The body didn't come in time",
    "409": "CONFLICT: the rows that are there, or the rules of their status, forbid it",
    "412": "PRECONDITION_FAILED: it has changed since the client got it",
    "413": f"The body has more than {MOST_BODY} bytes",
    "415": "The body is no application/json",
    "422": "VALIDATION_ERROR: a value is not allowed; the detail names it",
    "429": "RATE_LIMIT_EXCEEDED: the key's rate, or failed attempts of its address",
    "500": "QUERY_EXECUTION_ERROR, INTERNAL_ERROR",
    "501": "SCHEMA_NOT_INSTALLED: the database lacks the schema taskmaster",
    "503": "UPSTREAM_UNAVAILABLE, NO_PRIMARY, POOL_EXHAUSTED, SHUTTING_DOWN: try again",
    "504": "QUERY_TIMEOUT: the statement took too long, and was cancelled",
}
_ALWAYS: Final = ("401", "403", "404", "422", "429", "500", "501", "503", "504")
_WITH_BODY: Final = ("400", "408", "413", "415")

PROBLEM: Final = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"code": _TEXT, "message": _TEXT, "detail": _TEXT},
            "required": ["code", "message", "detail"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}


def operation(
    summary: str,
    answers: Description,
    query: type[BaseModel] = Plain,
    body: type[BaseModel] | None = None,
    on_one: bool = False,
    headers: Iterable[Description] = (),
    refusals: Iterable[str] = (),
) -> Description:
    """Return what OpenAPI says of an operation. `on_one`: its path names an id."""
    parameters = [*_in_query(query), *headers]
    if on_one:
        place = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
        parameters.insert(0, place)
    statuses = sorted({*_ALWAYS, *refusals, *(_WITH_BODY if body is not None else ())})
    told: Description = {
        "summary": summary,
        "parameters": parameters,
        "responses": {**answers, **{status: _refusal(status) for status in statuses}},
        "security": [{"ApiKey": []}, {"Bearer": []}],
    }
    if body is not None:
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": described(body)}}}
    return told


def _in_query(model: type[BaseModel]) -> list[Description]:
    schema = described(model)
    found = []
    for name, each in schema["properties"].items():
        chosen = next((arm for arm in each.get("anyOf", ()) if arm.get("type") != "null"), each)
        told = {
            "name": name,
            "in": "query",
            "schema": {k: v for k, v in chosen.items() if k != "description"},
        }
        description = each.get("description", chosen.get("description"))
        found.append({**told, **({"description": description} if description else {})})
    return found


def _refusal(status: str) -> Description:
    if status == "304":
        return {"description": _REASONS[status], "headers": _headers(("ETag", _TAG))}
    headers: list[tuple[str, Description]] = []
    if status in ("429", "503"):
        headers = [("Retry-After", {"type": "integer", "minimum": 1})]
    if status == "401":
        headers = [("WWW-Authenticate", _TEXT)]
    answer: Description = {
        "description": _REASONS[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    return {**answer, "headers": _headers(*headers)} if headers else answer


def _headers(*headers: tuple[str, Description]) -> Description:
    return {name: {"schema": schema} for name, schema in headers}


def _answer(description: str, schema: Description, *headers: tuple[str, Description]) -> Description:
    answer: Description = {"description": description, "content": {"application/json": {"schema": schema}}}
    return {**answer, "headers": _headers(*headers)} if headers else answer


def _ref(name: str) -> Description:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(name: str, description: str, schema: Description) -> Description:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


_IF_MATCH: Final = _header("If-Match", "Only if it still has this ETag", _TEXT)
_IF_NONE_MATCH: Final = _header("If-None-Match", "Only if it has another ETag", _TEXT)
_ONCE: Final = _header(
    "Idempotency-Key",
    "The same key and body, within 24 hours: the same answer, and nothing is made again",
    {"type": "string", "pattern": IDEMPOTENCY_KEY},
)


def of_resource(resource: Resource) -> dict[tuple[str, str], tuple[str, Description]]:
    """Return name and description of each operation on a resource, by path and method."""
    one, name = resource.one, resource.name
    an = f"{'an' if one[0] in 'AEIOU' else 'a'} {one.lower()}"
    item, tag = _ref(one), ("ETag", _TAG)
    shown = {"200": _answer(f"The {one.lower()}", item, tag)}
    made = _answer(
        "It was made, now or with the same Idempotency-Key before", item, tag, ("Location", _TEXT),
        ("Idempotency-Replayed", {"type": "string", "enum": ["true", "false"]}),
    )  # fmt: skip
    links = {each: f"{each}_{name}" for each in ("get", "change", "delete", "set_status")}
    if name == "tasks":
        links["hierarchy"] = "hierarchy"
    made["links"] = {
        each: {"operationId": id, "parameters": {"id": "$response.body#/id"}} for each, id in links.items()
    }
    page = {"200": _answer("A page", _ref(f"{one}Page"), ("Link", _TEXT))}
    return {
        (f"/{name}", "GET"): ("list", operation(f"List {name}", page, resource.filters)),
        (f"/{name}", "POST"): (
            "create",
            operation(
                f"Make {an}", {"201": made}, body=resource.new, headers=[_ONCE], refusals=["409"]
            ),
        ),
        (f"/{name}/{{id}}", "GET"): (
            "get",
            operation(f"Get {an}", shown, on_one=True, headers=[_IF_NONE_MATCH], refusals=["304"]),
        ),
        (f"/{name}/{{id}}", "PATCH"): (
            "change",
            operation(
                f"Change {an}: the fields that are sent", shown, body=resource.change, on_one=True,
                headers=[_IF_MATCH], refusals=["409", "412"],
            ),
        ),
        (f"/{name}/{{id}}", "DELETE"): (
            "delete",
            operation(
                f"Delete {an}", {"204": {"description": "It is gone"}}, on_one=True,
                headers=[_IF_MATCH], refusals=["409", "412"],
            ),
        ),
        (f"/{name}/{{id}}/status", "PATCH"): (
            "set_status",
            operation(
                f"Change the status of {an}", shown, body=resource.status, on_one=True,
                refusals=["409"],
            ),
        ),
    }  # fmt: skip


def others() -> dict[tuple[str, str], tuple[str, Description]]:
    """Return the same for the operations beside the resources."""
    return {
        ("/health", "GET"): (
            "health", operation("Ask the database for a sign of life", {"200": _answer("It answers", _ref("Health"))}),
        ),
        ("/tasks/{id}/hierarchy", "GET"): (
            "hierarchy",
            operation(
                "Get a task and what is below it, parents before children",
                {"200": _answer("The tasks", _ref("Hierarchy"))}, Depth, on_one=True,
            ),
        ),
        ("/metrics", "GET"): (
            "metrics",
            operation(
                "Get the state of pools and hosts, and what was measured in the last hour",
                {"200": _answer("The figures", _ref("Metrics"))},
            ),
        ),
        ("/query", "POST"): (
            "query",
            operation(
                f"Run an administrator's SQL statement; at most {MOST_ROWS} rows and {MOST_BYTES} bytes are shown",
                {
                    "200": {
                        "description": "The rows. What fails behind the first of them is told in `error`; "
                        f"with `Accept: {NDJSON}` each row has a line of its own",
                        "content": {
                            "application/json": {"schema": _ref("Result")},
                            NDJSON: {"schema": {"type": "string"}},
                        },
                    }
                },
                body=Statement, refusals=["409"],
            ),
        ),
    }  # fmt: skip


def schemas() -> dict[str, Description]:
    """Return the components that the operations refer to."""
    found: dict[str, Description] = {"Problem": PROBLEM, "JsonValue": json_value()}
    for resource in RESOURCES:
        found[resource.one] = resource.shown()
        found[f"{resource.one}Page"] = _closed(
            {
                "items": {"type": "array", "items": _ref(resource.one)},
                "page": _COUNT, "limit": _COUNT, "total": _COUNT, "pages": _COUNT,
                "links": {
                    "type": "object",
                    "properties": dict.fromkeys(("self", "first", "prev", "next", "last"), _TEXT),
                    "required": ["self", "first", "last"],
                },
            }
        )  # fmt: skip
    maybe_id = {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]}
    below = {
        "id": {"type": "string", "format": "uuid"}, "parent_task_id": maybe_id, "title": _TEXT, "status": _TEXT,
        "priority": {"type": "integer"}, "depth": _COUNT, "path": {"type": "array", "items": _TEXT},
    }  # fmt: skip
    found["Hierarchy"] = _closed(
        {
            "root": {"type": "string", "format": "uuid"},
            "completion": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "truncated": {"type": "boolean"},
            "tasks": {"type": "array", "items": _closed(below)},
        }
    )
    found["Health"] = _closed(
        {"status": {"type": "string", "const": "ok"}, "database": _TEXT, "response_ms": {"type": "number"}}
    )
    objects = {"type": "array", "items": {"type": "object"}}
    found["Metrics"] = _closed(
        {"database": _TEXT, "pools": objects, "hosts": objects, "measurements": objects}
    )
    column = {"name": _TEXT, "type": {"type": ["string", "null"]}, "oid": {"type": "integer"}}
    found["Result"] = _closed(
        {
            "columns": {"type": "array", "items": _closed(column)},
            "rows": {"type": "array", "items": {"type": "array"}},
            "row_count": _COUNT,
            "truncated": {"type": "boolean"},
            "command": _TEXT,
            "error": {"anyOf": [PROBLEM["properties"]["error"], {"type": "null"}]},  # type: ignore[index]
        }
    )
    return found


def _closed(properties: Description) -> Description:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
