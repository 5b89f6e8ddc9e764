"""`python -m tests.differential`: the corpus at PostgreSQL and through the proxy, and a summary of what differs."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

from tests.differential.rules import LEFT_OUT, RULES
from tests.differential.run import FILES, Result, cases_of
from tests.differential.stages import SETTINGS, comparison


def main() -> int:
    """Run what the arguments ask for; return 1 where something differs that isn't documented or known."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("files", nargs="*", help="names of corpus files, without .txt; all, if none is given")
    parser.add_argument("-k", metavar="TEXT", default="", help="only cases whose name contains TEXT")
    parser.add_argument(
        "--stage",
        choices=[*SETTINGS, "all"],
        default="transaction",
        help="the setting to play them in: "
        + "; ".join(f"{name}: {each.shows}" for name, each in SETTINGS.items()),
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    arguments = parser.parse_args()
    files = [path for path in FILES if not arguments.files or path.stem in arguments.files]
    summaries = dict[str, object]()
    failed = False
    for setting in SETTINGS if arguments.stage == "all" else [arguments.stage]:
        started = time.monotonic()
        results = _run(files, arguments.k, setting)
        seconds = time.monotonic() - started
        summaries[setting] = _summary(results, seconds)
        failed |= any(result.verdict == "different" for result in results)
        if not arguments.json:
            print(f"{setting}: {_text(results, seconds)}", flush=True)
    if arguments.json:
        print(json.dumps(summaries, indent=2))
    return failed


def _run(files: list[Path], wanted: str, setting: str) -> list[Result]:
    cases = [case for case in cases_of(files) if wanted in case.name]
    with comparison(setting) as compare:
        return asyncio.run(compare.run(cases))


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
        if count:
            lines.append(f"  {name}: {count} ({rule.reason})")
    for name, count in Counter(result.why for result in results if result.verdict == "known").items():
        lines.append(f"  KNOWN BUG {name}: {count}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
