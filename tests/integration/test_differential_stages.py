"""The corpus of tests/differential in other settings: TLS, protocol 3.2, session pooling, a replica."""

from __future__ import annotations

import asyncio

import pytest

from tests.differential.run import FILES, cases_of
from tests.differential.stages import SETTINGS, comparison
from tests.integration.support import DEBIAN

pytestmark = pytest.mark.long

# The wheel's PostgreSQL is built without TLS; `transaction` is test_differential.py's.
OTHERS = [name for name in SETTINGS if name != "transaction" and (DEBIAN or not SETTINGS[name].tls)]

# The files in which a setting can matter; the command line takes all.
PLAYED = {
    "tls": {"copy", "extended", "login", "portals"},
    "3.2": {"extended", "login", "session"},
    "session": {"extended", "login", "portals", "session", "settings"},
    "replica": {"copy", "extended", "portals", "reads", "session", "settings", "simple"},
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("setting", OTHERS)
def test_a_client_sees_the_same_in_each_setting(setting: str) -> None:
    files = [file for file in FILES if file.stem in PLAYED[setting]]
    with comparison(setting) as compared:
        results = asyncio.run(compared.run(cases_of(files), phases=(0,)))
    different = [result for result in results if result.verdict == "different"]
    told = "\n\n".join("\n".join([result.name, result.why, *result.report]) for result in different)
    assert not different, f"{len(different)} of {len(results)} cases differ\n{told}"
