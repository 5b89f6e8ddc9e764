from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.units import duration, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25), ("5s", 5), ("10m", 600), ("1h", 3600), ("2d", 172800), ("1.5s", 1.5), ("5 s", 5),
        (" 5s ", 5), ("0", 0), ("0s", 0), ("0.0", 0), (3, 3), (0.25, 0.25), (0, 0),
    ],
)  # fmt: skip
def test_duration(text: object, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["5", "", "s", "5sec", "-1s", "1h30m", "5S", "1e3s", "٣s", "5s\n6s", None, True, [], "9" * 40 + "s"],
)
def test_rejects_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="a duration is needed"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("16KiB", 16384), ("1MiB", 1 << 20), ("2GiB", 2 << 30), ("512", 512), ("512B", 512), ("0.5KiB", 512),
     ("16 KiB", 16384), (77, 77), ("0", 0)],
)  # fmt: skip
def test_size(text: object, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["16KB", "16k", "", "KiB", "-1", "0.3B", "1.0001KiB", None, True, 1.5, {}])
def test_rejects_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="a size is needed"):
        size(text)


@given(st.text())
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for read in (duration, size):
        try:
            assert read(text) >= 0
        except ValueError as error:
            assert "is needed" in str(error)
