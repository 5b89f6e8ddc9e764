"""systemd's and logrotate's own words on what deploy/systemd holds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployment import DEPLOY

UNITS = ("pgsluice.service", "pgsluice.socket", "pgsluice-http.socket", "cloudflared.service")


def program(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert path is not None, f"there is no {name}: run tests/deploy/install"
    return path


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Give a directory with the units, their programs replaced by one that is there."""
    for name in UNITS:
        text = (DEPLOY / "systemd" / name).read_text()
        text = re.sub(r"/opt/pgsluice/bin/pgsluice|/usr/bin/cloudflared", "/bin/true", text)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_systemd_has_nothing_to_say(units: Path) -> None:
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", *(str(units / name) for name in UNITS)],
        capture_output=True,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{units}:"},
    )
    # What it says of the machine's own units is not about these.
    said = [line for line in done.stderr.splitlines() if "pgsluice" in line or "cloudflared" in line]
    assert said == []
    assert done.returncode == 0, done.stderr


def test_each_setting_is_one_that_systemd_knows(units: Path) -> None:
    (units / "pgsluice.service").write_text(
        (units / "pgsluice.service").read_text() + "[Service]\nProtectSistem=yes\n"
    )
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", str(units / "pgsluice.service")],
        capture_output=True,
        text=True,
    )
    assert "ProtectSistem" in done.stderr, "a word that it doesn't know would have been told"


@pytest.mark.parametrize(("name", "most"), [("pgsluice.service", 1.6), ("cloudflared.service", 2.0)])
def test_exposure_is_low(units: Path, name: str, most: float) -> None:
    done = subprocess.run(
        [program("systemd-analyze"), "security", "--offline=true", str(units / name)],
        capture_output=True,
        text=True,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= most


def test_logrotate_takes_its_file(tmp_path: Path) -> None:
    (tmp_path / "access.log").write_text("{}\n")
    text = (DEPLOY / "systemd/pgsluice.logrotate").read_text()
    signalled = tmp_path / "signalled"
    text = text.replace("/var/log/pgsluice/", f"{tmp_path}/")
    text = re.sub(r"systemctl kill --signal=HUP \S+ pgsluice\.service", f"touch {signalled}", text)
    file = tmp_path / "pgsluice.conf"
    file.write_text(text)
    file.chmod(0o644)
    done = subprocess.run(
        [program("logrotate"), "--force", "--state", str(tmp_path / "state"), str(file)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert signalled.exists()
    # The old file waits for its writer to let go of it, and the writer makes the new one.
    assert (tmp_path / "access.log.1").exists() and not (tmp_path / "access.log").exists()
