"""What deploy/ holds is read by those who will read it: kustomize, Kubernetes, compose, hadolint, the proxy itself."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import proxy
from proxy.config import Config, parse
from tests.deployment import DEPLOY, ROOT, check_compose, check_kubernetes, kustomized, program

PASSWORDS = ("PGSLUICE_CONTROL_PASSWORD", "APP_RW_PASSWORD", "APP_RO_PASSWORD", "APP_ADMIN_PASSWORD")
OVERLAYS = ("standalone", "monitored", "sidecar", "tunnel")
CONFIGURATIONS = (
    "pgsluice.yaml",
    "compose/pgsluice.yaml",
    "compose/stack.pgsluice.yaml",
    "kubernetes/base/pgsluice.yaml",
    "kubernetes/overlays/standalone/pgsluice.yaml",
)


def configuration(text: str, directory: Path) -> Config:
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (directory / name).touch()
    return parse(text.replace("/etc/pgsluice-tls/", ""), dict.fromkeys(PASSWORDS, "secret"), directory)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_configuration_is_sound(name: str, tmp_path: Path) -> None:
    configuration((DEPLOY / name).read_text(), tmp_path)


def test_no_configuration_is_forgotten() -> None:
    found = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*pgsluice.yaml")}
    assert found == set(CONFIGURATIONS)


def overlay(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    objects = kustomized(DEPLOY / "kubernetes/overlays" / name)
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_overlay_is_valid(name: str) -> None:
    check_kubernetes(list(overlay(name).values()))


def test_no_overlay_and_no_file_is_forgotten() -> None:
    kubernetes = DEPLOY / "kubernetes"
    assert {path.name for path in (kubernetes / "overlays").iterdir()} == set(OVERLAYS)
    for directory in {path.parent for path in kubernetes.rglob("*.yaml")}:
        named = (directory / "kustomization.yaml").read_text()
        for path in directory.glob("*.yaml"):
            assert path.name == "kustomization.yaml" or f"- {path.name}\n" in named, path


def pod(objects: dict[tuple[str, str], dict[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = objects["Deployment", name]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize(("name", "deployment"), [("standalone", "pgsluice"), ("sidecar", "app")])
def test_a_pod_gives_transactions_their_time_to_end(name: str, deployment: str, tmp_path: Path) -> None:
    objects = overlay(name)
    spec = pod(objects, deployment)
    (container,) = [
        each for each in (*spec.get("initContainers", []), *spec["containers"]) if each["name"] == "pgsluice"
    ]
    (config,) = [each for (kind, _), each in objects.items() if kind == "ConfigMap"]
    found = configuration(config["data"]["pgsluice.yaml"], tmp_path)
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= pause + found.listen.drain_timeout + 10
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert found.http is not None and ports["http"] == found.http.port
    assert ports.get("postgres", found.listen.port) == found.listen.port
    assert {entry["name"] for entry in container["env"]} == set(PASSWORDS)
    spool = [mount for mount in container["volumeMounts"] if "readOnly" not in mount]
    assert [found.access_log.spool_dir.is_relative_to(mount["mountPath"]) for mount in spool] == [True]
    # Nothing without TLS crosses a network.
    assert found.listen.tls.mode == "require" or found.listen.host == "127.0.0.1"


def test_the_autoscaler_and_max_connections_fit() -> None:
    text = (DEPLOY / "kubernetes/overlays/standalone/scaling.yaml").read_text()
    most = next(yaml.safe_load_all(text))["spec"]["maxReplicas"]
    pools = yaml.safe_load((DEPLOY / "kubernetes/overlays/standalone/pgsluice.yaml").read_text())[
        "databases"
    ]["app"]["pools"]
    assert f"{most} * {sum(pool['max'] for pool in pools.values())} here" in text


def test_cloudflared_is_ready_when_it_says_so() -> None:
    deployment = overlay("tunnel")["Deployment", "cloudflared"]
    assert deployment["spec"]["replicas"] == 2
    (container,) = pod(overlay("tunnel"), "cloudflared")["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert re.search(r"cloudflared:[0-9]+\.[0-9]+\.[0-9]+$", container["image"])


@pytest.mark.parametrize("name", ["sidecar", "stack"])
def test_compose_files_fit_the_specification(name: str) -> None:
    document = yaml.safe_load((DEPLOY / f"compose/{name}.yaml").read_text())
    check_compose(document)
    for service in document["services"].values():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict) and volume["type"] == "bind":
                assert (DEPLOY / "compose" / volume["source"]).is_file()
        if "build" in service:
            context = (DEPLOY / "compose" / service["build"]["context"]).resolve()
            assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
    for published in [port for each in document["services"].values() for port in each.get("ports", [])]:
        assert published.startswith("127.0.0.1:")


def test_images_have_the_version_of_the_program() -> None:
    for path in (*DEPLOY.rglob("*.yaml"), DEPLOY / "Dockerfile"):
        for version in re.findall(
            r"(?:image: |-t )pgsluice:(\S+)|name: pgsluice\n +newTag: (\S+)", path.read_text()
        ):
            assert "".join(version) == proxy.__version__, path


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([program("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_small_and_nobodys_root() -> None:
    lines = re.sub(r"\\\n", "", (DEPLOY / "Dockerfile").read_text()).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and line[0].isupper()]
    last = max(at for at, (word, _) in enumerate(instructions) if word == "FROM")
    assert last > 1, "one stage builds, another runs"
    final = instructions[last:]
    assert not [rest for word, rest in final if word == "RUN" and re.search(r"apt|gcc|pip ", rest)]
    assert [rest for word, rest in final if word == "USER"] == ["65532:65532"]
    assert any(word == "HEALTHCHECK" and "/healthz" in rest for word, rest in final)
    (base,) = [rest for word, rest in instructions if word == "ARG"]
    assert re.search(r":3\.1[1-9]\.[0-9]+-slim-", base)


def test_the_context_has_what_the_image_is_built_from() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for source in [word for line in copied for word in line.split()]:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    for part in ("compose", "kubernetes", "systemd"):
        assert not any(fnmatch.fnmatch(f"deploy/{part}", line) for line in ignored if line != "*")


def test_shell_scripts_are_sound() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    scripts = [path for path in tracked.stdout.split() if re.match(rb"#!.*\b(ba)?sh\n", _head(ROOT / path))]
    assert "tests/deploy/install" in scripts
    done = subprocess.run(
        [program("shellcheck"), "--severity=error", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def _head(path: Path) -> bytes:
    return path.read_bytes()[:100] if path.is_file() else b""


def unit(name: str) -> dict[str, list[tuple[str, str]]]:
    sections: dict[str, list[tuple[str, str]]] = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        if line.startswith("["):
            settings = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.append((key, value))
    return sections


def test_the_unit_gives_transactions_their_time_to_end(tmp_path: Path) -> None:
    service = dict(unit("pgsluice.service")["Service"])
    found = configuration((DEPLOY / "pgsluice.yaml").read_text(), tmp_path)
    assert int(service["TimeoutStopSec"]) >= found.listen.drain_timeout + 10
    assert service["Type"] == "notify" and service["NotifyAccess"] == "all"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert found.access_log.spool_dir.is_relative_to(Path("/var/lib", service["StateDirectory"]))
    assert int(service["LimitNOFILE"]) > 2 * found.listen.max_clients


@pytest.mark.parametrize(
    ("name", "known"), [("pgsluice.socket", "postgres"), ("pgsluice-http.socket", "http")]
)
def test_sockets_have_the_names_and_ports_that_the_proxy_has(name: str, known: str, tmp_path: Path) -> None:
    socket = dict(unit(name)["Socket"])
    found = configuration((DEPLOY / "pgsluice.yaml").read_text(), tmp_path)
    assert found.http is not None
    assert socket["FileDescriptorName"] == known
    assert (
        socket["ListenStream"] == f"127.0.0.1:{found.listen.port if known == 'postgres' else found.http.port}"
    )


def test_sysctl_sets_what_linux_has_once() -> None:
    lines = (DEPLOY / "systemd/pgsluice.sysctl").read_text().splitlines()
    names = [line.partition(" = ")[0] for line in lines if line and not line.startswith("#")]
    assert len(names) == len(set(names)) > 0
    for name in names:
        assert Path("/proc/sys", *name.split(".")).exists(), name
