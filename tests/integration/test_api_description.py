"""schemathesis asks the API all kinds of things that its description allows, and all kinds that it doesn't.

It leaves one check out: it expects 401 for each wrong key, and the eleventh from an address is told 429. That every
operation refuses wrong keys is shown in test_api.py, from addresses enough.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.apis import WRITER, Api

pytest_plugins = ["tests.integration.tasksapi"]

SETTINGS = Path(__file__).with_name("schemathesis.toml")
USER = "schemathesis@example.com"


def run(api: Api, key: str, directory: Path, *options: str) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(SETTINGS), "run"),
        *(api.proxy.url("/openapi.json"), "-H", f"X-API-Key: {key}", "--exclude-checks", "ignored_auth"),
        *("--seed", "1", "--no-color", "--generation-database", "none", *options),
    ]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nothing_is_found_in_the_resources(api: Api, tmp_path: Path) -> None:
    # Rows that it finds ids of.
    api.execute("SELECT taskmaster.seed_demo(%s, 'other@example.com')", (USER,))
    key = api.key(user=USER)
    run(
        api, key, tmp_path, "--phases", "coverage,fuzzing,stateful", "--max-examples", "10",
        "--exclude-path", "/api/database/query", "--exclude-path", "/api/database/metrics",
    )  # fmt: skip
    assert not api.proxy.said("Traceback")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_nothing_is_found_in_statements_and_metrics(api: Api, tmp_path: Path) -> None:
    key = api.key("admin", *WRITER, user=USER)
    run(
        api, key, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "30",
        "--include-path", "/api/database/query", "--include-path", "/api/database/metrics",
    )  # fmt: skip
    assert not api.proxy.said("Traceback")
