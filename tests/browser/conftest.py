"""The command line's switches for the browser's tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="put pictures of the dashboard there")
    parser.addoption("--load", metavar="SECONDS", default="0", help="wait for so long before the pictures")
