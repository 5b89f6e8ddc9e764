from __future__ import annotations

import json

import pglast
import pytest

from proxy.api import models
from proxy.api.resources import RESOURCES, Resource, hierarchy
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import READ

EVIL = "'; DROP TABLE taskmaster.tasks; --"
TASKS = RESOURCES[0]
EACH = pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: str(each.name))


@EACH
def test_each_statement_is_one_that_postgresql_parses(resource: Resource) -> None:
    sent = resource.change.model_validate({"status": "pending" if resource.one != "Workflow" else "draft"})
    new = resource.new.model_construct(_fields_set={"status"}, status="pending")
    for sql, _ in (
        resource.get("1"),
        resource.list(resource.filters()),
        resource.insert(new),
        resource.update("1", sent, None),
        resource.update("1", sent, ["a"]),
        resource.delete("1", ["a"]),
        resource.delete("1", None),
        resource.set_status("1", sent),
        hierarchy("1", 3),
    ):
        assert len(pglast.parse_sql(sql)) == 1


@EACH
def test_lists_and_items_are_reads(resource: Resource) -> None:
    intents = IntentCache(FunctionCatalog.builtin(), 16_384)
    for sql, _ in (resource.get("1"), resource.list(resource.filters())):
        assert intents.lookup(sql.encode()).kind == READ


@EACH
def test_every_order_and_filter_gives_a_statement(resource: Resource) -> None:
    orders = resource.filters.model_json_schema()["properties"]["sort"]["enum"]
    assert "-created_at" in orders
    for order in orders:
        sql, _ = resource.list(resource.filters.model_validate({"sort": order}))
        assert f"t.{order.removeprefix('-')}{' DESC' if order[0] == '-' else ''} NULLS LAST, t.id" in sql
        assert len(pglast.parse_sql(sql)) == 1


def test_every_value_is_a_parameter() -> None:
    filters = models.TaskFilters(assigned_to=EVIL, q=EVIL, status="pending", priority=3, page=3, limit=7)
    sql, values = TASKS.list(filters)
    assert "DROP" not in sql
    assert values == [EVIL, "3", EVIL, "pending", "7", "14"]
    sent = models.NewTask.model_validate_json(json.dumps({"title": EVIL, "description": None}))
    sql, values = TASKS.insert(sent)
    assert "DROP" not in sql and EVIL in str(values[0])
    assert "(description, title)" in sql


def test_only_what_is_sent_is_written() -> None:
    sent = models.TaskChange.model_validate_json('{"priority": 3, "description": null}')
    sql, values = TASKS.update("1", sent, ["a", "b"])
    assert "(description, priority) = ROW(g.description, g.priority)" in sql
    assert values == ['{"description":null,"priority":3}', "1", "{a,b}"]


@EACH
def test_what_is_shown_has_every_field_that_can_be_sent(resource: Resource) -> None:
    shown = resource.shown()
    assert {*resource.new.model_fields, "id", "created_at", "updated_at"} <= set(shown["properties"])
    assert set(resource.change.model_fields) <= set(resource.new.model_fields)
    assert "maxLength" not in str(shown)
