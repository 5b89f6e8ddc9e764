"""What keys were used for since it was last written back: statements, and the time of the last one."""

from __future__ import annotations

from typing import NamedTuple


class Use(NamedTuple):
    """How often a key was used, and when last, in Unix seconds."""

    key_id: str
    statements: int
    last_at: float


class Usage:
    """Adds up what sessions did until somebody writes it down; it holds one entry for each key."""

    def __init__(self) -> None:
        self._uses: dict[str, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def add(self, key_id: str, statements: int, last_at: float) -> None:
        """Count statements of a key; 0 of them for a login."""
        before, at = self._uses.get(key_id, (0, 0.0))
        self._uses[key_id] = (before + statements, max(at, last_at))

    def take(self, most: int) -> list[Use]:
        """Return at most so many entries, those that wait longest, and forget them."""
        taken = [Use(key_id, *self._uses[key_id]) for key_id in list(self._uses)[:most]]
        for use in taken:
            del self._uses[use.key_id]
        return taken

    def put_back(self, uses: list[Use]) -> None:
        """Add what couldn't be written, behind what waits already."""
        for use in uses:
            self.add(*use)
