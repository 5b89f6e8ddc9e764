"""`pgsluice cloudflare`: arguments alone, and questions where someone is there to answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.errors import SluiceError
from proxy.options import AsJson, ConfigFile, chosen, configuration, told

if TYPE_CHECKING:
    from proxy.cloudflare.answers import Answers, Page
    from proxy.cloudflare.rendering import Rendered

cloudflare = typer.Typer(
    no_args_is_help=True, help="Databases behind a Cloudflare tunnel: the way there, and files for it."
)

_IMAGE = "pgsluice"
_CLOUDFLARED = "docker.io/cloudflare/cloudflared:2026.8.0"
_WRONG_CONFIGURATION = 3


@cloudflare.command()
def check(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Go the way to each host with `transport: cloudflare`, and tell what to do where it ends.

    Exits with 1 where a step fails, and with 3 for errors in the configuration.

    \b
    Examples:
      pgsluice cloudflare check -c pgsluice.yaml
      pgsluice cloudflare check --json | jq '.hosts[].steps[] | select(.status == "failed")'
    """  # noqa: D301  \b keeps the lines as they are
    from proxy.config import ConfigError
    from proxy.transport import tls

    try:
        found = configuration(chosen(config))
        problems = tls.problems(found)
    except ConfigError as error:
        problems = error.problems
    if problems:
        if as_json:
            entries = [problem._asdict() for problem in problems]
            typer.echo(json.dumps({"ok": False, "problems": entries, "hosts": []}, indent=2))
        for problem in problems:
            typer.echo(f"pgsluice: {problem}", err=True)
        raise typer.Exit(_WRONG_CONFIGURATION)
    with told():
        from proxy.cloudflare import checking

        raise typer.Exit(checking.run(found, as_json))


@cloudflare.command()
def render(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="The configuration. Without it ./pgsluice.yaml where that exists, else a usual one.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where files are written.")] = Path(
        "cloudflare"
    ),
    only: Annotated[
        str,
        typer.Option(
            metavar="KINDS", help="Of config, terraform, compose, kubernetes, systemd; with commas between."
        ),
    ] = "config,terraform,compose,kubernetes,systemd",
    hostname: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=HOST:PORT]",
            help="The tunnel's, as in db.example.com, and where cloudflared finds its PostgreSQL "
            "(localhost:5432); repeatable.",
        ),
    ] = None,
    api_hostname: Annotated[
        str | None, typer.Option(metavar="NAME", help="One for all of the proxy's HTTP port.")
    ] = None,
    health_hostname: Annotated[
        str | None, typer.Option(metavar="NAME", help="One for its /healthz, /readyz and /health.")
    ] = None,
    metrics_hostname: Annotated[
        str | None, typer.Option(metavar="NAME", help="One for its /metrics.")
    ] = None,
    http_service: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where cloudflared finds that port.")
    ] = "localhost:9432",
    account_id: Annotated[str | None, typer.Option(metavar="ID", help="The Cloudflare account.")] = None,
    zone_id: Annotated[str | None, typer.Option(metavar="ID", help="The zone of the hostnames.")] = None,
    zone: Annotated[str | None, typer.Option(metavar="NAME", help="The same by its name.")] = None,
    tunnel_name: Annotated[str, typer.Option(metavar="NAME", help="The tunnel's name.")] = "pgsluice",
    tunnel_id: Annotated[
        str | None, typer.Option(metavar="UUID", help="Its id, for config.yml; else its name stands there.")
    ] = None,
    team_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="NAME of NAME.cloudflareaccess.com.")
    ] = None,
    aud: Annotated[
        str | None,
        typer.Option("--aud", "--audience", metavar="TAG", help="The Access application's, for config.yml."),
    ] = None,
    server_tls: Annotated[
        str,
        typer.Option(
            metavar="MODE", help="PostgreSQL's own TLS inside the tunnel: verify-full, require or disable."
        ),
    ] = "verify-full",
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Of pgsluice. [default: pgsluice:VERSION]")
    ] = None,
    cloudflared_image: Annotated[str, typer.Option(metavar="IMAGE", help="Of cloudflared.")] = _CLOUDFLARED,
    namespace: Annotated[str, typer.Option(metavar="NAME", help="In Kubernetes.")] = "pgsluice",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the files instead of writing them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write what a tunnel needs: cloudflared's rules, Terraform, and what runs the proxy and cloudflared.

    On a terminal it asks for what is missing. Secrets of the configuration become references to variables, and no
    file is replaced without --force.

    \b
    Examples:
      pgsluice cloudflare render --only terraform,compose
      pgsluice cloudflare render --only systemd,config --hostname db.example.com --team-name example --aud TAG
      pgsluice cloudflare render --hostname db.example.com=postgres:5432 --only kubernetes --dry-run
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy import __version__
        from proxy.cloudflare import answers as checks
        from proxy.cloudflare import client, documents, rendering

        kinds = checks.kinds(only)
        beside = Path("pgsluice.yaml")
        text = rendering.read(config if config is not None else beside if beside.exists() else None)
        known = client.tunnelled(text)
        names = hostname or known or [_answer(None, "--hostname", "Hostname of the tunnel", checks.routed)]
        team = audience = account = zone_named = zone_known = ""
        if {"config", "terraform"} & set(kinds):
            team = _answer(
                team_name, "--team-name", "Team name (NAME of NAME.cloudflareaccess.com)", checks.team_name
            )
        if "terraform" in kinds:
            account = _answer(
                account_id, "--account-id", "Account id", lambda text: checks.identifier("--account-id", text)
            )
            if zone is not None and zone_id is None:
                zone_named = checks.hostname("--zone", zone)
            else:
                zone_known = _answer(
                    zone_id,
                    "--zone-id",
                    "Zone id",
                    lambda text: checks.identifier("--zone-id", text),
                    "--zone names it",
                )
        if "config" in kinds:
            audience = _answer(
                aud,
                "--aud",
                "Audience tag of the Access application",
                checks.audience,
                "without one: --only terraform,compose,kubernetes,systemd; Terraform makes the application",
                "empty: no config.yml",
            )
            kinds = kinds if audience else tuple(kind for kind in kinds if kind != "config")
        found = checks.Answers(
            kinds=kinds,
            routes=tuple(checks.route(name) for name in names),
            pages=tuple(_pages(api_hostname, health_hostname, metrics_hostname)),
            http_service=checks.http_service(http_service),
            account_id=account,
            zone_id=zone_known,
            zone=zone_named,
            tunnel_name=checks.tunnel_name(tunnel_name),
            tunnel_id=checks.tunnel_id(tunnel_id) if tunnel_id is not None else "",
            team_name=team,
            audience=audience,
            server_tls=checks.server_tls(server_tls),
            image=checks.image("--image", image if image is not None else f"{_IMAGE}:{__version__}"),
            cloudflared_image=checks.image("--cloudflared-image", cloudflared_image),
            namespace=checks.namespace(namespace),
        )
        checks.consistent(found)
        result = rendering.render(found, text)
        if not dry_run:
            documents.write_all(out, result.files, replace=force)
        _tell(found, result, out, dry_run, as_json)


def _pages(api: str | None, health: str | None, metrics: str | None) -> list[Page]:
    from proxy.cloudflare.answers import Page, hostname

    wanted = (
        ("--api-hostname", api, ""),
        ("--health-hostname", health, "^/(healthz|readyz|health)$"),
        ("--metrics-hostname", metrics, "^/metrics$"),
    )
    return [Page(hostname(flag, name), path) for flag, name, path in wanted if name is not None]


def _answer(
    given: str | None,
    flag: str,
    question: str,
    check: Callable[[str], str],
    otherwise: str = "",
    empty: str = "",
) -> str:
    """Return what was given, or is answered on a terminal, checked; asks again for what isn't right.

    `otherwise` is told where nobody can be asked; `empty` says what an empty answer means, where it may be given.
    """
    if given is not None:
        return check(given)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise SluiceError(f"{flag} is needed: {question}{f' ({otherwise})' if otherwise else ''}")
    words = f"{question} ({empty})" if empty else question
    while True:
        text = str(typer.prompt(words, default="" if empty else None, show_default=False, err=True))
        if empty and not text.strip():
            return ""
        try:
            return check(text)
        except SluiceError as error:
            typer.echo(str(error), err=True)


def _tell(found: Answers, result: Rendered, out: Path, dry_run: bool, as_json: bool) -> None:
    if as_json:
        files = [
            {"path": file.path, "bytes": len(file.text.encode()), **({"text": file.text} if dry_run else {})}
            for file in result.files
        ]
        facts = {
            "directory": str(out),
            "written": not dry_run,
            "files": files,
            "variables": list(result.variables),
            "notes": result.notes,
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    for file in result.files:
        typer.echo(f"# --- {out / file.path}\n{file.text}" if dry_run else f"wrote {out / file.path}")
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"the proxy reads: {', '.join(result.variables)}", err=True)
    if "terraform" in found.kinds and not dry_run:
        typer.echo(
            f"next: terraform -chdir={out / 'terraform'} init, plan and apply; then the outputs "
            "tunnel_token, service_token_id and service_token_secret",
            err=True,
        )
