"""Which settings turn one profile into another, and how they are read back."""

from __future__ import annotations

import pytest

from proxy.query.parameters import Profiles
from proxy.session.settings import default_for, read_back_query, readable, settings_for
from proxy.upstream.server import Server
from tests.session.backend import FakeTransport
from tests.session.frontend import query

PROFILES = Profiles()
TOKYO = PROFILES.of({"timezone": "Asia/Tokyo"})


def server(held: dict[str, str] | None = None) -> Server:
    reported = {b"TimeZone": b"UTC", b"DateStyle": b"ISO, MDY"}
    made = Server(FakeTransport(), "one:5432", 1, b"", reported, "app", lambda _: None, 0.0)
    made.profile = None if held is None else PROFILES.of(held)
    return made


@pytest.mark.parametrize(
    ("held", "wanted", "settings"),
    [
        (None, {}, []),
        (None, {"timezone": "Asia/Tokyo"}, [("timezone", "Asia/Tokyo")]),
        ({"timezone": "Asia/Tokyo"}, {"timezone": "Asia/Tokyo"}, []),
        ({"timezone": "Asia/Tokyo"}, {"timezone": "Europe/Berlin"}, [("timezone", "Europe/Berlin")]),
        ({"timezone": "Asia/Tokyo"}, {}, [("timezone", "UTC")]),
        ({"timezone": "Asia/Tokyo"}, {"a.b": "1"}, [("a.b", "1"), ("timezone", "UTC")]),
        ({"a.b": "1", "timezone": "UTC"}, {"a.b": "1"}, [("timezone", "UTC")]),
        ({"a.b": "1"}, {}, None),
        ({"work_mem": "1MB"}, {"timezone": "UTC"}, None),
    ],
)
def test_only_what_differs_is_set(
    held: dict[str, str] | None, wanted: dict[str, str], settings: list[tuple[str, str]] | None
) -> None:
    assert settings_for(server(held), PROFILES.of(wanted), PROFILES.empty) == settings


def test_defaults_are_what_the_server_reported_at_its_login() -> None:
    made = server()
    made.data_received(b"S\0\0\0\x18TimeZone\0Asia/Tokyo\0")
    assert default_for(made, "timezone") == "UTC"
    assert default_for(made, "work_mem") is None
    assert default_for(made, "integer_datetimes") is None


def test_the_touched_settings_are_read_in_one_row() -> None:
    touched = dict.fromkeys(["timezone", "all", "a.b", "été.x", "x'y", "1"], True)
    names = readable(touched)
    assert names == ["timezone", "a.b"]
    assert read_back_query(names) == query(
        "SELECT pg_catalog.current_setting('timezone', true), pg_catalog.current_setting('a.b', true)"
    )
    assert readable({"all": True}) == []
