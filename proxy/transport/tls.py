"""TLS: contexts for both sides from files (manual, "Secure TCP/IP Connections with SSL").

Contexts are made anew at a reload; connections that are open keep the one they were made with.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from functools import lru_cache
from pathlib import Path
from typing import Final

from asn1crypto import pem
from asn1crypto.x509 import Certificate

from proxy.config import Config, HostTls, ListenTls, Problem
from proxy.errors import SluiceError, reason
from proxy.transport.asking import Security

log = logging.getLogger(__name__)

ALPN: Final = "postgresql"
"""The protocol's name in TLS (IANA's registry; required where a connection starts with TLS)."""

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsError(SluiceError):
    """A certificate or key that can't be used; the message names the file."""


class ListenerTls:
    """What clients are met with: `context`, and `end_point`, to which SCRAM binds (b"" where it can't)."""

    def __init__(self, settings: ListenTls) -> None:
        self.required = settings.mode == "require"
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = _VERSIONS[settings.min_version]
        # As PostgreSQL has it: no renegotiation and no resumed sessions.
        self.context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        self.context.num_tickets = 0
        self.context.set_alpn_protocols([ALPN])
        certificate = _load(self.context, settings.cert_file, settings.key_file)
        self.end_point = end_point(certificate)
        _warn_of(certificate, settings.cert_file)


class ServerTls(Security):
    """How a server is spoken to, by its settings."""

    def __init__(self, settings: HostTls) -> None:
        self._settings = settings
        super().__init__(settings.mode, self.read())

    def read(self) -> ssl.SSLContext | None:
        """Read the files; returns what is to be `context` for connections to come. Raises TlsError."""
        settings = self._settings
        if settings.mode == "disable":
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([ALPN])
        context.check_hostname = settings.mode == "verify-full"
        # As in libpq, `require` with a CA at hand means verify-ca.
        verified = settings.ca_file is not None or settings.mode == "verify-full"
        context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
        if settings.ca_file is not None:
            _read(settings.ca_file)
            try:
                context.load_verify_locations(settings.ca_file)
            except ssl.SSLError as error:
                raise TlsError(f"{settings.ca_file}: holds no certificates: {explain(error)}") from None
        elif verified:
            context.load_default_certs()
        if settings.cert_file is not None:
            key_file = settings.key_file or settings.cert_file
            _warn_of(_load(context, settings.cert_file, key_file), settings.cert_file)
        return context


def problems(config: Config) -> list[Problem]:
    """Return which certificates and keys of `config` can't be used, each with the place that names it."""
    found: list[Problem] = []
    if config.listen.tls.mode != "off":
        try:
            ListenerTls(config.listen.tls)
        except TlsError as error:
            found.append(Problem("listen.tls", 0, str(error)))
    for name, database in config.databases.items():
        for at, host in enumerate(database.hosts):
            try:
                ServerTls(host.tls)
            except TlsError as error:
                found.append(Problem(f"databases.{name}.hosts[{at}].tls", 0, str(error)))
    return found


@lru_cache(maxsize=64)
def end_point(certificate: bytes) -> bytes:
    """Return the channel binding `tls-server-end-point` of a DER `certificate` (RFC 5929, section 4.1).

    That is its hash by the function of its signature, with SHA-256 in the place of MD5 and SHA-1. b"" where the
    signature has no such function (Ed25519), for which the RFC defines no binding.
    """
    try:
        signature = Certificate.load(certificate)["signature_algorithm"]
        if signature.signature_algo in ("ed25519", "ed448"):
            return b""
        name = str(signature.hash_algo)
        return hashlib.new("sha256" if name in ("md5", "sha1") else name, certificate).digest()
    except ValueError:
        return b""


def peer_end_point(transport: asyncio.BaseTransport) -> bytes:
    """Return the channel binding to the server at the other end of `transport`; b"" without TLS."""
    channel = transport.get_extra_info("ssl_object")
    certificate = channel.getpeercert(binary_form=True) if channel is not None else None
    return end_point(certificate) if certificate else b""


def explain(error: OSError) -> str:
    """Return what went wrong, for a TLS failure in OpenSSL's words without its file and line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    return reason(error)


def _load(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> bytes:
    """Load certificate, chain and key; returns the certificate in DER."""
    certificate = _first_certificate(cert_file)
    secret = _read(key_file)
    if key_file.stat().st_mode & 0o007:
        log.warning("%s: the private key is open to every user of this machine", key_file)
    try:
        context.load_cert_chain(cert_file, key_file, lambda: _no_passphrase(key_file))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{key_file}: not the key of the certificate in {cert_file}") from None
        if b"PRIVATE KEY-----" not in secret:
            raise TlsError(f"{key_file}: holds no private key in PEM format") from None
        raise TlsError(f"{cert_file} with {key_file}: {explain(error)}") from None
    return certificate


def _first_certificate(file: Path) -> bytes:
    try:
        for kind, _, content in pem.unarmor(_read(file), multiple=True):
            if kind == "CERTIFICATE":
                return bytes(content)
    except ValueError:
        pass
    raise TlsError(f"{file}: holds no certificate in PEM format")


def _no_passphrase(key_file: Path) -> str:
    """Answer OpenSSL, which would else ask on the terminal."""
    raise TlsError(f"{key_file}: the private key has a passphrase, which nobody could enter")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsError(f"{file}: {reason(error)}") from None


def _warn_of(certificate: bytes, file: Path) -> None:
    try:
        validity = Certificate.load(certificate)["tbs_certificate"]["validity"]
        begin, end = validity["not_before"].native, validity["not_after"].native
    except ValueError:
        return
    if end.timestamp() < time.time():
        log.warning("%s: the certificate expired at %s", file, end)
    elif begin.timestamp() > time.time():
        log.warning("%s: the certificate is not valid before %s", file, begin)
