"""The store of results against a plain model: who finds what, and what may be kept."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.session.results import (
    AFTER_FAILURE,
    EVERYTHING,
    MAX_WRITTEN,
    MEMORY,
    OVERHEAD,
    PATIENCE,
    Results,
    kept_from,
)
from proxy.upstream.server import Borrower
from proxy.wire.reply import QUERY, Reply


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


END = message(b"C", b"SELECT 1\0") + message(b"Z", b"I")
ROW = message(b"D", b"\0\0")


def fill(
    results: Results, key: bytes, relations: tuple[str, ...], as_of: float, now: float, body: bytes = END
) -> bool:
    flight = results.begin(key, relations, Reply(QUERY, 0), now)
    flight.sent(as_of)
    flight.take(body)
    return results.land(flight, 0, now) is not None


OPERATIONS = st.one_of(
    st.tuples(
        st.just("fill"), st.integers(0, 5), st.sets(st.sampled_from("abc"), min_size=1), st.integers(0, 400)
    ),
    st.tuples(st.just("find"), st.integers(0, 5), st.integers(1, 20), st.integers(0, 30)),
    st.tuples(st.just("wrote"), st.sampled_from("abc")),
    st.tuples(st.just("flush")),
    st.tuples(st.just("tick")),
    st.tuples(st.just("pass"), st.integers(1, 10)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPERATIONS, max_size=60), st.integers(1, 4))
def test_it_gives_what_the_model_gives(operations: list[tuple[object, ...]], room: int) -> None:
    size = OVERHEAD + 2 + len(END)
    results = Results(room * size + 400, 1_000)
    results.ttl = results.max_ttl = 1000.0
    now = 1000.0
    # Key to time and relations, the least recently used first; and when each relation was written last.
    kept: dict[bytes, tuple[float, set[str], int]] = {}
    written: dict[str, float] = {}

    for operation in operations:
        match operation:
            case ("fill", int(number), set(names), int(extra)):
                key = b"k%d" % number
                body = ROW * (extra // 40) + END
                as_of = now - extra % 7
                done = fill(results, key, tuple(sorted(names)), as_of, now, body)
                expected = all(as_of > written.get(name, 0.0) for name in names)
                assert done == expected
                if expected:
                    kept.pop(key, None)
                    kept[key] = (as_of, names, OVERHEAD + len(key) + len(body))
                    while sum(cost for _, _, cost in kept.values()) > results.max_bytes:
                        del kept[next(iter(kept))]
            case ("find", int(number), int(ttl), int(before)):
                key = b"k%d" % number
                after = now - before
                found = results.find(key, now, float(ttl), after)
                known = kept.get(key)
                if known is not None and known[0] > after and now - known[0] <= ttl:
                    assert found is not None
                    assert found.as_of == known[0]
                    kept[key] = kept.pop(key)
                else:
                    assert found is None
            case ("wrote", str(name)):
                results.wrote([name], now)
                written[name] = now
                kept = {key: each for key, each in kept.items() if name not in each[1]}
            case ("flush",):
                results.flush(now)
                written = dict.fromkeys("abc", now)
                kept = {}
            case ("tick",):
                results.tick(now)
            case ("pass", int(seconds)):
                now += seconds
        assert results.entries.keys() == kept.keys()
        assert results.bytes == sum(cost for _, _, cost in kept.values()) <= results.max_bytes
        assert results.flights == {}


def test_the_least_recently_used_goes_first() -> None:
    results = Results(3 * (OVERHEAD + 1 + len(END)), 1_000)
    for key in (b"a", b"b", b"c"):
        assert fill(results, key, ("t",), 1.0, 1.0)
    assert results.find(b"a", 1.0, 5.0, 0.0) is not None
    assert fill(results, b"d", ("t",), 1.0, 1.0)
    assert set(results.entries) == {b"a", b"c", b"d"}
    assert results.evictions == 1
    results.resize(OVERHEAD + 1 + len(END), 1_000)
    assert set(results.entries) == {b"d"}


def test_what_is_larger_than_everything_pushes_out_itself() -> None:
    results = Results(1_000, 1_000)
    fill(results, b"a" * 2_000, ("t",), 1.0, 1.0)
    assert results.entries == {}
    assert results.bytes == 0


def test_a_write_in_the_future_holds_until_then() -> None:
    results = Results(10_000, 1_000)
    results.wrote(["t"], 15.0)
    results.flush(11.0)
    assert not fill(results, b"a", ("t",), 12.0, 12.0)
    assert fill(results, b"b", ("u",), 12.0, 12.0)
    assert fill(results, b"a", ("t",), 15.1, 15.1)
    results.wrote([EVERYTHING], 20.0)
    assert results.entries == {}
    assert not fill(results, b"b", ("u",), 19.0, 19.0)


def test_what_took_longer_than_writes_are_remembered_is_not_kept() -> None:
    results = Results(10_000, 1_000)
    results.wrote(["t"], 100.0)
    results.tick(101.0 + MEMORY)
    assert not fill(results, b"a", ("t",), 99.0, 101.0 + MEMORY)


def test_more_written_relations_than_are_remembered_count_as_everything() -> None:
    results = Results(10_000, 1_000)
    assert fill(results, b"a", ("t",), 1.0, 1.0)
    results.wrote([f"r{number}" for number in range(MAX_WRITTEN + 1)], 2.0)
    assert results.entries == {}
    assert not fill(results, b"b", ("r0",), 1.5, 2.0)


class Waiter(Borrower):
    """Counts how often it was let go."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def reroute(self, now: float) -> None:
        self.times.append(now)


def test_waiters_go_on_once() -> None:
    for ending in ("land", "fail", "let_go", "tick"):
        results = Results(10_000, 1_000)
        flight = results.begin(b"a", ("t",), Reply(QUERY, 0), 1.0)
        waiters = [Waiter(), Waiter()]
        for waiter in waiters:
            flight.waiters.append(waiter)
        flight.sent(1.0)
        flight.take(END)
        if ending == "land":
            results.land(flight, 0, 2.0)
        elif ending == "fail":
            results.fail(flight, 2.0)
        elif ending == "let_go":
            results.let_go(2.0)
        else:
            results.tick(1.5 + PATIENCE)
        results.land(flight, 0, 3.0)
        results.fail(flight, 3.0)
        assert [len(waiter.times) for waiter in waiters] == [1, 1]
        assert (b"a" in results.entries) == (ending == "land")
        assert results.refuses(b"a", 2.5 if ending != "tick" else 2.0 + PATIENCE) == (ending != "land")
        assert not results.refuses(b"a", 3.0 + PATIENCE + AFTER_FAILURE)


def test_only_a_whole_plain_answer_is_kept() -> None:
    described = message(b"T", b"\0\0")
    bound = message(b"2")
    assert kept_from(bound + ROW + message(b"s") + message(b"Z", b"I")) == 0
    for good in (described + END, bound + END, bound + described + ROW + END, described + ROW * 3 + END):
        assert kept_from(good) == 0
    assert kept_from(message(b"1") + bound + END) == 5
    for bad in (
        b"",
        END[:-1],
        END + END,
        message(b"Z", b"I"),
        message(b"C", b"SELECT 1\0") + message(b"Z", b"T"),
        message(b"C", b"A\0") + END,
        message(b"N", b"\0") + END,
        message(b"S", b"a\0b\0") + END,
        message(b"A", b"\0\0\0\0a\0b\0") + END,
        message(b"E", b"\0") + message(b"Z", b"I"),
        bound + message(b"1") + END,
        b"D\0\0\0\1" + END,
        ROW + message(b"s") + END,
        END + ROW,
    ):
        assert kept_from(bad) == -1, bad
