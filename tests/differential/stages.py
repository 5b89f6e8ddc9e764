"""The settings in which the corpus is played: TLS, protocol 3.2, session pooling, a replica."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from tests.certificates import Authority
from tests.differential.client import V3_0, V3_2, Manner
from tests.differential.run import Comparison
from tests.differential.stage import PROXY, Stage
from tests.integration.encrypted import Rig
from tests.integration.support import DATABASE, DEBIAN, Installation, Proxy, merged


@dataclass(frozen=True)
class Setting:
    """A way to run both sides: what it shows, and what is changed in the proxy's configuration."""

    shows: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    protocol: int = V3_0
    tls: bool = False
    replicas: int = 0

    @property
    def configuration(self) -> dict[str, Any]:
        """Return the changes to a test proxy's configuration."""
        return merged(PROXY, self.changes)


def _database(**changes: Any) -> dict[str, Any]:
    return {"databases": {DATABASE: changes}}


SETTINGS: Final[Mapping[str, Setting]] = {
    "transaction": Setting("two server connections, without TLS, on the primary alone"),
    "tls": Setting("TLS on both sides, of a PostgreSQL of Debian's", tls=True),
    "3.2": Setting("protocol 3.2, with its long cancel keys", protocol=V3_2),
    "session": Setting(
        "pool_mode: session",
        # The clients of a case, and those between its steps, keep a connection each.
        _database(
            pool_mode="session",
            pools={"primary": {"min": 2, "max": 6}, "admin": {"min": 2, "max": 6}},
        ),
    ),
    "replica": Setting(
        "reads go to a streaming replica, as another login",
        _database(routing={"enabled": True}, pools={"readonly": {"min": 2, "max": 2}}),
        replicas=1,
    ),
}


@contextmanager
def comparison(name: str) -> Iterator[Comparison]:
    """Start servers and a proxy in this setting, for the time of a `with` block."""
    setting = SETTINGS[name]
    directory = scratch_directory("pgsluice-differential-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        binaries = list(DEBIAN.values())[-1] if setting.tls else None
        cluster = stack.enter_context(
            Cluster(directory / "postgresql", replicas=setting.replicas, bin_dir=binaries)
        )
        if setting.tls:
            yield _encrypted(stack, cluster, directory, name)
        else:
            installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
            installation.replicated()
            yield _started(stack, installation, directory, name, Manner(setting.protocol), {})


def _encrypted(stack: ExitStack, cluster: Cluster, directory: Path, name: str) -> Comparison:
    """Start a proxy between TLS on both sides; each side verifies the other one's certificate."""
    authority = Authority(directory)
    rig = Rig(cluster, authority)
    verify = {"mode": "verify-full", "ca_file": str(authority.file)}
    server = cluster.primary
    tls = {
        "listen": {"tls": {"mode": "require", **authority.issue("proxy", "127.0.0.1").settings}},
        **_database(hosts=[{"name": server.name, "host": "127.0.0.1", "port": server.port, "tls": verify}]),
    }
    manner = Manner(SETTINGS[name].protocol, ssl.create_default_context(cafile=authority.file))
    return _started(stack, rig.installation, directory, name, manner, tls)


def _started(
    stack: ExitStack,
    installation: Installation,
    directory: Path,
    name: str,
    manner: Manner,
    changes: Mapping[str, Any],
) -> Comparison:
    stage = stack.enter_context(Stage(installation))
    proxy = Proxy(installation, directory, merged(SETTINGS[name].configuration, changes))
    proxy.start()
    stack.callback(proxy.stop)
    return Comparison(installation, proxy, stage, name, manner)
