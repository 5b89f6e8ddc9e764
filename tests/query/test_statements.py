"""Utility statements; most of them are in the corpus."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.query.facts import Facts
from proxy.query.statements import constant, looks_inside, utility


def test_node_that_nobody_knows_is_ddl() -> None:
    facts = Facts()
    utility("FrobnicateWidgetStmt", {}, facts, lambda kind, node: None)
    facts.statements = 1
    intent = facts.intent("")
    assert (intent.kind, intent.target, intent.reason) == ("ddl", "primary", "FROBNICATE WIDGET")
    assert intent.needs_admin
    assert not looks_inside("FrobnicateWidgetStmt")


def test_nested_statement_is_handed_on() -> None:
    seen: list[str] = []
    utility("ExplainStmt", {"query": {"SelectStmt": {}}}, Facts(), lambda kind, node: seen.append(kind))
    assert seen == ["SelectStmt"]


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ({"A_Const": {"sval": {"sval": "a"}}}, "a"),
        ({"A_Const": {"sval": {}}}, ""),
        ({"TypeCast": {"arg": {"TypeCast": {"arg": {"A_Const": {"sval": {"sval": "a"}}}}}}}, "a"),
        ({"A_Const": {"ival": {"ival": 1}}}, None),
        ({"ParamRef": {"number": 1}}, None),
        ({"TypeCast": {}}, None),
        (None, None),
    ],
)
def test_constant(node: Any, value: str | None) -> None:
    assert constant(node) == value
