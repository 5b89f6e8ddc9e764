"""A module imports only from its own package and from what lies below it; the pure packages do no I/O."""

from __future__ import annotations

import ast
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
    upstream
    preflight
    session
    admin http
    app
    embedded migrate setup keys keychecks keyprint keytool deploy explain demo
    cli __main__
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
