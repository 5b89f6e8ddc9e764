"""pgsluice, a sidecar for PostgreSQL: API keys, pooling, read routing, identity for row-level security."""

from __future__ import annotations

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from importlib.util import find_spec

__version__ = "0.1.0"


def compiled() -> bool:
    """Tell whether the modules on the path of a query run as C code, or interpreted."""
    return find_spec("proxy.pgsluice__mypyc") is not None


def _sources_only(path: str) -> FileFinder:
    """Find modules of this package by their source alone; leave every other directory to the next hook."""
    if not f"{path}{os.sep}".startswith(f"{__path__[0]}{os.sep}"):
        raise ImportError("not a directory of this package", path=path)
    return FileFinder(path, (SourceFileLoader, SOURCE_SUFFIXES))


if os.environ.get("PGSLUICE_INTERPRETED", "0") not in ("", "0"):
    # Extension modules come before sources in the default finder, so it is kept away from our directories.
    sys.path_hooks.insert(0, _sources_only)
    sys.path_importer_cache.pop(__path__[0], None)
