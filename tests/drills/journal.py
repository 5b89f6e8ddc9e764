"""What clients lived through: each thing that one of them did, and figures drawn from all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SILENT = "silence"
"""In the place of an SQLSTATE: no answer came for as long as a client waits."""

REFUSED = "login refused"
"""In the place of an SQLSTATE that libpq doesn't tell."""

CUT = "cut off"
"""In the place of an SQLSTATE: the connection ended without an error message."""


@dataclass(frozen=True, slots=True)
class Act:
    """A statement, transaction or login: when, in monotonic seconds, what came of it, and the port of who answered."""

    session: str
    kind: str
    began: float
    ended: float
    failed: str = ""  # the SQLSTATE, "" where it succeeded
    told: str = ""
    port: int = 0

    @property
    def wait(self) -> float:
        """Return how long it took, in seconds."""
        return self.ended - self.began

    def during(self, begin: float, end: float) -> bool:
        """Tell whether it was under way at any time between `begin` and `end`."""
        return self.began <= end and self.ended >= begin


@dataclass
class Journal:
    """All acts in the order in which they ended, and what became of each write."""

    acts: list[Act] = field(default_factory=list)
    acknowledged: dict[tuple[int, int], Act] = field(default_factory=dict)
    # The connection ended before the answer: it may or may not have been executed.
    in_doubt: dict[tuple[int, int], Act] = field(default_factory=dict)
    # An error on a connection that went on: it was not executed.
    refused: dict[tuple[int, int], Act] = field(default_factory=dict)

    # Reads that did not show what their session had written before.
    stale: list[Act] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Act]:
        """Return the acts of these kinds."""
        return [act for act in self.acts if act.kind in kinds]


@dataclass(frozen=True)
class Reckoning:
    """What is in the table of writes, held against what clients were told."""

    lost: int
    twice: int
    refused_but_there: int
    unknown: int
    in_doubt: int
    in_doubt_there: int


def reckon(journal: Journal, rows: Iterable[tuple[int, int]]) -> Reckoning:
    """Compare the rows (session, number) with the journal."""
    found = Counter(rows)
    known = {*journal.acknowledged, *journal.in_doubt, *journal.refused}
    return Reckoning(
        lost=sum(each not in found for each in journal.acknowledged),
        twice=sum(count > 1 for count in found.values()),
        refused_but_there=sum(each in found for each in journal.refused),
        unknown=sum(each not in known for each in found),
        in_doubt=len(journal.in_doubt),
        in_doubt_there=sum(each in found for each in journal.in_doubt),
    )


def failures(acts: Iterable[Act]) -> Counter[str]:
    """Count the failed acts by SQLSTATE."""
    return Counter(act.failed for act in acts if act.failed)


def longest_wait(acts: Iterable[Act]) -> float:
    """Return the longest that an act took, in seconds; 0.0 where there is none."""
    return max((act.wait for act in acts), default=0.0)


def longest_gap(acts: Iterable[Act], begin: float, end: float) -> float:
    """Return the longest time between `begin` and `end` in which no act ended well, in seconds."""
    times = sorted(act.ended for act in acts if not act.failed and begin <= act.ended <= end)
    edges = [begin, *times, end]
    return max(after - before for before, after in pairwise(edges))


def first(acts: Iterable[Act], after: float, fits: Callable[[Act], bool] = lambda act: True) -> float | None:
    """Return when the first act that fits ended well, at `after` or later; None where none did."""
    return min(
        (act.ended for act in acts if not act.failed and act.ended >= after and fits(act)), default=None
    )


def rates(acts: Iterable[Act], begin: float, end: float, step: float = 0.1) -> Sequence[float]:
    """Return how many acts ended well in each `step` seconds, as a number for each second."""
    counts = [0] * max(round((end - begin) / step), 1)
    for act in acts:
        place = math.floor((act.ended - begin) / step)
        if not act.failed and 0 <= place < len(counts):
            counts[place] += 1
    return [count / step for count in counts]
