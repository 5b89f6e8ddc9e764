"""The corpus of tests/differential: a client sees the same through the proxy as at PostgreSQL itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.differential.client import Client
from tests.differential.interference import Interference
from tests.differential.run import FILES, Comparison
from tests.differential.script import read
from tests.differential.stage import PROXY, Stage
from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Proxy


@pytest.fixture(scope="module")
def two_connections(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Give a proxy with two server connections, and no replica."""
    running = Proxy(installation, tmp_path_factory.mktemp("differential"), PROXY)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def stage(installation: Installation) -> Iterator[Stage]:
    """Give the tables and functions that the corpus speaks of."""
    with Stage(installation) as made:
        yield made


@pytest.mark.parametrize(
    "file",
    # Two of them show that nothing is broken altogether.
    [
        pytest.param(
            file, id=file.stem, marks=[pytest.mark.long] if file.stem not in ("simple", "extended") else []
        )
        for file in FILES
    ],
)
async def test_a_client_sees_the_same_through_the_proxy(
    file: Path, installation: Installation, two_connections: Proxy, stage: Stage
) -> None:
    results = await Comparison(installation, two_connections, stage).run(read(file))
    different = [result for result in results if result.verdict == "different"]
    told = "\n\n".join("\n".join([result.name, result.why, *result.report]) for result in different)
    assert not different, f"{len(different)} of {len(results)} cases differ\n{told}"
    for result in results:
        if result.verdict == "known":
            print(f"KNOWN BUG {result.why}: {result.name}")


async def test_interference_moves_a_client_between_server_connections(
    two_connections: Proxy, make_key: MakeKey
) -> None:
    login = two_connections.login(*make_key())
    client = await Client.connect(login)
    interference = Interference(login, two_connections.login(*make_key(user="stranger")))
    await interference.start()
    used = list[str]()
    moves = 0
    # How often depends on how fast the machine lets the others be.
    while moves < 4 and len(used) < 400:
        used.append(
            "".join(line for line in await client.run("SELECT pg_backend_pid()") if "DataRow" in line)
        )
        await interference.between(client.status)
        moves = sum(one != other for one, other in pairwise(used))
    assert len(set(used)) == 2
    assert moves == 4, used
    await interference.stop()
    await client.close()
