"""What Cloudflare's answers to the handshake mean for whoever runs the tunnel, and what to do about them."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

_LOGIN_PAGE: Final = "/cdn-cgi/access/login"

# Cloudflare's own errors have a number of four digits somewhere in their text or page.
_CODE: Final = re.compile(rb"error(?: code)?:?\s*(?:<[^>]*>\s*)*(1\d{3})\b", re.IGNORECASE)

_LOOKED_AT: Final = 64 * 1024
"""Bytes of an answer in which the number is looked for."""


DNS: Final = "DNS"
TLS: Final = "TLS"
TOKEN: Final = "token"
UPGRADE: Final = "upgrade"
STEPS: Final = (DNS, TLS, TOKEN, UPGRADE)
"""What has to go well, in this order."""


class TunnelError(OSError):
    """A tunnel that can't be used: `what` Cloudflare answered, and the `remedy`. Neither holds anything secret.

    `step` is the one of STEPS that failed; those before it went well.
    """

    def __init__(self, what: str, remedy: str = "", step: str = UPGRADE) -> None:
        self.what = what
        self.remedy = remedy
        self.step = step
        super().__init__(f"{what}: {remedy}" if remedy else what)


def refusal(status: int, location: str, body: bytes, token: bool) -> TunnelError:
    """Return what an answer of `status` in the place of 101 means; `token` tells that one was sent.

    `location` is a redirect's. Nothing of an answer is repeated but its number, and the host of a redirect.
    """
    found = _CODE.search(body[:_LOOKED_AT])
    code = int(found[1]) if found is not None else 0
    answered = f"{status}, error code {code}" if code else str(status)
    if 300 <= status < 400:
        return _redirect(status, location, token)
    if code == 1010:
        return TunnelError(
            f"Cloudflare blocks our User-Agent ({answered})",
            "turn the Browser Integrity Check off for this hostname, or let pgsluice/* pass in a WAF rule",
            TOKEN,
        )
    if status in (401, 403):
        return _denied(answered, token)
    if status in (404, 503):
        return TunnelError(
            f"the tunnel has no ingress rule for this hostname ({answered})",
            "give cloudflared one with service: tcp://localhost:5432, or with PostgreSQL's own address",
        )
    if status == 502:
        return TunnelError(
            f"the tunnel is up, but cloudflared can't dial PostgreSQL behind it ({answered})",
            "look whether PostgreSQL runs, and listens where the ingress rule's service says",
        )
    if status == 530 and code in (0, 1033):
        return TunnelError(
            f"no cloudflared is connected for this tunnel ({answered})",
            "start it on PostgreSQL's side, and look at its log and at `cloudflared tunnel info`",
        )
    if status == 530:
        return TunnelError(
            f"Cloudflare finds no way to the tunnel ({answered})",
            "look whether the hostname's DNS record is a CNAME to <tunnel id>.cfargotunnel.com, proxied",
        )
    if status == 429:
        return TunnelError(
            f"Cloudflare limits the rate of connections ({answered})",
            "raise the limit of the rate limiting rule, or the pools' min so that fewer are opened",
        )
    if status == 200:
        return TunnelError(
            f"something else than a tunnel to a TCP service answers there ({answered})",
            "look at the hostname's DNS record, and that its ingress rule has service: tcp://…",
        )
    if 500 <= status < 600:
        return TunnelError(f"Cloudflare has an error ({answered})", "it may pass; see cloudflarestatus.com")
    return TunnelError(f"Cloudflare answered {answered}")


def _redirect(status: int, location: str, token: bool) -> TunnelError:
    place = urlsplit(location)
    if place.path.startswith(_LOGIN_PAGE) or (place.hostname or "").endswith(".cloudflareaccess.com"):
        what = "Access asks for a login in a browser"
        if not token:
            return TunnelError(
                f"{what} ({status})",
                "set service_token: {id, secret}, and give the application a policy with the action Service Auth",
                TOKEN,
            )
        return TunnelError(
            f"{what}: the service token was not accepted ({status})",
            "give the application a policy with the action Service Auth that includes the token; with Allow"
            " it doesn't count",
            TOKEN,
        )
    host = place.hostname if place.hostname is not None and place.hostname.isascii() else ""
    there = f" to {host}" if host and host.isprintable() else ""
    return TunnelError(
        f"it is a redirect{there} ({status}), which is not followed, as the token would go along",
        "`host` has to be the tunnel's own hostname, and no redirect rule may hold for it",
    )


def _denied(answered: str, token: bool) -> TunnelError:
    if token:
        return TunnelError(
            f"the service token was not accepted ({answered})",
            "look whether id and secret are a pair, and neither expired, revoked nor of another account; and"
            " whether a Service Auth policy of the application includes it",
            TOKEN,
        )
    return TunnelError(
        f"Access refuses who has no service token ({answered})",
        "set service_token: {id, secret} of one that a Service Auth policy includes",
        TOKEN,
    )
