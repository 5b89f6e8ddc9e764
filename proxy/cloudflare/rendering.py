"""All files that are wanted, each checked, and what to do with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from proxy.cloudflare import terraform, workloads
from proxy.cloudflare.answers import Answers
from proxy.cloudflare.client import CA_FILE, USUAL, Client, client, most_connections, written
from proxy.cloudflare.documents import File, dumped
from proxy.cloudflare.tunnel import config
from proxy.config import ConfigError, Problem
from proxy.errors import reason

_CLIENT: Final = """\
The proxy's side: PostgreSQL is reached through the tunnel. Secrets come from the environment.
Check it where it runs: pgsluice check -c pgsluice.yaml
"""
_CONFIG: Final = """\
cloudflared's rules, for a tunnel made by `cloudflared tunnel create`: /etc/cloudflared/config.yml.
A tunnel made by Terraform has the same rules at Cloudflare, and doesn't read this file.
"""


class Rendered(NamedTuple):
    """What came out: the files, the variables that the proxy needs, and notes for who deploys them."""

    files: list[File]
    variables: tuple[str, ...]
    notes: list[str]


def read(path: Path | None) -> str:
    """Return the text of the configuration, or of a usual one; raises ConfigError where it can't be read."""
    if path is None:
        return USUAL
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem("", 0, f"cannot read {path}: {reason(error)}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem("", 0, f"{path} is not UTF-8 text")]) from None


def render(answers: Answers, text: str, environ: Mapping[str, str] = os.environ) -> Rendered:
    """Return the files of `answers.kinds` for the configuration `text`.

    Raises ConfigError where that is wrong, and SluiceError where a file wouldn't read back as it was meant.
    """
    proxys = client(text, environ, answers.routes, answers.server_tls)
    files: list[File] = []
    if {"config", "compose", "systemd"} & set(answers.kinds):
        comment = "".join(f"# {line}\n" for line in _CLIENT.splitlines())
        files.append(File("pgsluice.yaml", comment + written(proxys.tree)))
    if "config" in answers.kinds:
        files.append(File("config.yml", dumped([config(answers)], _CONFIG)))
    if "terraform" in answers.kinds:
        most = most_connections(text, environ)
        files += [
            File(f"terraform/{name}", content) for name, content in terraform.files(answers, most).items()
        ]
    if "compose" in answers.kinds:
        files += workloads.compose(answers, proxys)
    if "kubernetes" in answers.kinds:
        files += workloads.kubernetes(answers, proxys)
    if "systemd" in answers.kinds:
        files += workloads.systemd(proxys)
    return Rendered(files, proxys.variables, list(_notes(answers, proxys)))


def _notes(answers: Answers, proxys: Client) -> list[str]:
    notes = []
    if CA_FILE in proxys.files:
        notes.append(f"put {CA_FILE}, who signed PostgreSQL's certificate, beside pgsluice.yaml")
    if others := [name for name in proxys.files if name != CA_FILE]:
        notes.append(f"pgsluice.yaml names files that containers have to be given: {', '.join(others)}")
    local = [route.hostname for route in answers.routes if route.host == "localhost"]
    if local and "kubernetes" in answers.kinds:
        notes.append(
            f"in Kubernetes localhost is cloudflared's own pod: --hostname {local[0]}=SERVICE:5432 names PostgreSQL's"
        )
    return notes
