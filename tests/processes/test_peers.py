from __future__ import annotations

import asyncio
import socket
import stat
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import InvalidParameter, WrongState
from proxy.processes.peers import Handler, PeerError, Peers
from proxy.processes.runtime import Runtime


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    tmp_path.chmod(0o700)
    made = Runtime(tmp_path)
    yield made
    made.close()


async def answering(runtime: Runtime, **handlers: Handler) -> Peers:
    peers = Peers(runtime, 1)
    await peers.listen(handlers)
    return peers


async def echo(question: dict[str, Any], data: bytes) -> object:
    return {"question": question, "length": len(data)}


async def test_a_question_is_answered(runtime: Runtime) -> None:
    there = await answering(runtime, echo=echo)
    told = await Peers(runtime, 0).ask(1, "echo", {"a": [1, "é"]}, b"x" * 3_000_000)
    assert told == {"question": {"a": [1, "é"]}, "length": 3_000_000}
    assert stat.S_IMODE(runtime.socket_of(1).stat().st_mode) == 0o600
    await there.close()
    assert not runtime.socket_of(1).exists()


async def test_who_is_not_there_gives_no_answer(runtime: Runtime) -> None:
    with pytest.raises(PeerError, match="process 9: No such file or directory"):
        await Peers(runtime, 0).ask(9, "echo")


async def test_an_answer_that_takes_too_long_is_none(runtime: Runtime) -> None:
    ended = asyncio.Event()

    async def slow(question: dict[str, Any], data: bytes) -> object:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return None

    there = await answering(runtime, slow=slow)
    with pytest.raises(PeerError, match="no answer"):
        await Peers(runtime, 0).ask(1, "slow", patience=0.05)
    async with asyncio.timeout(5):
        await ended.wait()
    await there.close()


async def test_who_takes_a_question_back_ends_the_work(runtime: Runtime) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(question: dict[str, Any], data: bytes) -> object:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return None

    there = await answering(runtime, slow=slow)
    asking = asyncio.create_task(Peers(runtime, 0).ask(1, "slow", patience=None))
    await begun.wait()
    asking.cancel()
    async with asyncio.timeout(5):
        await ended.wait()
    await there.close()


async def test_an_error_for_a_client_arrives_as_it_was_raised(runtime: Runtime) -> None:
    async def refuse(question: dict[str, Any], data: bytes) -> object:
        raise WrongState("already paused", hint="RESUME ends a pause.", extra="really")

    there = await answering(runtime, refuse=refuse)
    with pytest.raises(WrongState) as told:
        await Peers(runtime, 0).ask(1, "refuse")
    assert (told.value.message, told.value.hint, told.value.extra) == (
        "already paused",
        "RESUME ends a pause.",
        "really",
    )
    assert not isinstance(told.value, InvalidParameter)
    await there.close()


@pytest.mark.parametrize(
    "sent", [b"", b"\0\0\0", struct.pack(">II", 2**31, 0), struct.pack(">II", 2, 0) + b"[]", b"\0" * 8]
)
async def test_what_is_no_message_is_dropped(runtime: Runtime, sent: bytes) -> None:
    there = await answering(runtime, echo=echo)
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, str(runtime.socket_of(1)))
        await loop.sock_sendall(client, sent)
        client.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(5):
            assert await loop.sock_recv(client, 100) == b""
    assert (await Peers(runtime, 0).ask(1, "echo"))["length"] == 0
    await there.close()
