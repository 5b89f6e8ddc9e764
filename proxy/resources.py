"""Find the files that are shipped with the program."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def sql_directory() -> Path:
    """Return the directory of the bundled SQL: `proxy/_sql` of a wheel, `sql/` of a source tree.

    Raises FileNotFoundError where neither is there.
    """
    for directory in (_PACKAGE / "_sql", _PACKAGE.parent / "sql"):
        if directory.is_dir():
            return directory
    raise FileNotFoundError("the bundled SQL is missing: neither proxy/_sql nor sql/ exists")


def deploy_directory() -> Path:
    """Return the directory of the deployment files: `proxy/_deploy` of a wheel, `deploy/` of a source tree.

    A wheel has those that `pgsluice cloudflare render` fills in. Raises FileNotFoundError where neither is there.
    """
    for directory in (_PACKAGE / "_deploy", _PACKAGE.parent / "deploy"):
        if directory.is_dir():
            return directory
    raise FileNotFoundError("the deployment files are missing: neither proxy/_deploy nor deploy/ exists")
