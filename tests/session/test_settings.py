"""Which settings turn one profile into another, and how they are read back."""

from __future__ import annotations

import pytest

from proxy.query.parameters import Profiles
from proxy.session.settings import Look, default_for, settings_for
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


def look(touched: dict[str, bool], pins: list[str], *row: str | None) -> Look:
    made = Look(server(), touched, pins)
    made.row = [None if value is None else value.encode() for value in row]
    for at, value in enumerate(made.row[: len(touched)]):
        made.row[at] = None if value is None else b"odd" if value == b"\0" else value.hex().encode()
    return made


def test_only_what_may_stand_in_a_statement_is_asked_about() -> None:
    asked = look(dict.fromkeys(["timezone", "a.b", "été.x", "x'y", "1"], False), ["load"])
    columns = [
        f"pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting('{name}', true), 'UTF8'), 'hex')"
        for name in ("timezone", "a.b")
    ]
    assert asked.query() == query("SELECT " + ", ".join(columns))
    assert look({"é": True}, []).needed is False
    assert look({}, ["load", "currval"]).needed is False


def test_origins_are_asked_for_where_they_matter() -> None:
    asked = look({"timezone": True, "datestyle": False, "work_mem": False, "a.b": True, "role": True}, [])
    assert asked.origins == ["timezone", "work_mem"]
    assert asked.query().count(b"pg_settings") == 2


def test_pins_that_are_gone_are_told() -> None:
    asked = look(
        {"timezone": False}, ["listen", "load", "hold cursor", "advisory lock"], "UTC", "f", "t", "f"
    )
    assert asked.answered
    assert asked.gone() == ["listen", "advisory lock"]
    assert not look({"timezone": False}, ["listen"], "UTC").answered


@pytest.mark.parametrize(
    ("touched", "row", "wanted", "actual"),
    [
        # SET: what the server has counts, and what is its default anyhow is no setting.
        ({"timezone": False}, ["Asia/Tokyo"], {"timezone": "Asia/Tokyo"}, {"timezone": "Asia/Tokyo"}),
        ({"datestyle": False}, ["ISO, MDY"], {"timezone": "Europe/Berlin"}, {"timezone": "Europe/Berlin"}),
        # Explicitly the default where the session began with another.
        ({"timezone": False}, ["UTC"], {"timezone": "UTC"}, {"timezone": "UTC"}),
        # RESET: what the session began with, which the server lacks; unless it was taken back.
        ({"timezone": True}, ["UTC", "default=UTC"], {"timezone": "Europe/Berlin"}, {}),
        ({"timezone": True}, ["UTC", "session=UTC"], {"timezone": "UTC"}, {"timezone": "UTC"}),
        # A parameter of an extension or an application has no origin.
        ({"a.b": True}, [""], {"timezone": "Europe/Berlin"}, {"timezone": "Europe/Berlin"}),
        (
            {"a.b": True},
            ["x"],
            {"timezone": "Europe/Berlin", "a.b": "x"},
            {"timezone": "Europe/Berlin", "a.b": "x"},
        ),
        # What no PostgreSQL answers.
        ({"x": False}, ["\0", None], {"timezone": "Europe/Berlin"}, {"timezone": "Europe/Berlin"}),
        # One that does not exist.
        ({"x": False}, [None, None], {"timezone": "Europe/Berlin"}, {"timezone": "Europe/Berlin"}),
    ],
)
def test_what_the_server_has_decides(
    touched: dict[str, bool], row: list[str | None], wanted: dict[str, str], actual: dict[str, str]
) -> None:
    start = PROFILES.of({"timezone": "Europe/Berlin"})
    made = server({"timezone": "Europe/Berlin"})
    assert look(touched, [], *row).apply(made, start, start, PROFILES.empty) == (wanted, actual)


def test_a_value_that_the_server_would_misread_is_not_sent() -> None:
    path = PROFILES.of({"search_path": "schémä"})
    assert settings_for(server({"client_encoding": "LATIN1"}), path, PROFILES.empty) is None
    assert settings_for(server({"client_encoding": "UTF8"}), path, PROFILES.empty) is None, "no default known"
    assert settings_for(server({}), path, PROFILES.empty) == [("search_path", "schémä")]


def test_defaults_are_learned() -> None:
    made = server()
    asked = look({"work_mem": False}, [], "1MB", "session=4096")
    wanted, _ = asked.apply(made, PROFILES.empty, PROFILES.empty, PROFILES.empty)
    assert wanted == {"work_mem": "1MB"}
    assert default_for(made, "work_mem") == "4096"


def test_a_default_with_a_unit_is_no_setting() -> None:
    made = server()
    for _ in range(2):
        # SET shared_buffers, which fails: the default is learned the first time, as 8192.
        asked = Look(made, {"shared_buffers": False}, [])
        asked.row = [b"64MB".hex().encode(), b"configuration file=8192"]
        assert asked.origins == ["shared_buffers"]
        assert asked.apply(made, PROFILES.empty, PROFILES.empty, PROFILES.empty) == ({}, {})
    assert default_for(made, "shared_buffers") == "8192"
