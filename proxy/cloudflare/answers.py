"""What `pgsluice cloudflare render` has to know, and what may be answered.

Every value is one that needs no escaping anywhere: a hostname of letters, digits and hyphens, an id of hexadecimal
digits. What else is asked for is refused here, so that no file can come out as something else than was meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from proxy.errors import SluiceError

KINDS: Final = ("config", "terraform", "compose", "kubernetes", "systemd")
SERVER_TLS: Final = ("verify-full", "require", "disable")

# RFC 1123, section 2.1: labels of letters, digits and hyphens, 63 characters at most, 253 in all.
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOSTNAME: Final = re.compile(rf"(?=.{{4,253}}$){_LABEL}(?:\.{_LABEL})+")
_HOST: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\]")
_ID: Final = re.compile(r"[0-9a-f]{32}")
_AUDIENCE: Final = re.compile(r"[0-9a-f]{64}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TEAM: Final = re.compile(_LABEL)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_IMAGE: Final = re.compile(
    r"(?=.{1,255}$)[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?::[0-9]{1,5}(?=/))?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)


class Route(NamedTuple):
    """A public hostname of the tunnel, and where cloudflared reaches the PostgreSQL behind it."""

    hostname: str
    host: str
    port: int

    @property
    def service(self) -> str:
        """Return the URL that cloudflared dials."""
        return f"tcp://{self.host}:{self.port}"


class Page(NamedTuple):
    """A public hostname for something on the proxy's HTTP port."""

    hostname: str
    path: str  # cloudflared's: a regular expression; empty for all of it


@dataclass(frozen=True)
class Answers:
    """All answers, checked. What only some files need is empty where it wasn't asked for."""

    kinds: tuple[str, ...]
    routes: tuple[Route, ...]
    pages: tuple[Page, ...] = ()
    http_service: str = "http://localhost:9432"
    account_id: str = ""
    zone_id: str = ""
    zone: str = ""
    tunnel_name: str = "pgsluice"
    tunnel_id: str = ""
    team_name: str = ""
    audience: str = ""
    server_tls: str = "verify-full"
    image: str = ""
    cloudflared_image: str = ""
    namespace: str = "pgsluice"

    @property
    def hostnames(self) -> list[str]:
        """Return all public hostnames, PostgreSQL's first."""
        return [*(route.hostname for route in self.routes), *(page.hostname for page in self.pages)]


def kinds(text: str) -> tuple[str, ...]:
    """Return what `--only` names, in our order; raises SluiceError for a word that names nothing."""
    words = {word.strip() for word in text.split(",") if word.strip()}
    unknown = sorted(words - set(KINDS))
    if unknown or not words:
        raise SluiceError(f"--only: {', '.join(KINDS)} can be named, with commas between them")
    return tuple(kind for kind in KINDS if kind in words)


def hostname(flag: str, text: str) -> str:
    """Return a full host name in lower case."""
    name = text.strip().lower().removesuffix(".")
    if not _HOSTNAME.fullmatch(name):
        raise SluiceError(
            f"{flag}: a full host name is needed, as in db.example.com: letters, digits and hyphens"
        )
    return name


def route(text: str) -> Route:
    """Return what `--hostname` says: NAME, or NAME=HOST:PORT where PostgreSQL isn't at localhost:5432."""
    name, _, service = text.partition("=")
    host, port = _address("--hostname", service or "localhost:5432")
    return Route(hostname("--hostname", name), host, port)


def routed(text: str) -> str:
    """Return `text` as it is, for `route`; raises SluiceError where that wouldn't take it."""
    route(text)
    return text


def http_service(text: str) -> str:
    """Return the URL of the proxy's HTTP port, as cloudflared reaches it, from HOST:PORT."""
    host, port = _address("--http-service", text.removeprefix("http://"))
    return f"http://{host}:{port}"


def _address(flag: str, text: str) -> tuple[str, int]:
    host, _, port = text.strip().lower().rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise SluiceError(f"{flag}: HOST:PORT is needed, as in localhost:5432")
    return host, int(port)


def identifier(flag: str, text: str) -> str:
    """Return the id of an account or a zone."""
    return _fitting(flag, text.lower(), _ID, "32 hexadecimal digits are needed (dashboard: Overview, API)")


def audience(text: str) -> str:
    """Return the audience tag of an Access application."""
    return _fitting(
        "--aud", text.lower(), _AUDIENCE, "64 hexadecimal digits are needed (Access application, Overview)"
    )


def tunnel_id(text: str) -> str:
    """Return the UUID of a tunnel."""
    return _fitting(
        "--tunnel-id", text.lower(), _UUID, "a UUID is needed (cloudflared tunnel create prints it)"
    )


def team_name(text: str) -> str:
    """Return the team's name, of NAME or NAME.cloudflareaccess.com."""
    name = text.strip().lower().removesuffix(".cloudflareaccess.com")
    return _fitting("--team-name", name, _TEAM, "the NAME of NAME.cloudflareaccess.com is needed")


def tunnel_name(text: str) -> str:
    """Return the tunnel's name."""
    return _fitting(
        "--tunnel-name", text, _NAME, "letters, digits, dots, hyphens and _ are needed, at most 63"
    )


def image(flag: str, text: str) -> str:
    """Return a reference to a container image."""
    return _fitting(flag, text, _IMAGE, "an image is needed, as in registry.example.com/pgsluice:0.1.0")


def namespace(text: str) -> str:
    """Return the name of a Kubernetes namespace."""
    return _fitting(
        "--namespace", text, _TEAM, "lower-case letters, digits and hyphens are needed, at most 63"
    )


def server_tls(text: str) -> str:
    """Return a mode of TLS inside the tunnel."""
    if text not in SERVER_TLS:
        raise SluiceError(f"--server-tls: one of {', '.join(SERVER_TLS)} is needed")
    return text


def _fitting(flag: str, text: str, pattern: re.Pattern[str], message: str) -> str:
    text = text.strip()
    if not pattern.fullmatch(text):
        raise SluiceError(f"{flag}: {message}")
    return text


def consistent(answers: Answers) -> None:
    """Raise SluiceError where answers don't go together."""
    names = answers.hostnames
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SluiceError(f"a hostname is needed for each service: {', '.join(twice)} comes twice")
    if answers.zone:
        outside = [name for name in names if not f".{name}".endswith(f".{answers.zone}")]
        if outside:
            raise SluiceError(f"--zone: {', '.join(outside)} is not in {answers.zone}")
