"""Many clients over five server connections; the full size is `python -m tests.differential.thousand`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.differential.thousand import PROXY, keys, visits
from tests.integration.support import Installation, Proxy

pytestmark = pytest.mark.long


async def test_nothing_of_one_client_is_seen_by_another(
    start_proxy: Callable[..., Proxy], installation: Installation
) -> None:
    report = await visits(keys(installation, start_proxy(PROXY)), clients=200, seconds=5.0)
    assert not report.seen, "\n".join(report.seen[:20])
    assert report.done["look"] and report.done["execute"] and report.done["pins"], report.done
