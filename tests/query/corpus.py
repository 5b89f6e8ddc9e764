"""The corpus of texts with what is expected of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

_FILE: Final = Path(__file__).with_name("corpus.yaml")
_DEFAULTS: Final[dict[str, Any]] = {
    "begins": "",
    "deallocates": "",
    "ends": False,
    "even_admin": False,
    "executes": "",
    "lasting": False,
    "needs": "",
    "pin": "",
    "pool": "",
    "prepares": "",
    "refused": "",
    "resets": [],
    "sets_pool": False,
    "settings": [],
    "statements": 1,
    "unclean": "",
    "unpins": [],
}
_OPTIONAL: Final = frozenset({"issue", "reason"})

ISSUES: Final = (
    *(f"pgdog {number}" for number in (134, 151, 157, 623, 823)),
    *(f"pgcat {number}" for number in (410, 750, 829, 865, 884, 887)),
    *(f"pgpool2 {number}" for number in (13, 152, 154, 155, 157)),
)
"""Reports of wrong routings by users of pgdogdev/pgdog, postgresml/pgcat and pgpool/pgpool2."""


def cases() -> Iterator[dict[str, Any]]:
    """Give each text of the corpus as a dict that says everything that is expected of it."""
    for group in yaml.safe_load(_FILE.read_text("utf-8")):
        common = {key: value for key, value in group.items() if key not in ("about", "texts", "reason")}
        for entry in group["texts"]:
            own = entry if isinstance(entry, dict) else {"text": entry}
            case = {**_DEFAULTS, **common, **own}
            if "reason" in group and not isinstance(entry, dict):
                case["reason"] = group["reason"]
            unknown = case.keys() - _DEFAULTS.keys() - _OPTIONAL - {"text", "intent", "target"}
            assert not unknown, f"{unknown} at {case['text']}"
            yield case
