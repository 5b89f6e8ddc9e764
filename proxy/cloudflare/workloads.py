"""Compose files, Kubernetes manifests and systemd units: those of deploy/, with names and images filled in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import yaml

from proxy.cloudflare.answers import Answers
from proxy.cloudflare.client import CA_FILE, Client, in_a_pod, written
from proxy.cloudflare.documents import File, dumped
from proxy.resources import deploy_directory

SECRET: Final = "pgsluice-secrets"
CA_SECRET: Final = "pgsluice-ca"
TOKEN_SECRET: Final = "cloudflared-token"
_DIRECTORY: Final = "/etc/pgsluice"
_IMAGE_HTTP_PORT: Final = 9432


def compose(answers: Answers, client: Client) -> list[File]:
    """Return a compose file for the application's side and one for PostgreSQL's; pgsluice.yaml stands beside them."""
    sidecar = _loaded("compose/sidecar.yaml")[0]
    service = sidecar["services"]["pgsluice"]
    service.pop("build", None)
    service["image"] = answers.image
    service["environment"] = {name: f"${{{name}:?set it in .env}}" for name in client.variables}
    if client.http_port != _IMAGE_HTTP_PORT:
        service["healthcheck"] = {"disable": True}  # the image's own asks that port
    mounted = ["pgsluice.yaml", *([CA_FILE] if CA_FILE in client.files else [])]
    service["volumes"] = [
        *(
            {"type": "bind", "source": f"./{name}", "target": f"{_DIRECTORY}/{name}", "read_only": True}
            for name in mounted
        ),
        *(volume for volume in service["volumes"] if volume["type"] == "volume"),
    ]
    tunnel = _loaded("compose/stack.yaml")[0]["services"]["cloudflared"]
    for key in ("profiles", "networks", "depends_on"):
        tunnel.pop(key, None)
    tunnel["image"] = answers.cloudflared_image
    tunnel["network_mode"] = "host"
    tunnel["environment"] = {"TUNNEL_TOKEN": "${TUNNEL_TOKEN:?set it in .env}"}
    beside = (
        "pgsluice beside an application, in its network: docker compose up.\n"
        "Put your application in the place of `app`.\n"
        f".env, mode 600, holds: {' '.join(client.variables)}"
    )
    server = (
        "The tunnel's end, on PostgreSQL's machine: docker compose -f compose.cloudflared.yaml up --detach\n"
        ".env, mode 600, holds TUNNEL_TOKEN (terraform output -raw tunnel_token)."
    )
    return [
        File("compose.yaml", dumped([sidecar], beside)),
        File(
            "compose.cloudflared.yaml",
            dumped([{"name": "pgsluice-tunnel", "services": {"cloudflared": tunnel}}], server),
        ),
    ]


def kubernetes(answers: Answers, client: Client) -> list[File]:
    """Return manifests for a sidecar in an application's pod and for cloudflared, for one namespace."""
    sidecar = _loaded("kubernetes/overlays/sidecar/deployment.yaml")
    _fill_in(sidecar[0]["spec"]["template"]["spec"], answers, client)
    tunnel = _loaded("kubernetes/overlays/tunnel/cloudflared.yaml")
    deployment, policy = tunnel[0], tunnel[-1]
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = answers.cloudflared_image
    http = {int(answers.http_service.rpartition(":")[2])} if answers.pages else set()
    ports = sorted({route.port for route in answers.routes} | http)
    outward = policy["spec"]["egress"][-1]["ports"]
    outward += [
        {"protocol": "TCP", "port": port} for port in ports if all(each["port"] != port for each in outward)
    ]
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "pgsluice-config"},
        "data": {"pgsluice.yaml": written(in_a_pod(client.tree))},
    }
    account = _loaded("kubernetes/base/serviceaccount.yaml")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": answers.namespace,
        "resources": ["namespace.yaml", "pgsluice.yaml", "cloudflared.yaml"],
    }
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": answers.namespace}}
    namespaced = [*account, config, *sidecar]
    for each in (*namespaced, *tunnel):
        each["metadata"] = {**each["metadata"], "namespace": answers.namespace}
    where = f"kubectl --namespace {answers.namespace} create secret generic"
    beside = (
        "An application with pgsluice as a native sidecar. Put your application in the place of `app`.\n"
        f"pgsluice.env, mode 600, has lines NAME=VALUE for {' '.join(client.variables)}; then:\n"
        f"{where} {SECRET} --from-env-file=pgsluice.env"
    )
    if CA_FILE in client.files:
        beside += f"\n{where} {CA_SECRET} --from-file={CA_FILE}"
    server = (
        "The tunnel's end. tunnel.env, mode 600, has TUNNEL_TOKEN=VALUE; then:\n"
        f"{where} {TOKEN_SECRET} --from-env-file=tunnel.env"
    )
    return [
        File("kubernetes/kustomization.yaml", dumped([kustomization], "kubectl apply -k kubernetes")),
        File("kubernetes/namespace.yaml", dumped([namespace])),
        File("kubernetes/pgsluice.yaml", dumped(namespaced, beside)),
        File("kubernetes/cloudflared.yaml", dumped(tunnel, server)),
    ]


def _fill_in(pod: dict[str, Any], answers: Answers, client: Client) -> None:
    container = pod["initContainers"][0]
    container["image"] = answers.image
    container["env"] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": name}}}
        for name in client.variables
    ]
    for port in container["ports"]:
        if port["name"] == "http":
            port["containerPort"] = client.http_port
    if CA_FILE in client.files:
        volume = next(each for each in pod["volumes"] if each["name"] == "pgsluice-config")
        sources = [{"configMap": volume.pop("configMap")}, {"secret": {"name": CA_SECRET}}]
        volume["projected"] = {"sources": sources}


def systemd(client: Client) -> list[File]:
    """Return the units as they are in deploy/systemd, and the files of variables to fill in."""
    units = ("pgsluice.service", "pgsluice.socket", "pgsluice-http.socket", "cloudflared.service")
    directory = deploy_directory() / "systemd"
    head = "# Fill in; mode 600, owned by root.\n"
    variables = "".join(f"{name}=\n" for name in client.variables)
    return [
        *(File(f"systemd/{name}", (directory / name).read_text(encoding="utf-8")) for name in units),
        File("systemd/pgsluice.env", head + variables, 0o600),
        File("systemd/tunnel.env", f"{head}TUNNEL_TOKEN=\n", 0o600),
    ]


def _loaded(path: str) -> list[Any]:
    text = (deploy_directory() / path).read_text(encoding="utf-8")
    return [_plain(each) for each in yaml.safe_load_all(text)]


def _plain(tree: Any) -> Any:
    """Return a copy in which nothing is shared, without the parts (`x-…`) that only were merged elsewhere."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items() if not str(key).startswith("x-")}
    return [_plain(value) for value in tree] if isinstance(tree, list) else copy.copy(tree)
