"""What is called a read changes nothing, whatever it consists of: random statements, run with every right there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings

from proxy.embedded import Cluster
from tests.integration.grammar import statements
from tests.integration.ground import READ_ONLY_REFUSAL, Ground, holes, unseen_writers, writers

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ground(cluster: Cluster) -> Iterator[Ground]:
    made = Ground(cluster.primary, f"ground_{uuid4().hex[:12]}")
    yield made
    made.close()


@pytest.mark.parametrize("text", list(writers()))
def test_every_way_to_write_is_seen_and_is_no_read(text: str, ground: Ground) -> None:
    assert not ground.is_read(text)
    assert ground.complaint(text)[0]
    ground.changed()


@pytest.mark.parametrize(("hole", "text"), list(unseen_writers()))
def test_what_is_unseen_is_refused_by_a_read_only_transaction(hole: str, text: str, ground: Ground) -> None:
    assert ground.is_read(text)
    assert holes(text) == [hole]
    assert ground.complaint(text) == ("", READ_ONLY_REFUSAL)
    assert ground.run(text) == ""
    assert ground.changed()


def test_random_reads_change_nothing(ground: Ground) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=600, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(statements())
    def runs(text: str) -> None:
        if not ground.is_read(text):
            seen["writes"] += 1
            return
        complaint, state = ground.complaint(text)
        assert not complaint, f"{complaint}: {text}"
        seen["reads that are refused" if state == READ_ONLY_REFUSAL else "reads"] += 1
        seen["reads with a hole" if holes(text) else "reads without one"] += 1
        seen["reads that fail otherwise"] += state not in ("", READ_ONLY_REFUSAL)

    runs()
    # The grammar gives all kinds of statements, and most of them are no errors.
    assert seen["writes"] > 80
    assert seen["reads"] > 350
    assert seen["reads that are refused"] > 10
    assert seen["reads with a hole"] > 10
    assert seen["reads that fail otherwise"] < seen["reads"] / 4, seen
