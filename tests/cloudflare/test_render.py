"""`pgsluice cloudflare render`: its files pass the checks of those who read them, and nothing is overwritten."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from typer.testing import CliRunner, Result

from proxy.cli import app
from proxy.cloudflare import documents
from proxy.config import parse
from proxy.errors import SluiceError
from tests import deployment

ACCOUNT, ZONE, AUDIENCE = "a" * 32, "b" * 32, "c" * 64
ANSWERS = (
    "--hostname=db.example.com",
    f"--account-id={ACCOUNT}",
    f"--zone-id={ZONE}",
    "--team-name=example",
    f"--aud={AUDIENCE}",
)
PAGES = (
    "--api-hostname=api.example.com",
    "--health-hostname=health.example.com",
    "--metrics-hostname=metrics.example.com",
)
# What provider cloudflare/cloudflare 5.14 takes: names of arguments, those in braces with arguments of their own.
SCHEMA: dict[str, Any] = {
    "cloudflare_zero_trust_tunnel_cloudflared": {
        "account_id": 0,
        "name": 0,
        "config_src": 0,
        "tunnel_secret": 0,
    },
    "cloudflare_zero_trust_tunnel_cloudflared_config": {
        "account_id": 0,
        "tunnel_id": 0,
        "source": 0,
        "config": {
            "ingress": {
                "hostname": 0,
                "path": 0,
                "service": 0,
                "origin_request": {
                    "access": {"aud_tag": 0, "required": 0, "team_name": 0},
                    "connect_timeout": 0,
                    "proxy_type": 0,
                    "tcp_keep_alive": 0,
                },
            }
        },
    },
    "cloudflare_dns_record": {
        "zone_id": 0,
        "name": 0,
        "type": 0,
        "content": 0,
        "proxied": 0,
        "ttl": 0,
        "comment": 0,
    },
    "cloudflare_zero_trust_access_service_token": {
        "account_id": 0,
        "name": 0,
        "duration": 0,
        "lifecycle": {"create_before_destroy": 0},
    },
    "cloudflare_zero_trust_access_policy": {
        "account_id": 0,
        "name": 0,
        "decision": 0,
        "include": {"service_token": {"token_id": 0}},
    },
    "cloudflare_zero_trust_access_application": {
        "account_id": 0,
        "name": 0,
        "type": 0,
        "domain": 0,
        "destinations": {"type": 0, "uri": 0},
        "policies": {"id": 0, "precedence": 0},
        "service_auth_401_redirect": 0,
        "app_launcher_visible": 0,
        "session_duration": 0,
    },
    "cloudflare_ruleset": {
        "count": 0,
        "zone_id": 0,
        "name": 0,
        "description": 0,
        "kind": 0,
        "phase": 0,
        "rules": {
            "ref": 0,
            "description": 0,
            "expression": 0,
            "action": 0,
            "enabled": 0,
            "ratelimit": {
                "characteristics": 0,
                "period": 0,
                "requests_per_period": 0,
                "mitigation_timeout": 0,
            },
        },
    },
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ("cloudflare", "render", *arguments), env={"COLUMNS": "200"})


def written(*arguments: str) -> dict[str, str]:
    """Render into `cloudflare`, and return the files by path."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    files = {
        file["path"]: Path("cloudflare", file["path"]).read_text()
        for file in json.loads(result.stdout)["files"]
    }
    found = {str(path.relative_to("cloudflare")) for path in Path("cloudflare").rglob("*") if path.is_file()}
    assert found == set(files)
    return files


def resources(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return Terraform's resources, by kind and name."""
    read = hcl2.load(io.StringIO(files["terraform/main.tf"]))["resource"]
    found: dict[str, dict[str, Any]] = {}
    for block in read:
        for kind, named in block.items():
            if kind != "__is_block__":
                found.setdefault(kind.strip('"'), {}).update(
                    {name.strip('"'): body for name, body in named.items() if name != "__is_block__"}
                )
    return found


def test_cloudflared_gets_its_rules_and_only_options_that_have_an_effect() -> None:
    config = yaml.safe_load(written(*ANSWERS, *PAGES, "--only=config")["config.yml"])
    access = {"required": True, "teamName": "example", "audTag": [AUDIENCE]}
    http = {"connectTimeout": "10s", "access": access}
    assert config == {
        "tunnel": "pgsluice",
        "credentials-file": "/etc/cloudflared/pgsluice.json",
        "ingress": [
            {
                "hostname": "db.example.com",
                "service": "tcp://localhost:5432",
                "originRequest": {"connectTimeout": "10s", "tcpKeepAlive": "30s", "access": access},
            },
            {"hostname": "api.example.com", "service": "http://localhost:9432", "originRequest": http},
            {
                "hostname": "health.example.com",
                "path": "^/(healthz|readyz|health)$",
                "service": "http://localhost:9432",
                "originRequest": http,
            },
            {
                "hostname": "metrics.example.com",
                "path": "^/metrics$",
                "service": "http://localhost:9432",
                "originRequest": http,
            },
            {"service": "http_status:404"},
        ],
    }


def test_terraform_names_only_arguments_that_the_provider_has() -> None:
    found = resources(written(*ANSWERS, *PAGES, "--only=terraform"))
    assert set(found) == set(SCHEMA)
    for kind, named in found.items():
        for body in named.values():
            fits(body, SCHEMA[kind], kind)


def fits(value: Any, schema: Any, path: str) -> None:
    if isinstance(value, list):
        for item in value:
            fits(item, schema, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key != "__is_block__":
                assert isinstance(schema, dict) and key in schema, f"{path}.{key}"
                fits(inner, schema[key], f"{path}.{key}")


def test_terraform_protects_every_hostname() -> None:
    files = written(*ANSWERS, *PAGES, "--only=terraform")
    found = resources(files)
    names = {f"{name}.example.com" for name in ("db", "api", "health", "metrics")}
    assert {record["name"].strip('"') for record in found["cloudflare_dns_record"].values()} == names
    assert all(record["proxied"] is True for record in found["cloudflare_dns_record"].values())
    application = found["cloudflare_zero_trust_access_application"]["pgsluice"]
    assert {each["uri"].strip('"') for each in application["destinations"]} == names
    assert application["service_auth_401_redirect"] is True
    assert found["cloudflare_zero_trust_access_policy"]["pgsluice"]["decision"] == '"non_identity"'
    rules = found["cloudflare_ruleset"]
    assert {rule["phase"] for rule in rules.values()} == {
        '"http_request_firewall_custom"',
        '"http_ratelimit"',
    }
    limit = rules["pgsluice_rate"]["rules"][0]
    assert limit["ratelimit"]["characteristics"] == ['"ip.src"', '"cf.colo.id"']
    for text in (limit["expression"], rules["pgsluice_firewall"]["rules"]):
        assert all(name in text for name in names)
    ingress = found["cloudflare_zero_trust_tunnel_cloudflared_config"]["pgsluice"]["config"]["ingress"]
    assert ingress[-1] == {"service": '"http_status:404"'}
    assert all(rule["origin_request"]["access"]["required"] is True for rule in ingress[:-1])


def test_terraform_refers_to_what_is_there_and_marks_secrets() -> None:
    files = written(*ANSWERS, "--only=terraform", "--zone=example.com")
    blocks = {
        name: hcl2.load(io.StringIO(text)) for name, text in files.items() if name.startswith("terraform/")
    }
    named = [
        (
            kind,
            *(
                part.strip('"')
                for part in (
                    outer,
                    *(
                        [inner for inner in body if inner != "__is_block__"]
                        if kind in ("resource", "data")
                        else []
                    ),
                )
            ),
        )
        for text in blocks.values()
        for kind in ("variable", "resource", "data", "output")
        for block in text.get(kind, [])
        for outer, body in block.items()
        if outer != "__is_block__"
    ]
    assert len(named) == len(set(named))
    there = {f"var.{name[1]}" for name in named if name[0] == "variable"}
    there |= {".".join(name[1:]) for name in named if name[0] == "resource"}
    there |= {".".join(name) for name in named if name[0] == "data"}
    code = re.sub(r"(?m)^#.*$", "", "\n".join(files.values()))
    used = set(re.findall(r"\bvar\.\w+|\bdata\.\w+\.\w+|(?<![\w.])cloudflare_\w+\.\w+", code))
    assert used and used <= there, used - there
    outputs = {
        outer.strip('"'): body
        for block in blocks["terraform/outputs.tf"]["output"]
        for outer, body in block.items()
        if outer != "__is_block__"
    }
    assert {name for name, body in outputs.items() if body.get("sensitive") is True} == {
        "tunnel_token",
        "service_token_secret",
    }


@pytest.mark.skipif(shutil.which("terraform") is None, reason="no package registry has Terraform")
@pytest.mark.parametrize("zone", [f"--zone-id={ZONE}", "--zone=example.com"])
def test_terraform_is_as_terraform_formats_it(zone: str) -> None:
    written(*(answer for answer in ANSWERS if "zone" not in answer), zone, *PAGES, "--only=terraform")
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", "-recursive", "cloudflare"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_compose_files_fit_the_specification() -> None:
    files = written(*ANSWERS, "--only=compose", "--image=registry.example.com/pgsluice:9")
    for name in ("compose.yaml", "compose.cloudflared.yaml"):
        deployment.check_compose(yaml.safe_load(files[name]))
    service = yaml.safe_load(files["compose.yaml"])["services"]["pgsluice"]
    assert service["image"] == "registry.example.com/pgsluice:9"
    assert all(value == f"${{{name}:?set it in .env}}" for name, value in service["environment"].items())
    sources = [volume["source"] for volume in service["volumes"] if volume["type"] == "bind"]
    assert sources == ["./pgsluice.yaml", "./ca.crt"]


def test_kubernetes_manifests_are_valid_and_hold_no_secret() -> None:
    answers = [answer for answer in ANSWERS if "hostname" not in answer]
    files = written(
        *answers,
        "--hostname=db.example.com=postgres:6543",
        "--metrics-hostname=metrics.example.com",
        "--http-service=pgsluice:9876",
        "--only=kubernetes",
        "--namespace=tenant-1",
    )
    objects = deployment.kustomized(Path("cloudflare/kubernetes"))
    deployment.check_kubernetes(objects)
    assert {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"} == {
        "tenant-1"
    }
    named = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    config = named["ConfigMap", "pgsluice-config"]["data"]["pgsluice.yaml"]
    pod = named["Deployment", "app"]["spec"]["template"]["spec"]
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    variables = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in sidecar["env"]}
    assert set(re.findall(r"\$\{(\w+)\}", config)) == set(variables)
    assert all(
        reference == {"name": "pgsluice-secrets", "key": name} for name, reference in variables.items()
    )
    Path("ca.crt").touch()
    parsed = parse(config, dict.fromkeys(variables, "x"), Path())
    assert parsed.http is not None and parsed.http.host == "0.0.0.0"
    assert parsed.databases["app"].hosts[0].transport == "cloudflare"
    egress = named["NetworkPolicy", "cloudflared"]["spec"]["egress"][-1]["ports"]
    assert {5432, 6543, 9876} <= {each["port"] for each in egress if each["protocol"] == "TCP"}
    assert "Secret" not in {each["kind"] for each in objects}
    assert files


def test_systemd_units_are_those_of_deploy() -> None:
    files = written(*ANSWERS, "--only=systemd")
    for name in ("pgsluice.service", "pgsluice.socket", "pgsluice-http.socket", "cloudflared.service"):
        assert files[f"systemd/{name}"] == (deployment.DEPLOY / "systemd" / name).read_text()
    assert re.findall(r"(?m)^(\w+)=(.*)$", files["systemd/pgsluice.env"])[:2] == [
        ("PGSLUICE_CONTROL_PASSWORD", ""),
        ("APP_RW_PASSWORD", ""),
    ]
    assert Path("cloudflare/systemd/pgsluice.env").stat().st_mode & 0o777 == 0o600


def test_no_secret_of_the_configuration_comes_out() -> None:
    Path("pgsluice.yaml").write_text(
        "databases: {app: {control: {user: sluice_control, password: hunter2}, hosts: [{host: db.example.com,"
        " port: 443, transport: cloudflare, service_token: {id: hunter2.access, secret: hunter2}}],"
        " pools: {primary: {password: hunter2}, readonly: {password: 'hunter2'}}}}\n"
    )
    result = run(*ANSWERS[1:], "--dry-run")
    assert result.exit_code == 0, result.output
    assert "hunter2" not in result.output
    assert not Path("cloudflare").exists()
    assert "hostname: db.example.com" in result.stdout  # the configuration's own


def test_nothing_is_overwritten_unless_asked_to() -> None:
    before = written(*ANSWERS)
    edited, missing = Path("cloudflare/terraform/main.tf"), Path("cloudflare/compose.yaml")
    edited.write_text("mine")
    missing.unlink()
    result = run(*ANSWERS)
    assert result.exit_code == 1
    assert "cloudflare/terraform/main.tf" in result.stderr and "--force" in result.stderr
    assert edited.read_text() == "mine" and not missing.exists()
    assert written(*ANSWERS, "--force") == before


def test_a_link_is_replaced_and_not_followed() -> None:
    target = Path("elsewhere")
    target.write_text("mine")
    Path("cloudflare").mkdir()
    Path("cloudflare/config.yml").symlink_to(target.absolute())
    assert run(*ANSWERS, "--only=config").exit_code == 1
    assert run(*ANSWERS, "--only=config", "--force").exit_code == 0
    assert target.read_text() == "mine"
    assert not Path("cloudflare/config.yml").is_symlink()


def test_a_file_that_appears_meanwhile_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def appears(name: str, place: Path) -> None:
        place.write_text("somebody's")
        os_link(name, place)

    os_link = os.link
    monkeypatch.setattr("os.link", appears)
    with pytest.raises(FileExistsError):
        documents.write_all(Path("out"), [documents.File("a", "ours")], replace=False)
    assert [path.name for path in Path("out").iterdir()] == ["a"]
    assert Path("out/a").read_text() == "somebody's"


def test_a_directory_in_the_way_is_told_before_anything_is_written() -> None:
    Path("out/b").mkdir(parents=True)
    files = [documents.File("a", "x"), documents.File("b", "y")]
    with pytest.raises(SluiceError, match="is a directory"):
        documents.write_all(Path("out"), files, replace=True)
    assert not Path("out/a").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read own.yaml: No such file"),
        (b"\xff", "own.yaml is not UTF-8 text"),
        (b"databases: [", "not valid YAML"),
        (b"databases: {app: {colour: red}}", "databases.app.colour"),
    ],
)
def test_a_configuration_that_is_wrong_is_told(content: bytes | None, message: str) -> None:
    if content is not None:
        Path("own.yaml").write_bytes(content)
    result = run(*ANSWERS, "-c", "own.yaml")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert message in result.stderr
    assert not Path("cloudflare").exists()


@pytest.mark.parametrize("missing", range(len(ANSWERS)))
def test_what_is_missing_is_named_where_nobody_can_be_asked(missing: int) -> None:
    flag = ANSWERS[missing].partition("=")[0]
    result = run(*(answer for answer in ANSWERS if answer != ANSWERS[missing]))
    assert result.exit_code == 1
    assert f"{flag} is needed" in result.stderr
    assert not Path("cloudflare").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('--hostname=db.example.com"', "--hostname: a full host name"),
        ("--only=config,helm", "--only: config, terraform"),
        ("--zone-id=xyz", "--zone-id: 32 hexadecimal digits"),
        ("--namespace=Not Good", "--namespace: lower-case"),
        ("--image=a b", "--image: an image"),
        ("--server-tls=off", "--server-tls: one of"),
        ("--tunnel-name=$(x)", "--tunnel-name: letters"),
        ("--metrics-hostname=db.example.com", "comes twice"),
    ],
)
def test_wrong_answers_are_told_by_their_flag(wrong: str, message: str) -> None:
    result = run(*ANSWERS, wrong)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("cloudflare").exists()


def test_a_terminal_is_asked() -> None:
    controller, terminal = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "proxy", "cloudflare", "render", "--only=config,terraform", "--dry-run"],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env={**os.environ, "PYTHONPATH": str(deployment.ROOT)},
    )
    os.close(terminal)
    os.write(controller, f"not good\ndb.example.com\nexample\n{ACCOUNT}\n{ZONE}\n\n".encode())
    output, _ = program.communicate(timeout=30)
    told = os.read(controller, 65536).decode()
    os.close(controller)
    assert program.returncode == 0, told
    assert "a full host name is needed" in told
    # An empty audience leaves config.yml out.
    assert "# --- cloudflare/terraform/main.tf\n" in output and "cloudflare/config.yml" not in output
