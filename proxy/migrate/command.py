"""What `pgsluice migrate` prints, and its exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from proxy.migrate.backup import Backup
from proxy.migrate.checksums import Status, status, validate
from proxy.migrate.errors import MigrationError
from proxy.migrate.files import CORE, create
from proxy.migrate.graph import Migrations
from proxy.migrate.planning import plan
from proxy.migrate.progress import Progress, quiet
from proxy.migrate.running import rollback, up
from proxy.resources import sql_directory


def run(
    action: str,
    dsn: str,
    *,
    branches: Sequence[str] = (),
    version: str = "",
    name: str = "",
    directory: Path | None = None,
    backup: Backup | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> int:
    """Do what `pgsluice migrate ACTION` asks for, print it, and return the exit code.

    Without `branches` `up` applies core, all branches of `directory` and whatever the database has something of,
    and `create` takes the only one there.
    """
    directories = (sql_directory(), *((directory,) if directory else ()))
    if directory is not None and action != "create" and not directory.is_dir():
        raise MigrationError(f"{directory} is no directory")
    if action == "create":
        return _create(name, branches, directories, as_json)
    if action in ("status", "validate"):
        found = (status if action == "status" else validate)(dsn, directories=directories)
        return _listed(action, found, as_json)
    if action == "up":
        branches = branches or _usual(dsn, directory, directories)
    if dry_run:
        print(plan(dsn, branches, version, directories=directories), end="")
        return 0
    progress = _progress(as_json)
    try:
        if action == "up":
            up(dsn, branches, directories=directories, backup=backup, progress=progress)
        else:
            rollback(dsn, version, directories=directories, backup=backup, progress=progress)
    except MigrationError as problem:
        if not as_json:
            raise
        place = {"file": str(problem.file) if problem.file else None, "line": problem.line or None}
        print(json.dumps({**_facts(action, progress), "error": {"message": str(problem), **place}}))
        return 1
    if as_json:
        print(json.dumps({**_facts(action, progress), "error": None}))
    elif not progress.done:
        print("nothing to do")
    return 0


def _create(name: str, branches: Sequence[str], directories: Sequence[Path], as_json: bool) -> int:
    own = _own(directories[-1]) if len(directories) > 1 else [CORE]
    chosen = list(branches) or own
    if len(chosen) != 1:
        there = f": there are {', '.join(own)}" if own else ""
        raise MigrationError(f"say by --branch which branch of {directories[-1]} is meant{there}")
    made = [str(path) for path in create(name, chosen[0], directories=directories)]
    print(json.dumps(made) if as_json else "\n".join(made))
    return 0


def _listed(action: str, found: Sequence[Status], as_json: bool) -> int:
    entries: Any = [{**asdict(each), "applied_at": _iso(each)} for each in found]
    if action == "status":
        print(json.dumps(entries) if as_json else "\n".join(map(str, found)))
        return 0
    if as_json:
        print(json.dumps({"ok": not found, "problems": entries}))
    else:
        lines = [f"{each.revision}: {each.problem}" for each in found]
        print("\n".join(lines or ["every file is as it was applied"]))
    return 1 if found else 0


def _facts(action: str, progress: Progress) -> dict[str, Any]:
    done = [each._asdict() for each in progress.done]
    path = str(progress.backup) if progress.backup else None
    return {"applied" if action == "up" else "rolled_back": done, "backup": path}


def _progress(as_json: bool) -> Progress:
    if as_json:
        return Progress(quiet)
    return Progress(lambda line: print(line, flush=True), sys.stderr if sys.stderr.isatty() else None)


def _usual(dsn: str, directory: Path | None, directories: Sequence[Path]) -> list[str]:
    bundled = Migrations(directories).migrations
    begun = [
        bundled[each.revision].branch
        for each in status(dsn, directories=directories)
        if each.applied_at and each.revision in bundled
    ]
    return list(dict.fromkeys((CORE, *_own(directory), *begun)))


def _own(directory: Path | None) -> list[str]:
    """Return the branches of an application's own directory."""
    if directory is None or not directory.is_dir():
        return []
    return [
        branch
        for branch in Migrations((sql_directory(), directory)).branches
        if (directory / branch).is_dir()
    ]


def _iso(found: Status) -> str | None:
    return found.applied_at.isoformat() if found.applied_at else None
