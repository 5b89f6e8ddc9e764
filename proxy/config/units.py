"""Durations and sizes as users write them: 250ms, 5s, 10m, 1h; 16KiB, 1MiB."""

from __future__ import annotations

import re
from typing import Final

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_QUANTITY: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) *([A-Za-z]*)", re.ASCII)


def duration(value: object) -> float:
    """Return `value` in seconds: text with a unit (ms, s, m, h, d), "0", or a number that is seconds already.

    Raises ValueError with a sentence for the user.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    matched = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if matched is not None:
        number, unit = matched.groups()
        if unit in _SECONDS:
            return float(number) * _SECONDS[unit]
        if not unit and float(number) == 0:
            return 0.0
    raise ValueError("a duration is needed: a number with ms, s, m, h or d, as in 250ms, 5s or 10m")


def size(value: object) -> int:
    """Return `value` in bytes: a plain number, or text with B, KiB, MiB or GiB.

    Raises ValueError with a sentence for the user.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    matched = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if matched is not None and matched[2] in _BYTES:
        count = float(matched[1]) * _BYTES[matched[2]]
        if count.is_integer():
            return int(count)
    raise ValueError("a size is needed: bytes, or a number with KiB, MiB or GiB, as in 16KiB or 1MiB")
