"""What a drill is held to: each verdict with its figure and what that must be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.report import machine


@dataclass(frozen=True)
class Verdict:
    """One figure; `wanted` says what it must be, "" where it is only told."""

    what: str
    figure: str
    wanted: str = ""
    good: bool = True


def count(what: str, number: int) -> Verdict:
    """Return the verdict on something that must not happen."""
    return Verdict(what, f"{number:,}", "0", number == 0)


def below(what: str, seconds: float | None, limit: float) -> Verdict:
    """Return the verdict on a time that must stay under a limit; None stands for never."""
    good = seconds is not None and seconds < limit
    return Verdict(what, span(seconds), f"< {limit:g} s", good)


def span(seconds: float | None) -> str:
    """Return a time in words."""
    return "never" if seconds is None else f"{seconds:.2f} s"


def told(failures: Mapping[str, int]) -> str:
    """Return SQLSTATEs with how often they came; "-" for none."""
    return ", ".join(f"{state}: {number}" for state, number in sorted(failures.items())) or "-"


def print_verdicts(title: str, verdicts: Sequence[Verdict], console: Console) -> None:
    """Print them as a table."""
    table = Table("", "figure", "must be", "", title=title)
    for each in verdicts:
        mark = "" if not each.wanted else "[green]ok[/]" if each.good else "[bold red]missed[/]"
        table.add_row(each.what, each.figure, each.wanted, mark)
    console.print(table)


def write_json(path: Path, drill: str, verdicts: Sequence[Verdict], **more: Any) -> None:
    """Write verdicts, and what else there is to keep, with the machine that they were made on."""
    content = {"drill": drill, "machine": machine(), "verdicts": [asdict(each) for each in verdicts], **more}
    path.write_text(json.dumps(content, indent=2) + "\n")
