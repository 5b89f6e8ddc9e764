"""Intents that are known already, by text, by shape and by normalised text."""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from proxy.query.classify import cache_asked, classify, not_parsed, pool_hint
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import Intent
from proxy.query.lexer import normalize
from proxy.query.shape import Template, shape_key, template_of

MAX_BYTES: Final = 32 * 1024 * 1024

_ENTRY: Final = 700  # bytes of an Intent with its key's overhead and its place in a dict, roughly
_LARGEST: Final = 256 * 1024  # longer texts aren't kept: they are data, and hashing them is no bargain
_SEEN: Final = 4096  # a power of two


@final
class Generations:
    """A dict bounded in bytes: when the young half is full it becomes the old one, and the old one goes.

    What is used moves to the young half, so that it outlives what isn't, without a list to keep in order.
    """

    def __init__(self, max_bytes: i64) -> None:
        self.half: i64 = max_bytes // 2
        self.young: dict[bytes, Intent] = {}
        self.old: dict[bytes, Intent] = {}
        self.young_bytes: i64 = 0
        self.old_bytes: i64 = 0

    def get(self, key: bytes) -> Intent | None:
        """Return the intent kept under `key`."""
        found = self.young.get(key)
        return self.promote(key) if found is None else found

    def promote(self, key: bytes) -> Intent | None:
        """Return the intent kept under `key` in the old half, and move it to the young one."""
        found = self.old.pop(key, None)
        if found is not None:
            self.old_bytes -= _cost(key, found)
            self.put(key, found)
        return found

    def put(self, key: bytes, intent: Intent) -> None:
        """Keep `intent` under `key`, which isn't kept yet."""
        cost = _cost(key, intent)
        if cost > self.half:
            return
        if self.young_bytes + cost > self.half:
            self.old = self.young
            self.old_bytes = self.young_bytes
            self.young = {}
            self.young_bytes = 0
        self.young[key] = intent
        self.young_bytes += cost

    def clear(self) -> None:
        """Drop everything."""
        self.young = {}
        self.old = {}
        self.young_bytes = 0
        self.old_bytes = 0


def _cost(key: bytes, intent: Intent) -> i64:
    return len(key) + intent.size + _ENTRY


@final
class IntentCache:
    """Decides texts, and remembers them.

    A text is looked up as it stands, then by its shape, then normalised, then parsed. libpg_query's
    fingerprint is no key: tables behind one alias share it, as do schemas, and statements that differ 100
    levels deep. Parse errors, and what depends on a literal, are kept under the text alone; so are hints in
    comments, by being part of the normalised key.
    """

    def __init__(self, catalog: FunctionCatalog, max_parse_bytes: i64, max_bytes: i64 = MAX_BYTES) -> None:
        self.max_parse_bytes: i64 = max_parse_bytes
        # Counts the catalogues: an intent that is kept elsewhere is of one generation.
        self.generation: i64 = 0
        self.hits: i64 = 0
        self.shape_hits: i64 = 0
        self.fingerprint_hits: i64 = 0  # by normalised text
        self.misses: i64 = 0
        self._catalog = catalog
        self._texts = Generations(max_bytes // 2)
        self._shapes = Generations(max_bytes // 4)
        self._normalized = Generations(max_bytes // 4)
        # The last text that was new but for its constants: a loop in an application makes the next one like it.
        self._template: Template | None = None
        self._template_intent: Intent | None = None
        # Hashes of texts met once: what never comes again isn't worth its place among the texts.
        self._seen: list[int] = [0] * _SEEN

    def lookup(self, sql: bytes) -> Intent:
        """Return the intent of `sql`, text in UTF-8 as PostgreSQL would get it. Never raises."""
        template = self._template
        if template is not None and template.fits(sql):
            found = self._template_intent
            if found is not None:
                self.shape_hits += 1
                return found
        found = self._texts.young.get(sql)
        if found is not None:
            self.hits += 1
            return found
        return self._decide(sql)

    def lookup_prefix(self, prefix: bytes, size: i64) -> Intent:
        """Return the intent of a text of `size` bytes, too long to parse, of which `prefix` is at hand."""
        self.misses += 1
        return not_parsed(prefix, size, "longer than max_parse_bytes")

    def unparsed(self, sql: bytes, reason: str) -> Intent:
        """Return the intent of a text that can't be parsed in its session: for its encoding, say."""
        self.misses += 1
        return not_parsed(sql, len(sql), reason)

    def set_catalog(self, catalog: FunctionCatalog) -> None:
        """Decide by `catalog` from now on; forget what was decided by another."""
        self._catalog = catalog
        self.generation += 1
        self._template = None
        self._texts.clear()
        self._shapes.clear()
        self._normalized.clear()

    @property
    def catalog(self) -> FunctionCatalog:
        """Return what is decided by."""
        return self._catalog

    def entries(self) -> int:
        """Return how many keys are held."""
        count = 0
        for part in (self._texts, self._shapes, self._normalized):
            count += len(part.young) + len(part.old)
        return count

    def held_bytes(self) -> int:
        """Return roughly how many bytes they take."""
        count: i64 = 0
        for part in (self._texts, self._shapes, self._normalized):
            count += part.young_bytes + part.old_bytes
        return count

    def _decide(self, sql: bytes) -> Intent:
        found = self._texts.promote(sql)
        if found is not None:
            self.hits += 1
            return found
        size: i64 = len(sql)
        if size > self.max_parse_bytes:
            found = self.lookup_prefix(sql, size)
            if size <= _LARGEST and self._met(sql):
                self._texts.put(sql, found)
            return found
        shape = shape_key(sql)
        varies = bool(shape) and shape is not sql
        if varies:
            found = self._shapes.get(shape)
            if found is not None:
                self.shape_hits += 1
                self._template = template_of(shape)
                self._template_intent = found
                return found
        normalized = normalize(sql)
        key = normalized
        if key and b"sluice:" in sql:
            key = f"{pool_hint(sql)}\0{cache_asked(sql)}\0".encode() + key
        if key:
            found = self._normalized.get(key)
            if found is not None:
                self.fingerprint_hits += 1
                if varies:
                    self._shapes.put(shape, found)
                elif self._met(sql):
                    self._texts.put(sql, found)
                return found
        self.misses += 1
        found = classify(sql, self._catalog, normalized)
        if found.literal_dependent:
            self._texts.put(sql, found)
            return found
        if varies:
            self._shapes.put(shape, found)
        else:
            self._texts.put(sql, found)
        if key:
            self._normalized.put(key, found)
        return found

    def _met(self, sql: bytes) -> bool:
        """Tell whether `sql` was met before, as far as is remembered, and remember it."""
        mark = hash(sql)
        place = mark & (_SEEN - 1)
        if self._seen[place] == mark:
            return True
        self._seen[place] = mark
        return False
