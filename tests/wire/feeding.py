"""Feeding bytes as a network may: whole, byte by byte, and cut at every position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Give `data` whole, in single bytes, and cut in two at every position."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def same_for_all_splits(data: bytes, run: Callable[[list[bytes]], Result]) -> Result:
    """Return what `run` makes of `data`, after checking that every way to cut it gives the same."""
    results = [run(pieces) for pieces in splits(data)]
    for result in results[1:]:
        assert result == results[0]
    return results[0]
