"""Verdicts on functions."""

from __future__ import annotations

from typing import Final

import pytest

from proxy.query.functions import EXTENSION_READERS, VOLATILE_READERS, FunctionCatalog, Verdict

BUILTIN: Final = FunctionCatalog.builtin()


@pytest.mark.parametrize(
    "name", ["abs", "now", "count", "row_number", "format_type", "similar_to_escape", "extract"]
)
def test_what_is_not_volatile_is_safe(name: str) -> None:
    assert BUILTIN.judge(name) is Verdict.SAFE


@pytest.mark.parametrize("name", sorted(VOLATILE_READERS))
def test_volatile_readers_exist_and_are_safe(name: str) -> None:
    assert BUILTIN.knows(name)
    assert BUILTIN.judge(name) is Verdict.SAFE


@pytest.mark.parametrize(
    "name",
    [
        "nextval",
        "setval",
        "pg_notify",
        "lo_create",
        "lo_unlink",
        "lo_put",
        "lowrite",
        "pg_logical_emit_message",
        "pg_stat_reset",
        "pg_stat_reset_shared",
        "pg_stat_reset_slru",
    ],
)
def test_what_writes(name: str) -> None:
    assert BUILTIN.judge(name) is Verdict.WRITES


@pytest.mark.parametrize(
    "name",
    [
        "currval",
        "lastval",
        "set_config",
        "txid_current",
        "pg_current_xact_id",
        "pg_export_snapshot",
        "lo_open",
        "pg_advisory_lock",
        "pg_advisory_xact_lock",
        "pg_try_advisory_lock",
        "pg_advisory_unlock",
        "setseed",
        "pg_terminate_backend",
        "pg_reload_conf",
        "pg_current_wal_lsn",
        "pg_create_restore_point",
        "pg_switch_wal",
    ],
)
def test_what_may_write_and_keeps_the_session_clean(name: str) -> None:
    assert BUILTIN.judge(name) is Verdict.MAY_WRITE


@pytest.mark.parametrize(
    "name",
    [
        "query_to_xml",
        "query_to_xmlschema",
        "query_to_xml_and_xmlschema",
        "cursor_to_xml",
        "ts_stat",
        "ts_rewrite",
        "dblink",
        "dblink_exec",
        "dblink_connect",
        "crosstab",
        "crosstab4",
        "connectby",
        "xpath_table",
        "nobodys",
    ],
)
def test_what_may_do_anything(name: str) -> None:
    assert BUILTIN.judge(name) is Verdict.UNKNOWN


@pytest.mark.parametrize("name", ["nextval", "ts_stat", "dblink", "set_config"])
def test_nothing_makes_these_safe(name: str) -> None:
    rows = [("app", name, "i")]
    assert FunctionCatalog.from_rows(rows, [name]).judge(name) is not Verdict.SAFE


def test_one_volatile_function_of_a_name_spoils_it_whatever_the_order() -> None:
    rows = [("a", "f", "i"), ("b", "f", "v"), ("c", "f", "s")]
    for start in range(3):
        catalog = FunctionCatalog.from_rows(rows[start:] + rows[:start])
        assert catalog.judge("f") is Verdict.UNKNOWN


def test_function_of_a_users_under_a_readers_name_spoils_it() -> None:
    rows = [("pg_catalog", "random", "v"), ("public", "random", "v")]
    assert FunctionCatalog.from_rows(rows[:1]).judge("random") is Verdict.SAFE
    assert FunctionCatalog.from_rows(rows).judge("random") is Verdict.UNKNOWN


@pytest.mark.parametrize("name", sorted(EXTENSION_READERS))
def test_readers_of_extensions_are_safe_in_any_schema(name: str) -> None:
    assert FunctionCatalog.from_rows([("extensions", name, "c")]).judge(name) is Verdict.SAFE


@pytest.mark.parametrize("name", sorted(EXTENSION_READERS))
def test_function_in_sql_under_the_name_of_an_extensions_is_not_meant(name: str) -> None:
    assert FunctionCatalog.from_rows([("app", name, "v")]).judge(name) is Verdict.UNKNOWN


def test_other_volatile_functions_in_c_may_write() -> None:
    assert FunctionCatalog.from_rows([("app", "f", "c")]).judge("f") is Verdict.UNKNOWN


@pytest.mark.parametrize("name", ["nextval", "pg_advisory_lock", "lo_get", "set_config", "current_setting"])
def test_users_function_under_a_listed_name_may_do_anything(name: str) -> None:
    rows = [("pg_catalog", name, "s"), ("app", name, "v")]
    assert FunctionCatalog.from_rows(rows).judge(name) is Verdict.UNKNOWN


def test_operator_answers_for_names() -> None:
    catalog = FunctionCatalog.from_rows([("app", "f", "v")], ["f", "g"])
    assert catalog.judge("f") is Verdict.SAFE
    assert catalog.judge("g") is Verdict.SAFE
    assert catalog.judge("h") is Verdict.UNKNOWN


def test_volatility_may_come_as_bytes() -> None:
    assert FunctionCatalog.from_rows([("app", "f", b"s")]).judge("f") is Verdict.SAFE
    assert FunctionCatalog.from_rows([("app", "f", b"v")]).judge("f") is Verdict.UNKNOWN
