"""Random statements of sqlsmith's: does one that is called a read ever change anything?

`python -m tests.integration.smith` lets Debian's sqlsmith, which knows each table, function and operator of a database,
make statements for the scratch database of ground.py. Those that a replica may have are run there as the superuser, in
a READ ONLY transaction and, where nothing unseen is used, outside of one. Exits with 1 if one wrote.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

from proxy.embedded import Cluster, Server, scratch_directory
from tests.integration.ground import READ_ONLY_REFUSAL, Ground, holes

DATABASE = "ground"


def generated(server: Server, queries: int, seed: int) -> Iterator[str]:
    """Give sqlsmith's statements as it makes them; raises FileNotFoundError where it isn't installed."""
    command = [
        "sqlsmith",
        f"--target={server.dsn(DATABASE)}",
        "--dry-run",
        f"--max-queries={queries}",
        f"--seed={seed}",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.rstrip().endswith(";"):
                yield "".join(lines).strip()
                lines = []
    if process.returncode != 0:
        raise RuntimeError(f"sqlsmith ended with {process.returncode}")


class Report:
    """What became of the statements."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.wrong: list[str] = []

    def add(self, ground: Ground, text: str) -> None:
        """Classify `text`, and run it if it is called a read."""
        self.done["statements"] += 1
        intent = ground.intents.lookup(text.encode())
        if intent.target != "readonly":
            self.done[f"not called reads: {intent.kind}"] += 1
            self.reasons[intent.reason] += 1
            return
        self.done["called reads"] += 1
        self.done["called reads, with a hole"] += bool(holes(text))
        complaint, state = ground.complaint(text)
        if complaint:
            self.wrong.append(f"{complaint}: {text}")
        self.states[state] += 1

    def lines(self) -> Iterator[str]:
        """Give the figures as text."""
        for what, count in sorted(self.done.items()):
            yield f"{what}: {count:,}"
        yield f"reads that ran to their end: {self.states['']:,}"
        yield f"reads refused with {READ_ONLY_REFUSAL}, all of them with a hole: {self.states[READ_ONLY_REFUSAL]:,}"
        others = [
            (state, count)
            for state, count in self.states.most_common()
            if state not in ("", READ_ONLY_REFUSAL)
        ]
        yield "reads that failed otherwise: " + ", ".join(f"{state} {count:,}" for state, count in others)
        yield "why not called reads: " + "; ".join(
            f"{reason} {count:,}" for reason, count in self.reasons.most_common(8)
        )


def main() -> int:
    """Run so many statements; return 1 where a read wrote."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.smith", description=__doc__)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    report = Report()
    directory = scratch_directory("pgsluice-smith-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        # What sqlsmith makes of sleeps, locks and large joins isn't waited for.
        cluster = stack.enter_context(Cluster(directory / "postgresql", replicas=0))
        ground = Ground(cluster.primary, DATABASE, timeout_ms=100)
        stack.callback(ground.close)
        started = said = time.monotonic()
        for text in generated(cluster.primary, arguments.queries, arguments.seed):
            report.add(ground, text)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                done = report.done["statements"]
                print(
                    f"{done:,} statements, {len(report.wrong)} wrong, {done / (said - started):.0f} a second",
                    flush=True,
                )
        print("\n".join(report.lines()))
    print(f"wrong: {len(report.wrong)}")
    for line in report.wrong[:10]:
        print(line)
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())
