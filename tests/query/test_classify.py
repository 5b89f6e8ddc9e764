"""Every row of the routing table, by the corpus; and texts that are made to hurt."""

from __future__ import annotations

from typing import Any, Final

import pytest

from proxy.query.classify import classify, pool_hint
from proxy.query.functions import FunctionCatalog
from proxy.query.lexer import normalize
from tests.query.corpus import ISSUES, cases
from tests.query.hostile import HOSTILE

CATALOG: Final = FunctionCatalog.builtin()
CASES: Final = list(cases())


def test_corpus_is_large() -> None:
    assert len(CASES) > 500


def test_every_report_of_a_wrong_routing_is_in_the_corpus() -> None:
    assert {case["issue"] for case in CASES if "issue" in case} == set(ISSUES)


@pytest.mark.parametrize("case", CASES, ids=[case["text"][:60] for case in CASES])
def test_text_of_the_corpus(case: dict[str, Any]) -> None:
    text = case["text"].encode()

    intent = classify(text, CATALOG, normalize(text))

    found = {
        "intent": intent.kind,
        "target": intent.target,
        "reason": intent.reason,
        "statements": intent.statements,
        "begins": intent.begins,
        "ends": intent.ends,
        "pool": intent.pool,
        "sets_pool": intent.sets_pool,
        "settings": list(intent.settings),
        "resets": list(intent.resets),
        "pin": intent.pin,
        "unpins": list(intent.unpins),
        "unclean": intent.unclean,
        "lasting": intent.lasting,
        "needs": "admin" if intent.needs_admin else "write" if intent.needs_write else "",
        "prepares": intent.prepares,
        "executes": intent.executes,
        "deallocates": intent.deallocates,
        "even_admin": intent.refused_for_admin,
    }
    expected = {key: value for key, value in case.items() if key not in ("text", "refused", "issue")}
    assert {key: found[key] for key in expected} == expected
    assert case["refused"] in intent.refused
    assert bool(case["refused"]) == bool(intent.refused)


def test_only_proven_reads_are_for_replicas() -> None:
    for case in CASES:
        intent = classify(case["text"].encode(), CATALOG)
        if intent.target == "readonly":
            assert intent.kind in ("read", "transaction", "session")
            assert not intent.needs_write
            assert not intent.needs_admin
        if intent.kind == "unknown":
            assert intent.fingerprint == ""
            assert intent.literal_dependent


def test_text_that_is_not_utf8_is_unknown() -> None:
    intent = classify(b"SELECT '\xe9'", CATALOG)
    assert (intent.kind, intent.target, intent.reason) == ("unknown", "primary", "not UTF-8")


def test_what_cannot_be_lexed_is_described_by_its_hash() -> None:
    intent = classify(b"SELECT 'x", CATALOG, normalize(b"SELECT 'x"))
    assert intent.normalized == "<not parsed: 9 bytes, sha256 2869e47a6fe3ffde>"


@pytest.mark.parametrize(
    ("name", "volatility", "target"),
    [("f", "s", "readonly"), ("f", "i", "readonly"), ("f", "v", "primary"), ("g", "i", "primary")],
)
def test_functions_are_those_of_the_catalogue(name: str, volatility: str, target: str) -> None:
    catalog = FunctionCatalog.from_rows([("app", name, volatility)])
    assert classify(b"SELECT app.f(1)", catalog).target == target


def test_users_function_under_the_name_of_current_setting_is_not_taken_for_postgresqls() -> None:
    rows = [("pg_catalog", "current_setting", "s"), ("app", "current_setting", "v")]
    for text in (b"SELECT app.current_setting('a.b')", b"SELECT current_setting('a.b')"):
        intent = classify(text, FunctionCatalog.from_rows(rows))
        assert (intent.target, intent.unclean) == ("primary", "unknown function current_setting")
        assert classify(text, FunctionCatalog.from_rows(rows[:1])).target == "readonly"


@pytest.mark.parametrize(
    ("name", "pin"),
    [("pg_advisory_lock", "advisory lock"), ("currval", "currval"), ("setseed", "setseed"), ("lo_get", "")],
)
def test_connection_is_reset_behind_a_users_function_under_a_known_name(name: str, pin: str) -> None:
    rows = [("pg_catalog", name, "v"), ("app", name, "v")]
    intent = classify(f"SELECT app.{name}(1)".encode(), FunctionCatalog.from_rows(rows))
    assert (intent.target, intent.pin, intent.unclean) == ("primary", pin, f"unknown function {name}")


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("json_value", "json_value(a, 'x')"),
        ("json_query", "json_query(a, 'x')"),
        ("json_exists", "json_exists(a, 'x')"),
        ("json", "json(a)"),
        ("json_scalar", "json_scalar(a)"),
        ("json_serialize", "json_serialize(a)"),
        ("json_object", "json_object()"),
        ("json_array", "json_array(a, b)"),
        ("json_arrayagg", "json_arrayagg(a)"),
        ("merge_action", "merge_action()"),
    ],
)
def test_newer_syntax_is_a_call_of_a_users_function_to_older_servers(name: str, call: str) -> None:
    text = f"SELECT {call} FROM t".encode()
    assert classify(text, CATALOG).target == "readonly"
    assert classify(text, FunctionCatalog.from_rows([("app", name, "s")])).target == "readonly"
    intent = classify(text, FunctionCatalog.from_rows([("app", name, "v")]))
    assert (intent.target, intent.unclean) == ("primary", f"unknown function {name}")


def test_function_names_with_quotes_are_read() -> None:
    catalog = FunctionCatalog.from_rows([("app", 'say "hi"\\', "s")])
    assert classify(b'SELECT "say ""hi""\\"()', catalog).target == "readonly"


def test_hint_is_the_first_of_a_comment_that_begins_with_it() -> None:
    assert pool_hint(b"/* sluice: pool=a */ SELECT 1 /* sluice: pool=b */") == "a"
    assert pool_hint(b"SELECT 'sluice: pool=a' /* or sluice: pool=b */") == ""


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_decided(text: bytes) -> None:
    intent = classify(text, CATALOG, normalize(text))
    if intent.kind == "unknown":
        assert intent.target == "primary"
        assert intent.unclean == "not parsed"


@pytest.mark.parametrize("name", ["one operator", "many operators", "operator behind junk", "comments"])
def test_text_that_would_keep_the_parser_busy_is_not_parsed(name: str) -> None:
    assert classify(HOSTILE[name], CATALOG).reason == "made to be slow to parse"


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT 1 " + b"-" * 200,
        b"/" + b"*" * 200 + b"/ SELECT 1",
        b"SELECT '" + b"=" * 200 + b"'",
        b'SELECT 1 AS "' + b"=" * 60 + b'"',
        b"SELECT 1" + b" /* b */" * 90,
    ],
)
def test_rulers_in_comments_and_strings_are_harmless(text: bytes) -> None:
    assert classify(text, CATALOG).kind == "read"


@pytest.mark.parametrize("hidden", ["nextval('s')", "(SELECT a FROM t FOR UPDATE)", "f(1)"])
def test_depth_hides_nothing(hidden: str) -> None:
    text = ("SELECT " + "- " * 2_000 + hidden).encode()
    assert classify(text, CATALOG).target == "primary"
