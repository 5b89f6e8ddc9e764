"""What is wrong with a configuration: every problem at once, each with its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from proxy.errors import SluiceError

# Keys and list indices, from the top of the document down.
Path = tuple[str | int, ...]


class Problem(NamedTuple):
    """One thing that is wrong: the key's path, its line (0 = unknown), and what to do about it."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        """Return `path (line n): message`."""
        place = f"{self.path} (line {self.line})" if self.line and self.path else self.path
        return f"{place or f'line {self.line}'}: {self.message}" if place or self.line else self.message


class ConfigError(SluiceError):
    """A configuration that can't be used; `problems` holds all that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: list[Problem] = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Sequence[str | int]) -> str:
    """Return the path as users write it: `databases.app.hosts[0].port`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
