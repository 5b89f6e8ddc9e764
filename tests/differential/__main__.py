"""`python -m tests.differential`: the corpus at PostgreSQL and through the proxy, and a summary of what differs."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from tests.differential.rules import LEFT_OUT, RULES
from tests.differential.run import FILES, Comparison, Result, cases_of
from tests.differential.stage import PROXY, Stage
from tests.integration.support import DATABASE, Installation, Proxy


def main() -> int:
    """Run what the arguments ask for; return 1 where something differs that isn't documented or known."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("files", nargs="*", help="names of corpus files, without .txt; all, if none is given")
    parser.add_argument("-k", metavar="TEXT", default="", help="only cases whose name contains TEXT")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    arguments = parser.parse_args()
    files = [path for path in FILES if not arguments.files or path.stem in arguments.files]
    started = time.monotonic()
    results = _run(files, arguments.k)
    seconds = time.monotonic() - started
    print(json.dumps(_summary(results, seconds), indent=2) if arguments.json else _text(results, seconds))
    return any(result.verdict == "different" for result in results)


def _run(files: list[Path], wanted: str) -> list[Result]:
    cases = [case for case in cases_of(files) if wanted in case.name]
    directory = scratch_directory("pgsluice-differential-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        cluster = stack.enter_context(Cluster(directory / "postgresql", replicas=0))
        installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
        stage = stack.enter_context(Stage(installation))
        proxy = Proxy(installation, directory, PROXY)
        proxy.start()
        stack.callback(proxy.stop)
        return asyncio.run(Comparison(installation, proxy, stage).run(cases))


def _summary(results: list[Result], seconds: float) -> dict[str, object]:
    verdicts = Counter(result.verdict for result in results)
    documented = Counter(result.why for result in results if result.verdict == "documented")
    return {
        "cases": len(results),
        "seconds": round(seconds, 1),
        **{verdict: verdicts[verdict] for verdict in ("same", "documented", "known", "different")},
        "rules": {name: {"cases": count, "reason": RULES[name].reason} for name, count in documented.items()},
        "left_out": dict(LEFT_OUT),
        "known_bugs": dict(Counter(result.why for result in results if result.verdict == "known")),
        "differences": [
            {"case": result.name, "why": result.why, "report": result.report}
            for result in results
            if result.verdict == "different"
        ],
    }


def _text(results: list[Result], seconds: float) -> str:
    lines = list[str]()
    for verdict in ("known", "different"):
        for result in results:
            if result.verdict == verdict:
                lines += [f"{verdict.upper()}  {result.name}  {result.why}", *result.report, ""]
    summary = _summary(results, seconds)
    lines.append(
        "{cases} cases in {seconds} s: {same} the same, {documented} documented differences, "
        "{known} known bugs, {different} differences".format(**summary)
    )
    for name, rule in RULES.items():
        count = sum(result.why == name for result in results if result.verdict == "documented")
        lines.append(f"  {name}: {count} ({rule.reason})")
    for name, count in Counter(result.why for result in results if result.verdict == "known").items():
        lines.append(f"  KNOWN BUG {name}: {count}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
