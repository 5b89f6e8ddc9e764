"""A module imports only from its own package and from what lies below it; the pure packages do no I/O."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = """
    resources errors tasks
    wire
    config
    query
    auth
    observe
    logs
    transport
    tunnel
    upstream
    preflight
    session processes
    admin http
    api
    board snapshots upkeep reloading whole app
    supervisor serving
    embedded migrate setup keys keychecks keyprint keytool logreader cloudflare deploy explain top demo
    options cli __main__
"""
RANK = {name: rank for rank, row in enumerate(LAYERS.split("\n")) for name in row.split()}
PURE = {"wire", "query"}
IMPURE = {"asyncio", "logging", "time", "random"}
MODULES = [path for path in sorted(ROOT.glob("proxy/**/*.py")) if path.name != "_build.py"]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""
            if node.module == "proxy":
                yield from (f"proxy.{alias.name}" for alias in node.names if alias.name in RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    own = path.relative_to(ROOT).with_suffix("").parts[1]
    for name in imports(path):
        assert not (own in PURE and name.split(".")[0] in IMPURE), f"{path} is pure, and imports {name}"
        if name.startswith("proxy.") and own != "__init__":
            assert RANK[name.split(".")[1]] <= RANK[own], f"{path} imports {name}"


def compiled() -> list[Path]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["pgsluice"]["build"]["compiled"]
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


@pytest.mark.parametrize("path", compiled(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_compiled_needs_no_configuration(path: Path) -> None:
    # pip compiles in an environment of its own, which has mypy and not pydantic: types from there would be unknown.
    reached, waiting = set[Path](), [path]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        for name in imports(module):
            assert not name.startswith("proxy.config"), f"{path} reaches {name} by {module}"
            below = ROOT / (name.replace(".", "/") + ".py")
            if name.startswith("proxy.") and below.exists() and below not in reached:
                waiting.append(below)
