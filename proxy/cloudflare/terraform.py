"""Terraform for the tunnel, its hostnames and what protects them: provider cloudflare/cloudflare, version 5.

Secrets are made by Cloudflare and come as sensitive outputs. The API token comes from CLOUDFLARE_API_TOKEN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from proxy.cloudflare.answers import Answers
from proxy.cloudflare.hcl import Block, Expression, Value, document, quoted
from proxy.cloudflare.tunnel import CONNECT_TIMEOUT, NOT_FOUND, TCP_KEEPALIVE

_TUNNEL: Final = "cloudflare_zero_trust_tunnel_cloudflared.pgsluice"
_APPLICATION: Final = "cloudflare_zero_trust_access_application.pgsluice"
_TOKEN: Final = "cloudflare_zero_trust_access_service_token.pgsluice"
_POLICY: Final = "cloudflare_zero_trust_access_policy.pgsluice"
# Of service tokens: a year, as Cloudflare's own default. Their end is an output.
_TOKEN_LIFETIME: Final = "8760h"
# Seconds: a period and a penalty that every plan has.
_PERIOD: Final = 10


def files(answers: Answers, most_connections: int) -> dict[str, str]:
    """Return the files by name; `most_connections` is how many one proxy may open at once."""
    return {
        "versions.tf": document(_versions()),
        "variables.tf": document(list(_variables(answers, most_connections))),
        "main.tf": document(list(_resources(answers))),
        "outputs.tf": document(list(_outputs(answers))),
    }


def _versions() -> list[Block]:
    provider = {"source": "cloudflare/cloudflare", "version": "~> 5.14"}
    providers = Block("required_providers", (), (("cloudflare", provider),))
    return [
        Block("terraform", (), (("required_version", ">= 1.5"), providers)),
        Block(
            "provider",
            ("cloudflare",),
            (),
            "CLOUDFLARE_API_TOKEN: Cloudflare Tunnel, Access (apps, policies, service tokens), DNS, Zone WAF: edit.",
        ),
    ]


def _variable(name: str, kind: str, description: str, *more: tuple[str, Value] | Block) -> Block:
    return Block("variable", (name,), (("description", description), ("type", Expression(kind)), *more))


def _variables(answers: Answers, most_connections: int) -> Iterator[Block]:
    yield _variable("account_id", "string", "The Cloudflare account.", ("default", answers.account_id))
    if answers.zone_id:
        yield _variable("zone_id", "string", "The zone of the hostnames.", ("default", answers.zone_id))
    else:
        yield _variable("zone", "string", "The zone of the hostnames, by name.", ("default", answers.zone))
    yield _variable(
        "team_name", "string", "NAME of NAME.cloudflareaccess.com.", ("default", answers.team_name)
    )
    yield _variable("tunnel_name", "string", "The tunnel's name.", ("default", answers.tunnel_name))
    yield _variable(
        "client_networks",
        "list(string)",
        "Networks that proxies come from, as in 192.0.2.0/24; without any, all of them.",
        ("default", []),
        Block(
            "validation",
            (),
            (
                (
                    "condition",
                    Expression("alltrue([for each in var.client_networks : can(cidrhost(each, 0))])"),
                ),
                ("error_message", "Networks are needed, as in 192.0.2.0/24."),
            ),
        ),
    )
    yield _variable(
        "connections_in_ten_seconds",
        "number",
        "How many connections one address may open in ten seconds at one data centre: twice what one proxy holds, "
        "for each proxy behind that address.",
        ("default", max(30, 2 * most_connections)),
    )
    yield _variable(
        "zone_rulesets",
        "bool",
        "Whether the zone's WAF and rate limiting rules are kept here. A zone has one ruleset for each: where it has "
        "them already, take false and add our rules there.",
        ("default", True),
    )


def _zone(answers: Answers) -> Expression:
    return Expression("var.zone_id" if answers.zone_id else "data.cloudflare_zone.pgsluice.zone_id")


def _resources(answers: Answers) -> Iterator[Block]:
    if not answers.zone_id:
        yield Block("data", ("cloudflare_zone", "pgsluice"), (("filter", {"name": Expression("var.zone")}),))
    account: tuple[str, Value] = ("account_id", Expression("var.account_id"))
    yield _resource(
        "cloudflare_zero_trust_tunnel_cloudflared",
        account,
        ("name", Expression("var.tunnel_name")),
        ("config_src", "cloudflare"),
        comment="Its rules are kept by Cloudflare; cloudflared needs nothing but the token.",
    )
    yield _resource(
        "cloudflare_zero_trust_tunnel_cloudflared_config",
        account,
        ("tunnel_id", Expression(f"{_TUNNEL}.id")),
        ("config", {"ingress": [*_ingress(answers), {"service": NOT_FOUND}]}),
    )
    for number, hostname in enumerate(answers.hostnames):
        yield Block(
            "resource",
            ("cloudflare_dns_record", f"pgsluice_{number}"),
            (
                ("zone_id", _zone(answers)),
                ("name", hostname),
                ("type", "CNAME"),
                ("content", Expression(f'"${{{_TUNNEL}.id}}.cfargotunnel.com"')),
                ("proxied", True),
                ("ttl", 1),
                ("comment", "pgsluice"),
            ),
        )
    yield _resource(
        "cloudflare_zero_trust_access_service_token",
        account,
        ("name", Expression('"${var.tunnel_name} proxies"')),
        ("duration", _TOKEN_LIFETIME),
        Block("lifecycle", (), (("create_before_destroy", True),)),
        comment="What proxies log in to Access with. Access shows its secret once: it is in Terraform's state.",
    )
    yield _resource(
        "cloudflare_zero_trust_access_policy",
        account,
        ("name", Expression('"${var.tunnel_name} service token"')),
        ("decision", "non_identity"),
        ("include", [{"service_token": {"token_id": Expression(f"{_TOKEN}.id")}}]),
        comment='"Service Auth": with "allow" Access would send proxies to a login page.',
    )
    yield _resource(
        "cloudflare_zero_trust_access_application",
        account,
        ("name", Expression("var.tunnel_name")),
        ("type", "self_hosted"),
        ("domain", answers.routes[0].hostname),
        ("destinations", [{"type": "public", "uri": name} for name in answers.hostnames]),
        ("policies", [{"id": Expression(f"{_POLICY}.id"), "precedence": 1}]),
        ("service_auth_401_redirect", True),
        ("app_launcher_visible", False),
        ("session_duration", "24h"),
    )
    yield _firewall(answers)
    yield _rate_limit(answers)


def _resource(kind: str, *body: tuple[str, Value] | Block, comment: str = "") -> Block:
    return Block("resource", (kind, "pgsluice"), body, comment)


def _ingress(answers: Answers) -> Iterator[dict[str, Value]]:
    access: dict[str, Value] = {
        "required": True,
        "team_name": Expression("var.team_name"),
        "aud_tag": [Expression(f"{_APPLICATION}.aud")],
    }
    for route in answers.routes:
        yield {
            "hostname": route.hostname,
            "service": route.service,
            "origin_request": {
                "connect_timeout": CONNECT_TIMEOUT,
                "tcp_keep_alive": TCP_KEEPALIVE,
                "access": access,
            },
        }
    for page in answers.pages:
        yield {
            "hostname": page.hostname,
            **({"path": page.path} if page.path else {}),
            "service": answers.http_service,
            "origin_request": {"connect_timeout": CONNECT_TIMEOUT, "access": access},
        }


def _ruleset(answers: Answers, name: str, phase: str, what: str, rules: Value, comment: str) -> Block:
    body: tuple[tuple[str, Value], ...] = (
        ("count", Expression("var.zone_rulesets ? 1 : 0")),
        ("zone_id", _zone(answers)),
        ("name", f"pgsluice: {what}"),
        ("description", f"pgsluice: {what}"),
        ("kind", "zone"),
        ("phase", phase),
        ("rules", rules),
    )
    return Block("resource", ("cloudflare_ruleset", name), body, comment)


def _hosts(answers: Answers) -> str:
    """Return a condition of Cloudflare's rules language; hostnames hold nothing that needs escaping there."""
    names = " ".join(f'"{name}"' for name in answers.hostnames)
    return f"http.host in {{{names}}}"


def _firewall(answers: Answers) -> Block:
    hosts = _hosts(answers)
    token = 'any(http.request.headers.names[*] eq "cf-access-client-id")'
    networks = hosts.replace('"', '\\"')
    rules = Expression(
        "concat([\n"
        "  {\n"
        '    ref         = "pgsluice_token"\n'
        '    description = "Without a service token"\n'
        f"    expression  = {quoted(f'({hosts} and not {token})')}\n"
        '    action      = "block"\n'
        "    enabled     = true\n"
        "  },\n"
        "  ], length(var.client_networks) == 0 ? [] : [\n"
        "  {\n"
        '    ref         = "pgsluice_network"\n'
        '    description = "From elsewhere"\n'
        f'    expression  = "({networks} and not ip.src in {{${{join(" ", var.client_networks)}}}})"\n'
        '    action      = "block"\n'
        "    enabled     = true\n"
        "  },\n"
        "])"
    )
    return _ruleset(
        answers,
        "pgsluice_firewall",
        "http_request_firewall_custom",
        "who may connect",
        rules,
        "Seen is the request that opens a connection, never SQL.",
    )


def _rate_limit(answers: Answers) -> Block:
    rule: dict[str, Value] = {
        "ref": "pgsluice_rate",
        "description": "Connections of one address",
        "expression": f"({_hosts(answers)})",
        "action": "block",
        "enabled": True,
        "ratelimit": {
            "characteristics": ["ip.src", "cf.colo.id"],
            "period": _PERIOD,
            "requests_per_period": Expression("var.connections_in_ten_seconds"),
            "mitigation_timeout": _PERIOD,
        },
    }
    return _ruleset(
        answers,
        "pgsluice_rate",
        "http_ratelimit",
        "how fast they may come",
        [rule],
        "It limits new connections; what goes through an open one counts as nothing.",
    )


def _output(name: str, description: str, value: str, *more: tuple[str, Value]) -> Block:
    return Block("output", (name,), (("description", description), ("value", Expression(value)), *more))


def _outputs(answers: Answers) -> Iterator[Block]:
    yield Block(
        "data",
        ("cloudflare_zero_trust_tunnel_cloudflared_token", "pgsluice"),
        (("account_id", Expression("var.account_id")), ("tunnel_id", Expression(f"{_TUNNEL}.id"))),
    )
    yield _output(
        "tunnel_token",
        "TUNNEL_TOKEN of cloudflared.",
        "data.cloudflare_zero_trust_tunnel_cloudflared_token.pgsluice.token",
        ("sensitive", True),
    )
    yield _output("tunnel_id", "The tunnel.", f"{_TUNNEL}.id")
    yield _output("service_token_id", "CF_ACCESS_CLIENT_ID of the proxies.", f"{_TOKEN}.client_id")
    yield _output(
        "service_token_secret",
        "CF_ACCESS_CLIENT_SECRET of the proxies.",
        f"{_TOKEN}.client_secret",
        ("sensitive", True),
    )
    yield _output("service_token_expires_at", "Renew it before.", f"{_TOKEN}.expires_at")
    yield _output("access_audience", "--aud of config.yml.", f"{_APPLICATION}.aud")
