"""The command line: arguments only. Each command imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

from proxy.cli.main import app, main

__all__ = ["app", "main"]
