"""A short search for broken laws with each run of the tests, and what longer ones have found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz.grammar import Big
from tests.fuzz.peers import FuzzWorld, Innocent
from tests.fuzz.targets import TARGETS
from tests.session.fakes import Client
from tests.session.frontend import bind, copy_data, function_call, kinds, message, parse, query, run


# The same examples each time: what is new is looked for by `make fuzz`.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("law", TARGETS, ids=lambda law: law.__name__)
def test_laws(law: Callable[[], None]) -> None:
    few = settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    few(law)()


@pytest.mark.parametrize(
    "sent",
    [
        # A Query inside of an extended COPY: the server waits for a Sync.
        run("COPY t FROM STDIN") + query("LISTEN a"),
        run("COPY t FROM STDIN") + query("SELECT 'hostile'"),
        # The refused identity was read back as a setting of the session.
        parse("", "SELECT 'hostile'")
        + query("RESET ALL")
        + query("SELECT set_config('sluice.identity', 'innocent', false)"),
        # Long messages of types that have none.
        message(b"\0", b"x" * 70_000),
        message(b"F", b"x" * 70_000),
        Big(copy_data(b"x" * 70_000)) + function_call() + bind("nobody"),
    ],
)
def test_what_was_found(sent: bytes) -> None:
    ends = [_left_behind(pieces, sent) for pieces in ([sent], [sent[:7], sent[7:]], _single(sent))]
    assert ends[1] == ends[0] and ends[2] == ends[0]


def _left_behind(pieces: list[bytes], sent: bytes) -> str:
    world = FuzzWorld(maximum=4)
    client: Client = world.client("mallory", ("admin", "write:tasks"))
    for piece in pieces:
        client.send(piece)
    world.settle()
    world.check_all()
    outcome = kinds(client.take())
    if not client.closed():
        client.vanish()
    for innocent in (Innocent(world, "mallory"), Innocent(world, "innocent")):
        innocent.act()
    world.check_all()
    return outcome


def _single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))] if len(data) < 1000 else [data]
