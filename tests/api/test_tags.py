from __future__ import annotations

import pytest

from proxy.api import tags

TAG, OTHER = "0" * 32, "a" * 32


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("*", None),
        (f'"{TAG}"', [TAG]),
        (f'"{TAG}", "{OTHER}"', [TAG, OTHER]),
        (f'W/"{TAG}"', []),
        (f'"x", "{TAG}"', [TAG]),
        (TAG, []),
        ("", []),
        ('"}\',x"', []),
        ('"' + "\\" * 32 + '"', []),
    ],
)
def test_if_match_names_strong_tags(header: str | None, wanted: list[str] | None) -> None:
    assert tags.wanted(header) == wanted


@pytest.mark.parametrize(
    ("header", "same"),
    [
        (None, False),
        ("*", True),
        (f'"{TAG}"', True),
        (f'W/"{TAG}"', True),
        (f'"{OTHER}", "{TAG}"', True),
        (f'"{OTHER}"', False),
        (TAG, False),
    ],
)
def test_if_none_match(header: str | None, same: bool) -> None:
    assert tags.unchanged(header, TAG) is same


def test_a_tag_is_of_what_is_shown() -> None:
    assert tags.tag_of('{"a": "ü"}') == tags.tag_of('{"a": "ü"}') != tags.tag_of('{"a": "u"}')
    assert len(tags.tag_of("")) == 32
