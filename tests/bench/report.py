"""Tell the results: a table for the terminal, JSON for programs, a chart for the README."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measure import ROWS_SCRIPT, Run, Workload
from tests.bench.rigs import POOL_SIZE, ROWS, SCALE, UNLOGGED, Rig

NAMES = ("pgsluice", "pgbouncer", "direct")
# Columns where no terminal tells its own: the tables fit, and rich's 80 would cut their names.
WIDTH = 120


def open_console() -> Console:
    """Return where tables go: as wide as the terminal, and 120 columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@dataclass
class Results:
    """All runs, by workload and rig, in the order in which they were made."""

    rigs: Sequence[Rig]
    seconds: float
    rounds: int
    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)
    idle: dict[str, tuple[int, int]] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    idle_clients: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, workload: Workload, rig: Rig, run: Run) -> None:
        """Keep one run."""
        self.runs.setdefault(workload.name, {}).setdefault(rig.name, []).append(run)

    def tps(self, workload: str, rig: str) -> float | None:
        """Return the median of the transactions per second."""
        runs = self.runs.get(workload, {}).get(rig, [])
        return median(each.tps for each in runs) if runs else None

    def cpu_us(self, workload: str, rig: str) -> float | None:
        """Return the median µs of CPU for each transaction; None for a rig without a process between."""
        runs = self.runs.get(workload, {}).get(rig, [])
        return median(each.cpu_us for each in runs) if runs and rig != "direct" else None

    def ratio(self, workload: str, one: str, other: str) -> float | None:
        """Return the median over the rounds of one rig's tps to the other's of the same round."""
        runs = self.runs.get(workload, {})
        pairs = list(zip(runs.get(one, []), runs.get(other, []), strict=False))
        return median(first.tps / second.tps for first, second in pairs) if pairs else None


def cost_of_the_log(results: Results, workloads: Sequence[Workload]) -> list[str]:
    """Return what the access log and the metrics take of the throughput, where it was measured too without them."""
    told = []
    for workload in workloads:
        ratio = results.ratio(workload.name, "pgsluice", UNLOGGED)
        if ratio is not None:
            told.append(f"{workload.name} {100 * (1 - ratio):.1f} %")
    return [f"the access log and the metrics take of the throughput: {', '.join(told)}"] if told else []


def print_table(results: Results, workloads: Sequence[Workload], console: Console) -> None:
    """Print medians and ratios, one row for each workload."""
    for rig in results.rigs:
        console.print(f"{rig.name}: {rig.version}")
    console.print(_conditions(results))
    table = Table(title="transactions per second, and µs of CPU of the process between for each transaction")
    table.add_column("workload")
    for name in NAMES:
        table.add_column(name, justify="right")
    table.add_column("pgsluice /\npgbouncer", justify="right", style="bold")
    table.add_column("pgsluice /\ndirect", justify="right")
    for name in NAMES[:2]:
        table.add_column(f"µs\n{name}", justify="right")
    for workload in workloads:
        table.add_row(
            workload.title,
            *(_number(results.tps(workload.name, name), ",.0f") for name in NAMES),
            _number(results.ratio(workload.name, "pgsluice", "pgbouncer"), ".2f"),
            _number(results.ratio(workload.name, "pgsluice", "direct"), ".2f"),
            *(_number(results.cpu_us(workload.name, name), ",.1f") for name in NAMES[:2]),
        )
    console.print(table)
    for name, (before, full) in results.idle.items():
        clients = results.idle_clients
        each = (full - before) / 1024 / clients
        console.print(
            f"{name}: {full / 2**20:.0f} MiB resident with {clients:,} idle clients"
            f" ({before / 2**20:.0f} MiB before them, {each:.1f} KiB each;"
            f" {results.resident[name] / 2**20:.0f} MiB after all work)"
        )
    for note in results.notes:
        console.print(f"note: {note}")


def write_json(results: Results, workloads: Sequence[Workload], path: Path) -> None:
    """Write every run and the medians."""
    content = {
        "machine": machine(),
        "versions": {rig.name: rig.version for rig in results.rigs},
        "conditions": _conditions(results),
        "workloads": [_as_mapping(results, workload) for workload in workloads],
        "idle": {
            name: {"clients": results.idle_clients, "before_bytes": before, "resident_bytes": full}
            for name, (before, full) in results.idle.items()
        },
        "resident_bytes_after_all_work": results.resident,
        "notes": results.notes,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_chart(results: Results, workloads: Sequence[Workload], path: Path) -> None:
    """Draw the ratios to PgBouncer, and the CPU time for each transaction, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    compared = [each for each in workloads if results.ratio(each.name, "pgsluice", "pgbouncer") is not None]
    if not compared:
        raise SystemExit("a chart compares pgsluice with PgBouncer: run both")
    places = range(len(compared))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 0.5 * len(compared) + 2), sharey=True)
    ratios = [results.ratio(each.name, "pgsluice", "pgbouncer") or 0.0 for each in compared]
    bars = left.barh(places, ratios, color="#336791")
    # Inside the bars, where the line of PgBouncer doesn't cross them.
    left.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=-30, color="white")
    left.axvline(1.0, color="black", linewidth=1)
    left.set_xlim(0, max([1.0, *ratios]) * 1.15)
    left.set_yticks(places, [each.title for each in compared])
    left.invert_yaxis()
    left.set_title("throughput, PgBouncer = 1")
    for offset, name, colour in ((-0.2, "pgsluice", "#336791"), (0.2, "pgbouncer", "#b0b0b0")):
        values = [results.cpu_us(each.name, name) or 0.0 for each in compared]
        drawn = right.barh([place + offset for place in places], values, height=0.4, color=colour, label=name)
        right.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=3)
    right.set_xscale("log")
    right.margins(x=0.25)
    right.set_title("µs of the proxy's CPU for each transaction")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
    versions = ", ".join(rig.version for rig in results.rigs)
    figure.suptitle(f"{versions}\n{machine()['processor']}, {machine()['cores']} cores", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def machine() -> Mapping[str, Any]:
    """Return what the figures depend on: processor, cores, kernel, Python."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _conditions(results: Results) -> str:
    facts = machine()
    return (
        f"{facts['processor']}, {facts['cores']} cores, shared by all; nothing is pinned. "
        f"Scale {SCALE}, {POOL_SIZE} server connections, pgbench -j 2 (-j 1 for one client), "
        f"{results.rounds} rounds of {results.seconds:.0f} s for each, in turns; medians. "
        f"{ROWS:,}-row script: {ROWS_SCRIPT}"
    )


def _as_mapping(results: Results, workload: Workload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "title": workload.title,
        "tps": {
            name: [run.tps for run in runs] for name, runs in results.runs.get(workload.name, {}).items()
        },
        "cpu_us": {
            name: [run.cpu_us for run in runs]
            for name, runs in results.runs.get(workload.name, {}).items()
            if name != "direct"
        },
        "pgsluice_to_pgbouncer": results.ratio(workload.name, "pgsluice", "pgbouncer"),
        "pgsluice_to_direct": results.ratio(workload.name, "pgsluice", "direct"),
    }


def _number(value: float | None, layout: str) -> str:
    return "-" if value is None else format(value, layout)
