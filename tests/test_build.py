"""The build hook, and the switch between compiled and interpreted modules."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from proxy import _build

ROOT = Path(__file__).parent.parent
SETTINGS = '[tool.pgsluice.build]\ncompiled = ["proxy/pure/*.py", "proxy/later.py"]\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a package of one module to compile, which imports one that isn't."""
    (tmp_path / "pyproject.toml").write_text(SETTINGS)
    (tmp_path / "proxy/pure").mkdir(parents=True)
    (tmp_path / "proxy/pure/__init__.py").touch()
    (tmp_path / "proxy/pure/module.py").write_text("from proxy.pure import beside\nimport proxy.errors\n")
    (tmp_path / "proxy/pure/beside.py").write_text("VALUE: int = 1\n")
    (tmp_path / "proxy/errors.py").touch()
    (tmp_path / "proxy/explain.py").touch()
    return tmp_path


def test_every_listed_pattern_matches_a_module() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for pattern in settings["tool"]["pgsluice"]["build"]["compiled"]:
        assert list(ROOT.glob(pattern)), pattern


def test_packages_themselves_stay_interpreted(tree: Path) -> None:
    assert _build.compiled_sources(tree) == ["proxy/pure/beside.py", "proxy/pure/module.py"]


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("proxy/pure/module.py", True),
        ("proxy/pure/beside.py", True),
        ("proxy/pure/__init__.py", True),
        ("proxy/errors.py", True),
        ("pyproject.toml", True),
        ("proxy/explain.py", False),
    ],
)
def test_only_what_the_result_depends_on_leads_to_compiling(tree: Path, changed: str, matters: bool) -> None:
    sources = _build.compiled_sources(tree)
    before = _build._digest(tree, sources)
    with (tree / changed).open("a") as file:
        file.write("# changed\n")
    assert (_build._digest(tree, sources) != before) is matters


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("PGSLUICE_NO_COMPILE", "1", "PGSLUICE_NO_COMPILE is set"), ("CC", "/nowhere/cc", "no C compiler")],
)
def test_a_build_without_compiling_says_so_and_leaves_nothing_compiled(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    reason: str,
) -> None:
    stale = tree / "proxy/pure/module.cpython-311-x86_64-linux-gnu.so"
    stale.touch()
    monkeypatch.setenv(variable, value)
    assert not _build.build_in_place(tree)
    assert reason in capsys.readouterr().err
    assert not stale.exists()


def test_an_error_in_our_own_code_is_no_reason_to_go_on_without_compiling(tree: Path) -> None:
    assert _build._compiler_works(), "this test needs a C compiler"
    (tree / "proxy/pure/beside.py").write_text("VALUE: int = 'text'\n")
    with pytest.raises(SystemExit, match="compiling failed"):
        _build.build(tree)


@pytest.mark.parametrize("interpreted", ["", "0", "1"])
def test_interpreted_modules_are_a_matter_of_the_environment(interpreted: str) -> None:
    program = "import proxy, proxy.wire.codes; print(proxy.compiled(), proxy.wire.codes.__file__)"
    environ = {**os.environ, "PGSLUICE_INTERPRETED": interpreted}
    shown = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    ).stdout.split()
    built = interpreted != "1" and any((ROOT / "proxy").glob("pgsluice__mypyc.*.so"))
    assert shown[0] == str(built)
    assert shown[1].endswith(".so") is built
