"""The cache: what is found by what, what is never shared, and how much is held."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.query.cache import Generations, IntentCache
from proxy.query.functions import FunctionCatalog

BUILTIN: Final = FunctionCatalog.builtin()


@pytest.fixture
def cache() -> IntentCache:
    return IntentCache(BUILTIN, 16 * 1024)


def counts(cache: IntentCache) -> tuple[int, int, int, int]:
    return cache.hits, cache.shape_hits, cache.fingerprint_hits, cache.misses


def test_text_is_known_the_second_time(cache: IntentCache) -> None:
    intent = cache.lookup(b"SELECT a FROM t WHERE b = $1")
    assert cache.lookup(b"SELECT a FROM t WHERE b = $1") is intent
    assert counts(cache) == (1, 0, 0, 1)


def test_new_literals_are_known_by_their_shape(cache: IntentCache) -> None:
    intent = cache.lookup(b"SELECT a FROM t WHERE b = 1 AND c = 'x'")
    assert cache.lookup(b"SELECT a FROM t WHERE b = 23 AND c = 'it''s'") is intent
    assert counts(cache) == (0, 1, 0, 1)
    assert intent.normalized == "SELECT a FROM t WHERE b = $1 AND c = $2"


def test_new_literals_and_comments_are_known_by_the_normalized_text(cache: IntentCache) -> None:
    intent = cache.lookup(b'SELECT "a" FROM t WHERE b = 1 /* trace 1 */')
    assert cache.lookup(b'SELECT "a"  FROM t WHERE b = 2 -- trace 2') is intent
    assert cache.lookup("SELECT \"a\" FROM t WHERE b = 'é'".encode()) is intent
    assert counts(cache) == (0, 0, 2, 1)


def test_shape_of_a_known_normalized_text_is_kept(cache: IntentCache) -> None:
    intent = cache.lookup(b"SELECT 1 /* a */")
    assert cache.lookup(b"SELECT 2") is intent
    assert cache.lookup(b"SELECT 3") is intent
    assert counts(cache) == (0, 1, 1, 1)


def test_text_that_comes_again_is_kept_as_a_text(cache: IntentCache) -> None:
    cache.lookup(b'SELECT "a", 1')
    for _ in range(3):
        cache.lookup(b'SELECT "a", 2')
    assert counts(cache) == (1, 0, 2, 1)


def test_new_literals_take_no_place(cache: IntentCache) -> None:
    cache.lookup(b"SELECT a FROM t WHERE b = 0")
    entries = cache.entries()
    for number in range(1, 500):
        cache.lookup(b"SELECT a FROM t WHERE b = %d" % number)
    assert cache.entries() == entries


def test_a_loop_over_numbers_is_known_by_its_template(cache: IntentCache) -> None:
    intent = cache.lookup(b"SELECT a FROM t WHERE b = 0")
    found = {id(cache.lookup(b"SELECT a FROM t WHERE b = %d" % number)) for number in range(1, 500)}
    assert found == {id(intent)}
    assert counts(cache) == (0, 499, 0, 1)


def test_a_template_ends_with_its_catalogue(cache: IntentCache) -> None:
    before = [cache.lookup(b"SELECT f(%d)" % number) for number in range(3)]
    cache.set_catalog(FunctionCatalog.builtin())
    assert cache.lookup(b"SELECT f(3)") is not before[-1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # libpg_query gives each pair one fingerprint
        ("SELECT * FROM secrets AS t", "SELECT * FROM notes AS t"),
        ("SELECT * FROM a.t", "SELECT * FROM b.t"),
        ("SELECT * FROM t_2024_01", "SELECT * FROM t_2024_02"),
        ("SELECT " + "- " * 120 + "1", "SELECT " + "- " * 120 + "nextval('s')"),
        ("UPDATE pg_settings AS s SET setting = 'x'", "UPDATE t AS s SET setting = 'x'"),
        # and these differ in what stands in their literals
        ("SET ROLE 'none'", "SET ROLE 'x'"),
        ("SET sluice.pool = 'background'", "SET sluice.pool = 'priority'"),
        ("SELECT set_config('a.b', 'x', false)", "SELECT set_config('sluice.identity', 'x', false)"),
        ("SELECT set_config($1, $2, false)", "SELECT set_config('a.b', 'x', false)"),
        ("SELECT set_config('a.b', 'x', false)", "SELECT set_config('a.b', 'x', true)"),
        ("SELECT current_setting('a.b')", "SELECT current_setting('transaction_read_only')"),
        ("SELECT 1 /* sluice: pool=background */", "SELECT 1 /* sluice: pool=priority */"),
        ("SELECT 1 /* sluice: pool=background */", "SELECT 1 /* anything */"),
        ("SELECT 1", "SELECT 1 /* sluice: pool=background */"),
        ("EXPLAIN (ANALYZE 1) SELECT 1", "EXPLAIN (ANALYZE 0) SELECT 1"),
        ("SELECT 1", "SELECT '1"),
        ("SELECT a.b", "SELECT a . b"),
        ("SELECT 1", "SELECT true"),
        # a literal that says what an identifier is, and words that are literals elsewhere
        ("SELECT U&\"pure!0031\" UESCAPE '!' ()", "SELECT U&\"pure!0031\" UESCAPE '#' ()"),
        ("SELECT pure.true()", "SELECT pure.false()"),
        ("SELECT pure . true ()", "SELECT pure . /**/ false ()"),
    ],
)
def test_never_shares(one: str, other: str) -> None:
    catalog = FunctionCatalog.from_rows(
        [
            ("pg_catalog", "current_setting", "s"),
            ("pure", "pure1", "s"),
            ("pure", "pure!0031", "v"),
            ("pure", "true", "s"),
            ("pure", "false", "v"),
        ]
    )
    for first, second in ((one, other), (other, one)):
        alone = IntentCache(catalog, 16 * 1024).lookup(second.encode())
        cache = IntentCache(catalog, 16 * 1024)
        before = cache.lookup(first.encode())
        after = cache.lookup(second.encode())
        for name in (
            "kind",
            "target",
            "pool",
            "settings",
            "pin",
            "refused",
            "sets_pool",
            "needs_write",
            "unclean",
        ):
            assert getattr(after, name) == getattr(alone, name)
        if after is before:
            assert after.normalized == alone.normalized


def test_hints_are_kept_with_their_text(cache: IntentCache) -> None:
    intent = cache.lookup(b"SELECT 1 /* sluice: pool=background */")
    assert intent.pool == "background"
    assert cache.lookup(b"SELECT 2 /* sluice: pool=background */") is intent
    assert cache.lookup(b"SELECT 2").pool == ""


def test_text_with_a_hint_in_a_string_is_as_any_other(cache: IntentCache) -> None:
    intent = cache.lookup(b"SELECT 'sluice: pool=background', $1")
    assert intent.pool == ""
    assert cache.lookup(b"SELECT 'sluice: pool=priority', $1") is intent


def test_parse_errors_are_kept_under_their_text_alone(cache: IntentCache) -> None:
    intent = cache.lookup(b"SELEC 1")
    assert cache.lookup(b"SELEC 1") is intent
    assert cache.lookup(b"SELEC 2") is not intent
    assert counts(cache) == (1, 0, 0, 2)


def test_new_catalogue_forgets_everything(cache: IntentCache) -> None:
    texts = [b"SELECT f(1)", b"SELECT f($1)", b'SELECT "f"(1)']
    assert [cache.lookup(text).target for text in texts] == ["primary"] * 3
    cache.set_catalog(FunctionCatalog.from_rows([("app", "f", "s")]))
    assert cache.entries() == 0
    assert cache.held_bytes() == 0
    assert [cache.lookup(text).target for text in texts] == ["readonly"] * 3


def test_text_over_max_parse_bytes_is_not_parsed() -> None:
    cache = IntentCache(BUILTIN, 100)
    long = b"SELECT 1, " * 10 + b"2"
    intent = cache.lookup(long)
    assert (intent.kind, intent.target, intent.reason) == (
        "unknown",
        "primary",
        "longer than max_parse_bytes",
    )
    assert intent.normalized.startswith("<not parsed: 101 bytes, sha256 ")
    assert cache.lookup(long[:100].replace(b", 2", b"  ")).kind != "write"


def test_long_text_that_comes_again_is_kept(cache: IntentCache) -> None:
    long = b"SELECT " + b"a, " * 10_000 + b"b"
    assert cache.lookup(long) is not cache.lookup(long)
    assert cache.lookup(long) is cache.lookup(long)


def test_huge_text_is_never_kept(cache: IntentCache) -> None:
    huge = b"INSERT INTO t VALUES ('" + b"x" * 300_000 + b"')"
    for _ in range(3):
        assert cache.lookup(huge).needs_write
    assert cache.entries() == 0


def test_prefix_tells_the_size_of_the_whole(cache: IntentCache) -> None:
    intent = cache.lookup_prefix(b"INSERT INTO t VALUES ('" + b"x" * 20_000, 2_000_000)
    assert intent.needs_write
    assert intent.unclean == "not parsed"
    assert intent.normalized.startswith("<not parsed: 2000000 bytes, sha256 ")


def test_rest_that_cannot_be_looked_at_is_nothing_for_a_reader(cache: IntentCache) -> None:
    text = b"SELECT '" + b"x" * 40_000 + b"'"
    assert cache.lookup_prefix(text[:20_000], len(text)).needs_write
    assert not cache.lookup_prefix(text, len(text)).needs_write
    assert not cache.lookup(text).needs_write


def test_text_of_another_encoding_is_not_parsed(cache: IntentCache) -> None:
    intent = cache.unparsed(b"SELECT '\xe9'; SET ROLE x", "client_encoding is LATIN1")
    assert (intent.kind, intent.reason) == ("unknown", "client_encoding is LATIN1")
    assert intent.refused
    assert cache.entries() == 0


@given(st.lists(st.binary(min_size=1, max_size=400), max_size=60))
def test_bytes_are_bounded(texts: list[bytes]) -> None:
    limit = 20_000
    cache = IntentCache(BUILTIN, 1_000, limit)
    for text in texts:
        cache.lookup(text)
        cache.lookup(b"SELECT '" + text.hex().encode() + b"' /* x */")
        cache.lookup(b"SELECT a" + text.hex().encode())
        assert cache.held_bytes() <= limit


def test_statements_that_never_come_again_hold_no_more_memory_than_the_limit() -> None:
    limit = 512 * 1024
    cache = IntentCache(BUILTIN, 16 * 1024, limit)
    values = ", ".join(f"'{number:030}'" for number in range(60))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(150):
            cache.lookup(f'SELECT "a{number}" FROM t WHERE b IN ({values})'.encode())
        for number in range(1_000):
            cache.lookup(b"SELECT a FROM t_%d WHERE b = 1" % number)
        assert limit / 4 < cache.held_bytes() <= limit
        gc.collect()
        # held_bytes() is an estimate; what the interpreter counts isn't far from it.
        assert tracemalloc.get_traced_memory()[0] - before < 2 * limit
    finally:
        tracemalloc.stop()


def test_held_bytes_follow_what_is_held() -> None:
    kept = Generations(10_000)
    intent = IntentCache(BUILTIN, 1_000).lookup(b"SELECT 1")
    for number in range(200):
        kept.put(b"%d" % number, intent)
        kept.get(b"%d" % (number // 2))
        assert kept.young_bytes == sum(len(key) + intent.size + 700 for key in kept.young)
        assert kept.old_bytes == sum(len(key) + intent.size + 700 for key in kept.old)
        assert kept.young_bytes + kept.old_bytes <= 10_000


def test_what_is_used_outlives_what_is_not() -> None:
    kept = Generations(10_000)
    intent = IntentCache(BUILTIN, 1_000).lookup(b"SELECT 1")
    kept.put(b"used", intent)
    kept.put(b"unused", intent)
    for number in range(100):
        kept.put(b"%d" % number, intent)
        assert kept.get(b"used") is intent
    assert kept.get(b"unused") is None


def test_entry_larger_than_a_half_is_not_kept() -> None:
    kept = Generations(10_000)
    intent = IntentCache(BUILTIN, 1_000).lookup(b"SELECT 1")
    kept.put(b"x" * 6_000, intent)
    assert kept.get(b"x" * 6_000) is None
    assert kept.young_bytes == 0
