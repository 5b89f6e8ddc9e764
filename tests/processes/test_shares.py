from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.config import parse
from proxy.processes.inherited import Place
from proxy.processes.shares import share, share_of

CONFIG = """
workers: 3
listen: {max_clients: 100}
identity: {mode: "off"}
auth: {keys: database}
access_log: {sinks: []}
databases:
  app:
    control: {user: c}
    pools:
      primary: {min: 4, max: 10}
      readonly: {min: 0, max: 3}
"""


def places(workers: int) -> list[Place]:
    return [Place(index, tuple(range(workers))) for index in range(workers)]


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 64))
def test_parts_are_the_whole_and_a_minimum_stays_below_its_maximum(one: int, two: int, workers: int) -> None:
    least, most = sorted((one, two))
    parts = [(share(least, place), share(most, place)) for place in places(workers)]
    assert sum(low for low, _ in parts) == least
    assert sum(high for _, high in parts) == most
    assert all(low <= high for low, high in parts)
    assert max(high for _, high in parts) - min(high for _, high in parts) <= 1


def test_each_worker_has_a_part_of_clients_and_pools() -> None:
    config = parse(CONFIG, {})
    parts = [share_of(config, place) for place in places(3)]
    assert [part.listen.max_clients for part in parts] == [34, 33, 33]
    pools = [part.databases["app"].pools for part in parts]
    assert [(each["primary"].min, each["primary"].max) for each in pools] == [(2, 4), (1, 3), (1, 3)]
    assert [each["readonly"].max for each in pools] == [1, 1, 1]
    assert share_of(config, Place()) is config
