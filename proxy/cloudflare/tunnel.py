"""cloudflared's own config.yml, for a tunnel whose rules aren't kept by Cloudflare.

Source: cloudflared's documentation, "Origin configuration parameters". For TCP only connectTimeout, tcpKeepAlive and
access have an effect here; the TLS and HTTP options have none, so they aren't written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from proxy.cloudflare.answers import Answers

# Seconds. A PostgreSQL that doesn't answer is told as 502 before the proxy's own connect_timeout of 5 s is doubled.
CONNECT_TIMEOUT: Final = 10
# A dead peer on the way to PostgreSQL is noticed within a few of these.
TCP_KEEPALIVE: Final = 30
NOT_FOUND: Final = "http_status:404"


def config(answers: Answers) -> dict[str, Any]:
    """Return the content of config.yml; the last rule answers for every other hostname."""
    tunnel = answers.tunnel_id or answers.tunnel_name
    return {
        "tunnel": tunnel,
        "credentials-file": f"/etc/cloudflared/{tunnel}.json",
        "ingress": [*_rules(answers), {"service": NOT_FOUND}],
    }


def _rules(answers: Answers) -> Iterator[dict[str, Any]]:
    access = {"required": True, "teamName": answers.team_name, "audTag": [answers.audience]}
    for route in answers.routes:
        yield {
            "hostname": route.hostname,
            "service": route.service,
            "originRequest": {
                "connectTimeout": f"{CONNECT_TIMEOUT}s",
                "tcpKeepAlive": f"{TCP_KEEPALIVE}s",
                "access": access,
            },
        }
    for page in answers.pages:
        yield {
            "hostname": page.hostname,
            **({"path": page.path} if page.path else {}),
            "service": answers.http_service,
            "originRequest": {"connectTimeout": f"{CONNECT_TIMEOUT}s", "access": access},
        }
