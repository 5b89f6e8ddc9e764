"""The checks of those who read deployment files: kustomize, Kubernetes' schemas, the compose specification."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"

# What is ours of the Prometheus operator's resource (its API reference, monitoring.coreos.com/v1).
_SERVICE_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "endpoints"],
            "properties": {
                "selector": {"type": "object", "required": ["matchLabels"]},
                "jobLabel": {"type": "string"},
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"pattern": "^[0-9]+s$"},
                            "scrapeTimeout": {"pattern": "^[0-9]+s$"},
                        },
                    },
                },
            },
        },
    },
}


def program(name: str) -> str:
    """Return the path of a program that a Python package brings; one that isn't there is an error."""
    beside = Path(sys.executable).parent
    path = shutil.which(name, path=os.pathsep.join((str(beside), os.environ["PATH"])))
    assert path is not None, f"there is no {name}: install the development packages (make .venv/developing)"
    return path


def kustomized(directory: Path) -> list[dict[str, Any]]:
    """Return what kustomize makes of a directory."""
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(directory)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def check_kubernetes(objects: list[dict[str, Any]]) -> None:
    """Fail for an object that isn't in its schema in every word, and for a reference to nothing."""
    for each in objects:
        if each["kind"] == "ServiceMonitor":
            jsonschema.validate(each, _SERVICE_MONITOR)
        else:
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    named = {(each["kind"], each["metadata"]["name"]) for each in objects}
    labels = [
        each["spec"]["template"]["metadata"]["labels"] for each in objects if each["kind"] == "Deployment"
    ]
    for each in objects:
        if each["kind"] == "Deployment":
            _check_pod(each["spec"]["template"]["spec"], named)
        for selector in _selectors(each):
            assert any(selector.items() <= known.items() for known in labels), f"{each['kind']}: {selector}"
        if each["kind"] == "HorizontalPodAutoscaler":
            target = each["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) in named


def _selectors(each: dict[str, Any]) -> list[dict[str, str]]:
    spec = each.get("spec", {})
    if each["kind"] == "Service":
        return [spec["selector"]]
    if each["kind"] in ("Deployment", "PodDisruptionBudget"):
        return [spec["selector"]["matchLabels"]]
    return [spec["podSelector"]["matchLabels"]] if each["kind"] == "NetworkPolicy" else []


def _check_pod(pod: dict[str, Any], named: set[tuple[str, str]]) -> None:
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for volume in volumes.values():
        sources = [volume, *volume.get("projected", {}).get("sources", [])]
        for config in [source["configMap"]["name"] for source in sources if "configMap" in source]:
            assert ("ConfigMap", config) in named, f"there is no ConfigMap {config}"
    account = pod.get("serviceAccountName", "default")
    assert account == "default" or ("ServiceAccount", account) in named
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        name = container["name"]
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes), name
        security = container["securityContext"]
        assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"], name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert container["resources"]["limits"]["memory"], name
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container:
                action = container[probe].get("httpGet") or container[probe]["tcpSocket"]
                assert action["port"] in ports, f"{name}: {probe}"
        for entry in container.get("env", []):
            secret = any(word in entry["name"] for word in ("PASSWORD", "SECRET", "TOKEN"))
            assert not secret or "value" not in entry, f"{name}: {entry['name']} stands in the manifest"


def check_compose(document: dict[str, Any]) -> None:
    """Fail for a compose file that the specification's schema doesn't take, or that refers to nothing."""
    schema = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(document, json.loads(schema.read_text()))
    services, volumes = document["services"], document.get("volumes") or {}
    networks = {"default", *(document.get("networks") or {})}
    for name, service in services.items():
        assert ":" in service["image"] and not service["image"].endswith(":latest"), name
        assert set(service.get("networks", [])) <= networks, name
        assert set(service.get("depends_on", {})) <= set(services), name
        kind, _, other = service.get("network_mode", "").partition(":")
        assert kind != "service" or other in services, name
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.partition(":")[0]
            assert source.startswith(".") or source in volumes, f"{name}: {source}"
        for variable, value in service.get("environment", {}).items():
            secret = any(word in variable for word in ("PASSWORD", "SECRET", "TOKEN"))
            assert not secret or str(value).startswith("${"), f"{name}: {variable} stands in the file"
