"""Channel binding in SCRAM: who binds to what, and who claims that nobody could (RFC 5802, section 6)."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from proxy.errors import InvalidApiKey, ProtocolViolation, UpstreamUnavailable
from proxy.wire.codes import HEADER
from proxy.wire.scram import (
    MECHANISM,
    MECHANISM_PLUS,
    ClientExchange,
    ServerExchange,
    Verifier,
    read_initial_response,
)

BOTH = [MECHANISM_PLUS.encode(), MECHANISM.encode()]
PLAIN = [MECHANISM.encode()]
OURS, THEIRS = b"hash of our certificate", b"hash of another"


def verifier(password: str = "secret") -> Verifier:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt of 16 bytes", 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    return Verifier(b"salt of 16 bytes", 4096, stored, hmac.digest(salted, b"Server Key", "sha256"))


def meet(offered: list[bytes], client_sees: bytes, server_has: bytes) -> tuple[str, bytes]:
    """Let both sides talk to the end; returns the mechanism and the GS2 header."""
    client = ClientExchange("user", "secret", "client", offered, client_sees)
    mechanism, first = read_initial_response(client.first())
    server = ServerExchange(verifier(), "server", mechanism, server_has)
    final = client.final(server.first(first).encode())
    client.verify(server.final(final[HEADER:]).encode())
    return mechanism, first[: first.index(b"n=")]


def test_both_sides_bind_where_both_can() -> None:
    assert meet(BOTH, OURS, OURS) == (MECHANISM_PLUS, b"p=tls-server-end-point,,")


def test_a_client_that_cannot_bind_need_not() -> None:
    assert meet(BOTH, b"", OURS) == (MECHANISM, b"n,,")
    assert meet(PLAIN, b"", b"") == (MECHANISM, b"n,,")


def test_a_client_that_could_is_welcome_where_nobody_offered() -> None:
    assert meet(PLAIN, OURS, b"") == (MECHANISM, b"y,,")


def test_an_offer_that_got_lost_on_the_way_is_noticed() -> None:
    with pytest.raises(ProtocolViolation, match="in fact it does"):
        meet(PLAIN, OURS, OURS)


def test_another_certificate_is_noticed() -> None:
    with pytest.raises(InvalidApiKey):
        meet(BOTH, THEIRS, OURS)


@pytest.mark.parametrize(
    ("mechanism", "first"),
    [
        (MECHANISM, "p=tls-server-end-point,,n=,r=client"),
        (MECHANISM_PLUS, "n,,n=,r=client"),
        (MECHANISM_PLUS, "y,,n=,r=client"),
        (MECHANISM_PLUS, "p=tls-unique,,n=,r=client"),
        (MECHANISM_PLUS, "p=tls-exporter,,n=,r=client"),
        (MECHANISM_PLUS, "p=,,n=,r=client"),
        (MECHANISM, "y,,n=,r=client"),
        (MECHANISM, "x,,n=,r=client"),
    ],
)
def test_flags_that_do_not_fit_the_mechanism(mechanism: str, first: str) -> None:
    with pytest.raises(ProtocolViolation):
        ServerExchange(verifier(), "server", mechanism, OURS).first(first.encode())


def test_a_header_that_changes_on_the_way_is_noticed() -> None:
    # The flag was `p`; the last message claims that it was `n`.
    server = ServerExchange(verifier(), "server", MECHANISM_PLUS, OURS)
    server.first(b"p=tls-server-end-point,,n=,r=client")
    claim = base64.b64encode(b"n,,").decode()
    with pytest.raises(InvalidApiKey):
        server.final(f"c={claim},r=clientserver,p={base64.b64encode(b'x' * 32).decode()}".encode())


@pytest.mark.parametrize(
    ("mechanism", "end_point"), [(MECHANISM_PLUS, b""), ("SCRAM-SHA-1", OURS), ("", b"")]
)
def test_only_what_was_offered_can_be_selected(mechanism: str, end_point: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="invalid SASL authentication mechanism"):
        ServerExchange(verifier(), "server", mechanism, end_point)


@pytest.mark.parametrize(
    ("offered", "end_point"), [([b"SCRAM-SHA-1"], OURS), ([MECHANISM_PLUS.encode()], b""), ([], b"")]
)
def test_a_server_whose_offers_we_cannot_take(offered: list[bytes], end_point: bytes) -> None:
    with pytest.raises(UpstreamUnavailable, match="no SASL mechanism that we know"):
        ClientExchange("user", "secret", "client", offered, end_point)
