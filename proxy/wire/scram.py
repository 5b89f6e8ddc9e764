"""SCRAM-SHA-256 on both sides of the proxy (RFC 5802, RFC 7677; manual, "SASL Authentication").

scramp does the arithmetic. What is PostgreSQL's own stands here: the verifier's text form, the user name that
libpq leaves empty, and the SASL messages around it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64
from scramp import ScramClient as _Client
from scramp import ScramException, ScramMechanism

from proxy.errors import InvalidApiKey, ProtocolViolation, UpstreamUnavailable
from proxy.wire.codes import HEADER
from proxy.wire.messages import cstring_end, message

MECHANISM: Final = "SCRAM-SHA-256"
MECHANISM_PLUS: Final = "SCRAM-SHA-256-PLUS"
"""With channel binding: the proof holds only on this TLS connection's server certificate."""

_BINDING: Final = "tls-server-end-point"

MAX_ITERATIONS: Final = 1_000_000
"""Rounds of PBKDF2 that a server may ask of us: a quarter of a second of work. PostgreSQL's default is 4,096."""

_MECHANISM = ScramMechanism(MECHANISM)
_MECHANISM_PLUS = ScramMechanism(MECHANISM_PLUS)


_PLAIN: Final = [MECHANISM.encode()]


@final
class Verifier:
    """What a server keeps of a password: salt, iterations, stored key and server key (RFC 5802, section 3)."""

    def __init__(self, salt: bytes, iterations: int, stored_key: bytes, server_key: bytes) -> None:
        self.salt = salt
        self.iterations = iterations
        self.stored_key = stored_key
        self.server_key = server_key


def parse_verifier(text: str) -> Verifier:
    """Return the verifier in PostgreSQL's text form, `SCRAM-SHA-256$<iterations>:<salt>$<stored>:<server>`.

    Raises ValueError where the text is anything else.
    """
    try:
        scheme, parameters, keys = text.split("$")
        iterations, salt = parameters.split(":")
        stored, server = keys.split(":")
        if scheme != MECHANISM:
            raise ValueError(scheme)
        return Verifier(
            base64.b64decode(salt, validate=True),
            int(iterations),
            base64.b64decode(stored, validate=True),
            base64.b64decode(server, validate=True),
        )
    except (ValueError, binascii.Error):
        raise ValueError("not a SCRAM-SHA-256 verifier") from None


def mock_verifier(secret: bytes, user: str) -> Verifier:
    """Return a verifier that no password fits, the same each time for `user`.

    The salt derives from `secret`, so that asking twice, or another worker, or after a restart, does not tell
    that the user is unknown (PostgreSQL does the same: mock_scram_secret in auth-scram.c).
    """
    salt = hmac.digest(secret, b"salt:" + user.encode(), hashlib.sha256)[:16]
    key = hmac.digest(secret, b"key:" + user.encode(), hashlib.sha256)
    return Verifier(salt, 4096, key, key)


@final
class ServerExchange:
    """The side that checks a client's proof: `first`, then `final`.

    `mechanism` is what the client selected. `end_point` is the channel binding of the connection; b"" where there
    is none, and SCRAM-SHA-256-PLUS was not offered.
    """

    def __init__(
        self, verifier: Verifier, nonce: str, mechanism: str = MECHANISM, end_point: bytes = b""
    ) -> None:
        if mechanism != MECHANISM and not (mechanism == MECHANISM_PLUS and end_point):
            raise ProtocolViolation("client selected an invalid SASL authentication mechanism")
        stored = (verifier.salt, verifier.stored_key, verifier.server_key, verifier.iterations)
        self._plus: bool = mechanism == MECHANISM_PLUS
        self._scram = (_MECHANISM_PLUS if self._plus else _MECHANISM).make_server(
            _Stored(stored), (_BINDING, end_point) if end_point else None, nonce
        )

    def first(self, client_first: bytes) -> str:
        """Return the server-first message; raises ProtocolViolation if the client's is malformed.

        A client that says that it would bind, but saw no offer (flag `y`), has been lied to by somebody on the
        way where we made one: refused (RFC 5802, section 6).
        """
        if client_first.startswith(b"p") and not self._plus:
            raise ProtocolViolation("malformed SCRAM message: channel binding, but not the mechanism for it")
        try:
            text = client_first.decode("ascii")
            # libpq sends an empty user name, for the startup message has it; scramp wants one (RFC 5802 does).
            self._scram.set_client_first(text.replace(",n=,", ",n=*,", 1))
            if ",n=,r=" in text:
                self._scram.client_first_bare = text.split(",", 2)[2]
            return str(self._scram.get_server_first())
        except (ScramException, UnicodeDecodeError) as error:
            raise ProtocolViolation(f"malformed SCRAM message: {error}") from None

    def final(self, client_final: bytes) -> str:
        """Return the server-final message; raises InvalidApiKey where the proof does not hold."""
        try:
            self._scram.set_client_final(client_final.decode("ascii"))
            return str(self._scram.get_server_final())
        except (ScramException, UnicodeDecodeError):
            raise InvalidApiKey() from None


@final
class ClientExchange:
    """The side that proves a password to a PostgreSQL server: `first`, `final`, `verify`.

    Of the mechanisms `offered` it takes the one with channel binding where the connection has an `end_point`;
    raises UpstreamUnavailable where there is none that we know.
    """

    def __init__(
        self, user: str, password: str, nonce: str, offered: list[bytes] = _PLAIN, end_point: bytes = b""
    ) -> None:
        mechanism = MECHANISM_PLUS if end_point and MECHANISM_PLUS.encode() in offered else MECHANISM
        if mechanism.encode() not in offered:
            raise UpstreamUnavailable("the server offers no SASL mechanism that we know")
        binding = (_BINDING, end_point) if end_point else None
        self._mechanism: bytes = mechanism.encode()
        self._scram = _Client([mechanism], user, password, binding, nonce)

    def first(self) -> bytes:
        """Return the SASLInitialResponse."""
        text = str(self._scram.get_client_first()).encode()
        return message(0x70, self._mechanism + b"\0" + len(text).to_bytes(4, "big") + text)

    def final(self, server_first: bytes) -> bytes:
        """Return the SASLResponse; raises UpstreamUnavailable if the server's message is malformed or too costly."""
        try:
            text = server_first.decode("ascii")
            for attribute in text.split(","):
                if attribute.startswith("i=") and (len(attribute) > 9 or int(attribute[2:]) > MAX_ITERATIONS):
                    raise UpstreamUnavailable(
                        f"the server asks for more than {MAX_ITERATIONS} SCRAM iterations"
                    )
            self._scram.set_server_first(text)
            return message(0x70, str(self._scram.get_client_final()).encode())
        except (ScramException, ValueError) as error:
            raise UpstreamUnavailable(f"the server's SCRAM message is malformed: {error}") from None

    def verify(self, server_final: bytes) -> None:
        """Check the server's signature; raises UpstreamUnavailable where the server does not know the password."""
        try:
            self._scram.set_server_final(server_final.decode("ascii"))
        except (ScramException, UnicodeDecodeError):
            raise UpstreamUnavailable("the server could not prove that it knows the password") from None


@final
class _Stored:
    """scramp asks a callable for the user's secrets."""

    def __init__(self, stored: tuple[bytes, bytes, bytes, int]) -> None:
        self._stored = stored

    def __call__(self, user: str) -> tuple[bytes, bytes, bytes, int]:
        return self._stored


def read_initial_response(data: bytes) -> tuple[str, bytes]:
    """Return mechanism and client-first message of the SASLInitialResponse that is `data`, a whole message.

    Raises ProtocolViolation if it is malformed.
    """
    n: i64 = len(data)
    name_end = cstring_end(data, HEADER, n)
    if name_end + 5 > n:
        raise ProtocolViolation("malformed SASLInitialResponse")
    length: i64 = i64(read_i32_be(data, name_end + 1))
    if length < 0 or name_end + 5 + length != n:
        raise ProtocolViolation("malformed SASLInitialResponse")
    return data[HEADER:name_end].decode("ascii", "replace"), data[name_end + 5 :]
