"""Many users at random over few server connections; `python -m tests.integration.strangers` is the full size."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration import strangers
from tests.integration.support import Installation, Proxy

pytestmark = pytest.mark.long


async def test_nobody_sees_a_row_of_a_stranger(
    start_proxy: Callable[..., Proxy], installation: Installation
) -> None:
    installation.execute(*strangers.statements())
    installation.replicated()
    try:
        running = start_proxy(strangers.PROXY)
        report = await strangers.mingle(strangers.keys(installation, running), 3000, seed=20)
        assert (report.foreign, report.missing, report.broken) == ([], [], [])
        assert report.queries >= 3000 and report.rows > 10_000
        assert report.done["cancelled"] > 0 and report.done["vanish"] > 0
        # The looking itself: without policies everybody sees everything.
        installation.execute(f"ALTER TABLE {strangers.TABLE} DISABLE ROW LEVEL SECURITY")
        installation.replicated()
        report = await strangers.mingle(strangers.keys(installation, running), 200, seed=21)
        assert report.foreign and report.missing
        running.stop()
    finally:
        installation.execute(f"DROP TABLE {strangers.TABLE}", "DROP FUNCTION public.run_strangely")
