"""The program's own log: lines on standard error, as text or JSON."""

from __future__ import annotations

import logging
import sys

from proxy.config import Logging
from proxy.observe.text import JsonFormatter, TextFormatter


def configure(settings: Logging) -> None:
    """Send the log to standard error as `settings` say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    # What uvicorn says of its own life, the proxy says already.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
