"""A PostgreSQL, its replica and the proxy in front of it, to be tried by hand or shown by a tour."""

from __future__ import annotations

from proxy.demo.command import main

__all__ = ["main"]
