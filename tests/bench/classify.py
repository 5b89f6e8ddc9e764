"""What deciding a text costs, and what remembering it takes: python -m tests.bench.classify [--json FILE].

Each figure is the median over batches of texts, of processor time, as a machine's other programs take their turns. From
a batch's time that of an empty loop over the same texts is taken off. The call itself, from an interpreted loop, stays
in: the session, which is compiled, calls more cheaply.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from proxy import compiled
from proxy.query.cache import MAX_BYTES, IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import Intent
from tests.query.hostile import HOSTILE

MAX_PARSE: Final = 16 * 1024
BUILTIN: Final = FunctionCatalog.builtin()

# 200 characters each, and %d makes texts that differ.
_PLAIN: Final = (
    "SELECT o.id, o.total, u.name, count(*) AS lines FROM orders o JOIN users u ON u.id = o.user_id"
    " WHERE o.total > 10 AND o.state = 'open' AND u.id = %d GROUP BY o.id, u.name ORDER BY o.total DESC"
)
_QUOTED: Final = (
    'SELECT "o"."id", "o"."total", "u"."name" FROM "orders" AS "o" JOIN "users" AS "u" ON "u"."id" = "o"."user_id"'
    ' WHERE "o"."total" > 10 AND "o"."state" = \'open\' AND "u"."id" = %d ORDER BY "o"."total"'
)
_NEW: Final = (
    "SELECT o.id, o.total, u.name, count(*) AS lines FROM orders_%d o JOIN users u ON u.id = o.user_id"
    " WHERE o.total > 10 AND o.state = 'open' AND u.id = 7 GROUP BY o.id, u.name ORDER BY o.total"
)
_HIDDEN: Final = "an_identifier_of_some_length"


class Figure:
    """One line of the table: microseconds of a look-up, and what they should stay below."""

    def __init__(self, name: str, micros: float, target: float) -> None:
        self.name = name
        self.micros = micros
        self.target = target

    @property
    def met(self) -> bool:
        """Tell whether the target is met."""
        return self.micros < self.target


def main() -> None:
    """Measure, and print tables; exit with 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.classify", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--batches", type=int, default=60, help="of which the median counts")
    options = parser.parse_args()
    console = Console()
    gc.freeze()
    gc.disable()
    figures = looked_up(options.batches)
    hostile = hostile_texts()
    gc.enable()
    memory = held()
    _print(console, figures, hostile, memory)
    worst = max(hostile, key=lambda figure: figure.micros)
    if options.json:
        content = {
            "compiled": compiled(),
            "lookups_us": {figure.name: round(figure.micros, 3) for figure in figures},
            "worst_hostile": {"name": worst.name, "us": round(worst.micros)},
            "hostile_us": {figure.name: round(figure.micros) for figure in hostile},
            "memory": memory,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if not all(figure.met for figure in (*figures, worst)):
        raise SystemExit(1)


def looked_up(batches: int) -> list[Figure]:
    """Measure texts in the order in which they are looked for: as they stand, by shape, normalised, parsed."""
    counter = iter(range(10**6, 10**9))

    def new(pattern: str) -> Callable[[], list[bytes]]:
        return lambda: [(pattern % next(counter)).encode() for _ in range(200)]

    known = [f"SELECT a FROM t WHERE b = $1 AND {_HIDDEN}_{number} = $2".encode() for number in range(200)]
    wide = [b"SELECT a FROM t WHERE b = 'x%d' AND c = %d" % (n, n) for n in range(200)]
    return [
        Figure("known text", _timed(IntentCache.lookup, lambda: known, batches), 0.3),
        Figure("known shape, one new number", _timed(IntentCache.lookup, new(_PLAIN), batches), 1.0),
        Figure(
            "known shape, new strings and numbers",
            _timed(IntentCache.lookup, _fresh(wide, counter), batches),
            1.0,
        ),
        Figure(
            "200 characters, normalised text known", _timed(IntentCache.lookup, new(_QUOTED), batches), 15.0
        ),
        Figure("200 characters, new statement", _timed(IntentCache.lookup, new(_NEW), batches), 40.0),
    ]


def _fresh(texts: list[bytes], counter: Iterator[int]) -> Callable[[], list[bytes]]:
    return lambda: [text.replace(b"x", b"x%d" % next(counter)) for text in texts]


def _timed(
    lookup: Callable[[IntentCache, bytes], Intent], texts: Callable[[], list[bytes]], batches: int
) -> float:
    """Return the median microseconds of a look-up, over batches of `texts()`, each made before the clock starts."""
    cache = IntentCache(BUILTIN, MAX_PARSE)
    find = cache.lookup
    for _ in range(2):
        for text in texts():
            find(text)
    found: list[float] = []
    for _ in range(batches):
        batch = texts()
        start = time.thread_time()
        for _text in batch:
            pass
        middle = time.thread_time()
        for text in batch:
            find(text)
        found.append(((time.thread_time() - middle) - (middle - start)) / len(batch))
    return statistics.median(found) * 1e6


def hostile_texts() -> list[Figure]:
    """Measure each of the hostile texts as one never seen before, by the median of five."""
    result = []
    for name, text in HOSTILE.items():
        found = []
        for _ in range(5):
            cache = IntentCache(BUILTIN, 2 * MAX_PARSE)
            start = time.thread_time()
            cache.lookup(text)
            found.append(time.thread_time() - start)
        result.append(Figure(name, statistics.median(found) * 1e6, 20_000))
    return result


def held() -> list[dict[str, Any]]:
    """Look at the memory of the process before and after many different statements, none of which comes again."""
    process = psutil.Process()
    result = []
    for what, count, text in (
        ("1,000 statements of 16 KB", 1_000, _large),
        ("10,000 statements of 16 KB", 10_000, _large),
        ("100,000 small statements", 100_000, _small),
        ("300,000 small statements", 300_000, _small),
    ):
        gc.collect()
        before = process.memory_info().rss
        cache = IntentCache(BUILTIN, MAX_PARSE)
        for number in range(count):
            cache.lookup(text(number))
        gc.collect()
        result.append(
            {
                "what": what,
                "resident_before": before,
                "resident_after": process.memory_info().rss,
                "held_bytes": cache.held_bytes(),
                "entries": cache.entries(),
            }
        )
        del cache
    return result


def _large(number: int) -> bytes:
    return (f"SELECT a_{number} FROM t WHERE b = '" + "x" * 16_000 + '\' AND "c" = 1').encode()


def _small(number: int) -> bytes:
    return b"SELECT a FROM t_%d WHERE b = 1" % number


def _print(
    console: Console, figures: list[Figure], hostile: list[Figure], memory: list[dict[str, Any]]
) -> None:
    build = "compiled" if compiled() else "interpreted"
    table = Table(title=f"µs of a look-up, median of the batches ({build})")
    for column in ("", "µs", "target", ""):
        table.add_column(column, justify="left" if not column else "right")
    for figure in figures:
        table.add_row(
            figure.name, f"{figure.micros:.2f}", f"< {figure.target:g}", "met" if figure.met else "MISSED"
        )
    console.print(table)
    table = Table(title=f"the worst of {len(hostile)} hostile texts, ms, median of five")
    for column in ("", "ms", "target", ""):
        table.add_column(column, justify="left" if not column else "right")
    for figure in sorted(hostile, key=lambda figure: -figure.micros)[:8]:
        table.add_row(figure.name, f"{figure.micros / 1000:.1f}", "< 20", "met" if figure.met else "MISSED")
    console.print(table)
    table = Table(title=f"memory, MiB; the cache's own bound is {MAX_BYTES >> 20}")
    for column in ("different texts", "resident before", "after", "held by the cache", "entries"):
        table.add_column(column, justify="right")
    for line in memory:
        sizes = (line["resident_before"], line["resident_after"], line["held_bytes"])
        table.add_row(line["what"], *(f"{size / 2**20:.1f}" for size in sizes), f"{line['entries']:,}")
    console.print(table)


if __name__ == "__main__":
    main()
