"""Access records as the log has them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from proxy.logreader.wanted import as_text


def record(at: str = "2026-11-28T12:00:00.000+00:00", **changes: Any) -> dict[str, Any]:
    """Return the record of a read, with changes; None takes a field away."""
    made: dict[str, Any] = {
        "id": "0190a0b0-0000-7000-8000-000000000001",
        "at": as_text(datetime.fromisoformat(at)),
        "event": "statement",
        "key_id": "ctm_ab12cd34ef56",
        "user_id": "ann@example.com",
        "database": "app",
        "pool": "readonly",
        "host": "replica1",
        "target": "readonly",
        "reason": "reads",
        "intent": "read",
        "statement": "SELECT $1",
        "rows": 1,
        "duration_us": 1500,
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def line(**changes: Any) -> str:
    return json.dumps(record(**changes)) + "\n"
