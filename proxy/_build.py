"""Compile the modules on the path of a query by mypyc, for a wheel, an editable install or in place.

hatchling loads this file as its build hook; `python proxy/_build.py` (re)builds in place. It runs where
the package itself can't be imported yet, so it imports nothing of it, and is not shipped in the wheel.

PGSLUICE_NO_COMPILE=1, or no C compiler, gives a pure-Python build. An error in our own code never does.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Python puts this file's directory first, where our `http` would hide the standard library's.
    sys.path.pop(0)

import ast
import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Names the shared library proxy/pgsluice__mypyc.*.so; proxy.compiled() looks for it.
GROUP = "proxy.pgsluice"

# Calls within the library go straight to their function, not through the table for symbols that another library
# might replace: a query's path is short, and each cold cache line on it shows.
_COMPILE_ARGS = ["-fno-semantic-interposition", "-fno-plt"] if sys.platform == "linux" else []
_LINK_ARGS = ["-Wl,-Bsymbolic", "-Wl,-z,now"] if sys.platform == "linux" else []


class BuildHook(BuildHookInterface[Any]):
    """Adds compiled modules, the bundled SQL and deployment files to a wheel, or compiles beside the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files of the wheel are collected (hatchling: "Build hook plugins")."""
        root = Path(self.root)
        if version == "editable":
            build_in_place(root)
            return
        build_data["force_include"][str(root / "sql")] = "proxy/_sql"
        for part in ("compose", "kubernetes", "systemd"):
            build_data["force_include"][str(root / "deploy" / part)] = f"proxy/_deploy/{part}"
        if libraries := build(root):
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["force_include"].update(
                {str(built): str(target) for target, built in libraries.items()}
            )


def build_in_place(root: Path) -> bool:
    """Put the compiled modules beside their sources and remove stale ones; tell whether there are any.

    A running process keeps the file that it loaded: each is replaced, not overwritten.
    """
    libraries = build(root)
    wanted = {root / target for target in libraries}
    for stale in set((root / "proxy").rglob("*.so")) - wanted:
        stale.unlink()
    for target, built in libraries.items():
        place = root / target
        if place.exists() and place.stat().st_mtime_ns == built.stat().st_mtime_ns:
            continue
        arriving = place.with_suffix(".arriving")
        shutil.copy2(built, arriving)
        arriving.replace(place)
    return bool(libraries)


def build(root: Path) -> dict[Path, Path]:
    """Return {path in the package: compiled file}, compiling only what changed since the last time.

    Empty where there is nothing to compile with. Raises SystemExit for an error in our own code.
    """
    if os.environ.get("PGSLUICE_NO_COMPILE", "0") not in ("", "0"):
        return _pure("PGSLUICE_NO_COMPILE is set")
    sources = compiled_sources(root)
    if not sources:
        return _pure("no module is listed")
    work = root / "build" / f"mypyc-{sysconfig.get_config_var('SOABI')}"
    finished, stamp = work / "lib", work / "stamp"
    digest = _digest(root, sources)
    if not (stamp.exists() and stamp.read_text() == digest):
        if not _compiler_works():
            return _pure("no C compiler (or no Python headers) found")
        stamp.unlink(missing_ok=True)
        shutil.rmtree(finished, ignore_errors=True)
        # In a process of its own: mypyc works relative to the current directory and may end the process.
        done = subprocess.run([sys.executable, __file__, "--compile", str(work), *sources], cwd=root)
        if done.returncode != 0:
            raise SystemExit("pgsluice: compiling failed; PGSLUICE_NO_COMPILE=1 makes a pure-Python build")
        stamp.write_text(digest)
    return {built.relative_to(finished): built for built in sorted(finished.rglob("*.so"))}


def compiled_sources(root: Path) -> list[str]:
    """Return the modules that pyproject.toml lists, relative to `root`; a pattern may match nothing."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["pgsluice"]["build"]
    found = {path for pattern in settings["compiled"] for path in root.glob(pattern)}
    return sorted(str(path.relative_to(root)) for path in found if path.name != "__init__.py")


def _compile(work: Path, sources: list[str]) -> None:
    import setuptools  # noqa: F401  mypyc takes its Extension from setuptools if that is loaded
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    extensions = mypycify(
        ["--config-file", "pyproject.toml", *sources],
        opt_level="3",
        debug_level="0",
        target_dir=str(work / "c"),
        group_name=GROUP,
    )
    for extension in extensions:
        extension.extra_compile_args += _COMPILE_ARGS
        extension.extra_link_args += _LINK_ARGS
    command = build_ext(Distribution({"name": "pgsluice", "ext_modules": extensions}))
    command.build_lib = str(work / "lib")
    command.build_temp = str(work / "temp")
    command.ensure_finalized()
    command.run()


def _digest(root: Path, sources: list[str]) -> str:
    """Hash all that the result depends on: the modules and what they import, the settings, the tools."""
    tools = f"{sys.version} {version('mypy')} {os.environ.get('CC')} {os.environ.get('CFLAGS')}"
    digest = hashlib.sha256(tools.encode())
    for path in [root / "pyproject.toml", *sorted(_with_imports(root, sources))]:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _with_imports(root: Path, sources: list[str]) -> set[Path]:
    """Return the files of `sources` and of everything in the package that they import, however far."""
    found: set[Path] = set()
    waiting = [root / source for source in sources]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for name in names:
                place = root.joinpath(*name.split("."))
                waiting += [place.with_suffix(".py"), place / "__init__.py"]
    return found


def _compiler_works() -> bool:
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch, "probe.c")
        probe.write_text("#include <Python.h>\n")
        include = f"-I{sysconfig.get_path('include')}"
        try:
            done = subprocess.run(
                [*compiler, include, "-c", str(probe), "-o", f"{probe}.o"], capture_output=True
            )
        except OSError:
            return False
        return done.returncode == 0


def _pure(reason: str) -> dict[Path, Path]:
    print(f"pgsluice: {reason}: building without compiled modules", file=sys.stderr)
    return {}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile"]:
        _compile(Path(sys.argv[2]), sys.argv[3:])
    else:
        there = build_in_place(Path(__file__).resolve().parent.parent)
        print("pgsluice: compiled modules are in place" if there else "pgsluice: interpreted")
