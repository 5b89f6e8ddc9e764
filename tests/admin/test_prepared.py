"""The extended protocol on the console, message by message."""

from __future__ import annotations

import struct

import pytest

from proxy.admin.columns import STATE, Column
from proxy.admin.commands import Command
from proxy.admin.prepared import MOST, Prepared
from proxy.errors import ClientError, FeatureNotSupported, ProtocolViolation, UnknownCommand
from proxy.wire.messages import BIND_COMPLETE, CLOSE_COMPLETE, NO_DATA, NO_PARAMETERS, PARSE_COMPLETE

NO_TYPES = b"\0\0"
SHOW_STATE = b"\0SHOW STATE\0" + NO_TYPES


def columns_of(command: Command) -> tuple[Column, ...] | None:
    return STATE if command.verb == "show" else None


def bind(portal: bytes = b"", name: bytes = b"", formats: tuple[int, ...] = (), parameters: int = 0) -> bytes:
    values = b"".join(b"\0\0\0\1x" for _ in range(parameters))
    result = struct.pack(f"!h{len(formats)}h", len(formats), *formats)
    return portal + b"\0" + name + b"\0" + b"\0\0" + struct.pack("!h", parameters) + values + result


@pytest.fixture
def prepared() -> Prepared:
    return Prepared()


def test_a_command_is_prepared_described_bound_and_executed(prepared: Prepared) -> None:
    assert prepared.parse(SHOW_STATE) == PARSE_COMPLETE
    described = prepared.describe(b"S\0", columns_of)
    assert described.startswith(NO_PARAMETERS)
    assert b"key\0" in described
    assert prepared.bind(bind(formats=(1,))) == BIND_COMPLETE
    portal = prepared.portal(b"\0\0\0\0\0")
    assert (portal.command, portal.formats) == (Command("show", "state"), (1,))
    assert prepared.describe(b"P\0", columns_of)[:1] == b"T"


def test_what_answers_no_rows_is_described_so(prepared: Prepared) -> None:
    prepared.parse(b"\0RELOAD\0" + NO_TYPES)
    assert prepared.describe(b"S\0", columns_of) == NO_PARAMETERS + NO_DATA


def test_an_empty_text_can_be_prepared(prepared: Prepared) -> None:
    prepared.parse(b"\0\0" + NO_TYPES)
    assert prepared.describe(b"S\0", columns_of) == NO_PARAMETERS + NO_DATA
    prepared.bind(bind())
    assert prepared.portal(b"\0\0\0\0\0").command is None


def test_portals_end_with_the_sync_and_statements_stay(prepared: Prepared) -> None:
    prepared.parse(b"one" + SHOW_STATE)
    prepared.bind(bind(b"p", b"one"))
    prepared.end_portals()
    with pytest.raises(ClientError, match='portal "p" does not exist'):
        prepared.portal(b"p\0\0\0\0\0")
    assert prepared.bind(bind(b"p", b"one")) == BIND_COMPLETE


def test_a_name_is_taken_until_it_is_closed(prepared: Prepared) -> None:
    prepared.parse(b"one" + SHOW_STATE)
    with pytest.raises(ClientError) as refused:
        prepared.parse(b"one" + SHOW_STATE)
    assert refused.value.sqlstate == "42P05"
    assert prepared.close(b"Sone\0") == CLOSE_COMPLETE
    prepared.parse(b"one" + SHOW_STATE)
    # The unnamed one makes room for the next.
    prepared.parse(SHOW_STATE)
    prepared.parse(SHOW_STATE)


def test_what_was_not_prepared_is_not_bound(prepared: Prepared) -> None:
    with pytest.raises(ClientError) as refused:
        prepared.bind(bind(name=b"two"))
    assert refused.value.sqlstate == "26000"


def test_parameters_several_commands_and_nonsense_are_refused(prepared: Prepared) -> None:
    prepared.parse(SHOW_STATE)
    with pytest.raises(FeatureNotSupported):
        prepared.bind(bind(parameters=1))
    with pytest.raises(FeatureNotSupported):
        prepared.parse(b"\0SHOW STATE; SHOW STATE\0" + NO_TYPES)
    with pytest.raises(UnknownCommand):
        prepared.parse(b"\0SELECT $1\0" + NO_TYPES)


def test_names_and_portals_are_bounded(prepared: Prepared) -> None:
    for number in range(MOST):
        prepared.parse(b"%d" % number + SHOW_STATE)
    with pytest.raises(FeatureNotSupported):
        prepared.parse(b"more" + SHOW_STATE)
    for number in range(MOST):
        prepared.bind(bind(b"%d" % number, b"0"))
    with pytest.raises(FeatureNotSupported):
        prepared.bind(bind(b"more", b"0"))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("parse", b""),
        ("parse", b"\0SHOW STATE"),
        ("parse", b"\0SHOW STATE\0\0"),
        ("parse", b"\0SHOW STATE\0\0\1\0"),
        ("bind", b"\0\0"),
        ("bind", b"\0\0\0\1\0"),
        ("bind", b"\0\0\xff\xff\0\0\0\0"),
        ("bind", b"\0\0\0\0\0\0\0\0more"),
        ("bind", b"\0\0\0\0\0\0\0\1\0\7"),
        ("close", b"X\0"),
        ("close", b"Sname"),
        ("portal", b"\0\0"),
    ],
)
def test_rejects_malformed_messages(prepared: Prepared, kind: str, body: bytes) -> None:
    prepared.parse(SHOW_STATE)
    with pytest.raises(ProtocolViolation):
        getattr(prepared, kind)(body)


def test_rejects_a_describe_of_neither_statement_nor_portal(prepared: Prepared) -> None:
    with pytest.raises(ProtocolViolation):
        prepared.describe(b"X\0", columns_of)
