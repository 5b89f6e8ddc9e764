"""A PostgreSQL that takes encrypted connections only."""

from __future__ import annotations

from pathlib import Path

from proxy.embedded import Cluster
from proxy.setup import setup
from tests.certificates import Authority, Pair
from tests.integration.support import DATABASE, Installation

HBA = "hostssl all all 127.0.0.1/32 scram-sha-256"


class Rig:
    """A PostgreSQL that takes encrypted connections only, and who signed its certificate."""

    def __init__(self, cluster: Cluster, authority: Authority) -> None:
        self.cluster = cluster
        self.authority = authority
        self.data = cluster.primary.directory
        self.own(self.data / "ca.crt", authority.file)
        self.present(authority.issue("postgres", "127.0.0.1"))
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write("ssl = on\nssl_ca_file = 'ca.crt'\n")
        self.hba(HBA)
        self.installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)

    def own(self, path: Path, source: Path) -> None:
        """Copy a file to where the server reads it, as its account's own."""
        path.write_bytes(source.read_bytes())
        path.chmod(0o600)
        self.cluster.account.own(path)

    def present(self, pair: Pair) -> None:
        """Give the server a certificate."""
        self.own(self.data / "server.crt", pair.cert)
        self.own(self.data / "server.key", pair.key)
        self.cluster.primary.reload()

    def hba(self, *lines: str) -> None:
        """Say who may come, and how."""
        (self.data / "pg_hba.conf").write_text("\n".join(lines) + "\n")
        self.cluster.primary.reload()
