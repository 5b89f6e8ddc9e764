"""The resources of the API: which table each is, what of it may be sent, filtered and sorted by, and the SQL for that.

Every value is a parameter. What of a statement's text depends on a request comes from the lists here alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy.api import models
from proxy.api.models import Body, Change, Filters

ETAG: Final = "left(encode(sha256(convert_to(to_jsonb(t)::text, 'UTF8')), 'hex'), 32)"
"""The entity tag of row `t`; `tag_of` in proxy.api.tags makes the same of the text."""

MOST_MATCHES: Final = 1000
"""What the search functions return at most."""

MOST_BELOW: Final = 1000
"""Tasks that a hierarchy shows."""

Ask = tuple[str, list[str | None]]


@dataclass(frozen=True)
class Resource:
    """One kind of thing; `name` is its part of the path and its table's, or `table` is."""

    name: str
    one: str
    new: type[Body]
    change: type[Change]
    status: type[Body]
    filters: type[Filters]
    # Columns that are shown and can't be sent: their JSON schemas.
    kept: dict[str, dict[str, Any]]
    table: str = ""
    search: str = ""
    changes_status: str = ""

    @property
    def relation(self) -> str:
        """Return the table's name, with its schema."""
        return f"taskmaster.{self.table or self.name}"

    def get(self, id: str) -> Ask:
        """Return what selects one."""
        return f"SELECT to_jsonb(t)::text FROM {self.relation} t WHERE t.id = $1", [id]

    def list(self, filters: Filters) -> Ask:
        """Return what selects a page: one row, with the total and the items as a JSON array."""
        values: list[str | None] = []
        conditions = []
        source = self.relation
        for name in sorted(filters.model_fields_set - {"page", "limit", "sort", "database"}):
            value = getattr(filters, name)
            if value is None:
                continue
            values.append(str(value))
            if name == "q":
                source = f"taskmaster.{self.search.format(f'${len(values)}')}"
            else:
                conditions.append(f"t.{name} = ${len(values)}")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        sort: str = filters.sort  # type: ignore[attr-defined]
        order = f"t.{sort.removeprefix('-')}{' DESC' if sort.startswith('-') else ''} NULLS LAST, t.id"
        chosen = f"FROM {source} t{where}"
        skip = (filters.page - 1) * filters.limit
        values += [str(filters.limit), str(skip)]
        page = f"ORDER BY {order} LIMIT ${len(values) - 1} OFFSET ${len(values)}"
        return (
            f"SELECT (SELECT count(*) {chosen}), (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]')::text"
            f" FROM (SELECT t.* {chosen} {page}) p)"
        ), values

    def insert(self, sent: Body) -> Ask:
        """Return what makes one."""
        names = ", ".join(f"g.{name}" for name in _names(sent))
        columns = ", ".join(_names(sent))
        return (
            f"INSERT INTO {self.relation} AS t ({columns})"
            f" SELECT {names} FROM jsonb_populate_record(NULL::{self.relation}, $1::jsonb) g"
            " RETURNING to_jsonb(t)::text"
        ), [_json(sent)]

    def update(self, id: str, sent: Body, tags: Sequence[str] | None) -> Ask:
        """Return what changes one, if its entity tag is among `tags` where these aren't None."""
        names = _names(sent)
        assigned = f"({', '.join(names)}) = ROW({', '.join(f'g.{name}' for name in names)})"
        condition, values = _matching(tags, 3)
        return (
            f"UPDATE {self.relation} t SET {assigned}"
            f" FROM jsonb_populate_record(NULL::{self.relation}, $1::jsonb) g WHERE t.id = $2{condition}"
            " RETURNING to_jsonb(t)::text"
        ), [_json(sent), id, *values]

    def delete(self, id: str, tags: Sequence[str] | None) -> Ask:
        """Return what deletes one, if its entity tag is among `tags` where these aren't None."""
        condition, values = _matching(tags, 2)
        return f"DELETE FROM {self.relation} t WHERE t.id = $1{condition} RETURNING t.id", [id, *values]

    def set_status(self, id: str, sent: Any) -> Ask:
        """Return what changes the status of one."""
        if self.changes_status:
            reason = sent.reason if "reason" in sent.model_fields_set else None
            function = f"taskmaster.{self.changes_status}($1::uuid, $2, $3)"
            return f"SELECT to_jsonb(t)::text FROM {function} t", [id, sent.status, reason]
        return (f"UPDATE {self.relation} t SET status = $2 WHERE t.id = $1 RETURNING to_jsonb(t)::text"), [
            id,
            sent.status,
        ]

    def shown(self) -> dict[str, Any]:
        """Return the JSON schema of one as it is shown: all columns, without the limits of what may be sent."""
        sent = models.described(self.new)["properties"]
        properties = {**self.kept, **{name: _loosened(each) for name, each in sent.items()}}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


def hierarchy(id: str, depth: int) -> Ask:
    """Return what selects a task and what is below it, as one row: the share that is done, and a JSON array."""
    return (
        "SELECT taskmaster.calculate_task_completion($1::uuid),"
        " (SELECT coalesce(jsonb_agg(to_jsonb(h)), '[]')::text FROM"
        f" (SELECT * FROM taskmaster.get_task_hierarchy($1::uuid, $2) LIMIT {MOST_BELOW}) h)"
    ), [id, str(depth)]


def _names(sent: Body) -> list[str]:
    return [name for name in type(sent).model_fields if name in sent.model_fields_set]


def _json(sent: Body) -> str:
    return sent.model_dump_json(exclude_unset=True)


def _matching(tags: Sequence[str] | None, number: int) -> tuple[str, list[str | None]]:
    if tags is None:
        return "", []
    return f" AND {ETAG} = ANY (${number}::text[])", ["{" + ",".join(tags) + "}"]


def _loosened(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without lengths, ranges and patterns: rows that were made by SQL have none of them."""
    if schema.get("type") in ("object", "array"):
        return {"type": schema["type"]}
    kept: dict[str, Any] = {name: schema[name] for name in ("type", "format", "enum") if name in schema}
    if "anyOf" in schema:
        kept["anyOf"] = [_loosened(each) for each in schema["anyOf"]]
    return kept


_ID: Final[dict[str, Any]] = {"type": "string", "format": "uuid"}
_TIME: Final[dict[str, Any]] = {"type": "string", "format": "date-time"}
_MAYBE_TIME: Final[dict[str, Any]] = {"anyOf": [_TIME, {"type": "null"}]}
_KEPT: Final = {"id": _ID, "created_at": _TIME, "updated_at": _TIME}

RESOURCES: Final = (
    Resource(
        "tasks", "Task", models.NewTask, models.TaskChange, models.TaskStatusChange, models.TaskFilters,
        {
            **_KEPT, "created_by": {"type": "string"}, "retry_count": {"type": "integer"},
            "started_at": _MAYBE_TIME, "completed_at": _MAYBE_TIME,
        },
        search=f"search_tasks({{}}, NULL, {MOST_MATCHES}, 0)",
        changes_status="update_task_status",
    ),
    Resource(
        "executions", "Execution", models.NewExecution, models.ExecutionChange, models.ExecutionStatusChange,
        models.ExecutionFilters, _KEPT, table="task_executions",
    ),
    Resource(
        "validations", "Validation", models.NewValidation, models.ValidationChange,
        models.ValidationStatusChange, models.ValidationFilters, _KEPT,
    ),
    Resource(
        "workflows", "Workflow", models.NewWorkflow, models.WorkflowChange, models.WorkflowStatusChange,
        models.WorkflowFilters, {**_KEPT, "created_by": {"type": "string"}},
        search=f"search_workflows({{}}, {MOST_MATCHES})",
    ),
)  # fmt: skip
