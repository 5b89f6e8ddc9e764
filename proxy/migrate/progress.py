"""What a run tells while it works, and what it has done so far."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

Say = Callable[[str], None]


class Done(NamedTuple):
    """A migration that was applied or rolled back, and how long it took."""

    revision: str
    milliseconds: int


class Progress:
    """Tells one line for each migration; on a `terminal` also which statement is at work.

    `done` and `backup` are what a run has to show, also where it failed in the end.
    """

    def __init__(self, say: Say = print, terminal: TextIO | None = None) -> None:
        self.done: list[Done] = []
        self.backup: Path | None = None
        self._say = say
        self._terminal = terminal

    def say(self, text: str) -> None:
        """Tell a line for good."""
        self.clear()
        self._say(text)

    def at_work(self, text: str) -> None:
        """Show what is being done, in place of what was shown before; on a terminal only."""
        if self._terminal is not None:
            shown = " ".join(text.split())[: shutil.get_terminal_size().columns - 1]
            self._terminal.write(f"\r\x1b[2K{shown}")
            self._terminal.flush()

    def clear(self) -> None:
        """Take away what is shown of the work."""
        self.at_work("")


def quiet(_: str) -> None:
    """Say nothing."""
