"""Processes of this program that this process starts: workers, and its successor.

Each has a line to the process that started it, on which it tells when it serves, or why it can't. They are started by
the same command as this process, so it is the code on disk that runs. asyncio's own subprocesses are of no use here:
they are killed when the loop that started them ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from proxy.errors import SluiceError, reason
from proxy.processes.inherited import Place, bequeath
from proxy.processes.sockets import Named

READY_WITHIN: Final = 60.0
"""Seconds for a process to begin to serve: each of several hosts may take connect_timeout, 5 s, to answer."""

PREPARED: Final = "prepared"
READY: Final = "ready"
OPEN: Final = "open"
"""What a worker of a successor says, and hears: none of them takes clients before all can serve."""

_STEP: Final = 0.02


class StartError(SluiceError):
    """A process didn't begin to serve; the message says why."""


class Child:
    """A process that was started, and the line to it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer

    async def hear(self) -> str:
        """Return the next line that it says, "" once it has ended."""
        try:
            return (await self._reader.readline()).decode("utf-8", "replace").strip()
        except (OSError, ValueError):
            return ""

    async def ready(self, word: str = READY) -> None:
        """Wait until it says `word`, that it serves; raises StartError, and then it has ended."""
        try:
            async with asyncio.timeout(READY_WITHIN):
                said = await self.hear()
        except TimeoutError:
            said = f"failed it was not ready within {READY_WITHIN:.0f} s"
        except asyncio.CancelledError:
            await self.kill()
            raise
        if said == word:
            return
        code = await self.kill() if said else await self.ended()
        raise StartError(said.removeprefix("failed ") or f"it ended with exit code {code}")

    def tell(self, line: str) -> None:
        """Say something to it."""
        with contextlib.suppress(OSError):
            self._writer.write(f"{line}\n".encode())

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        self._process.send_signal(number)

    async def kill(self) -> int:
        """End it at once."""
        self._process.kill()
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end; return the exit code, or the signal's number below zero."""
        while (code := self._process.poll()) is None:
            await asyncio.sleep(_STEP)
        return code

    def close(self) -> None:
        """Close the line."""
        self._writer.close()


async def start(
    sockets: Iterable[Named], fixed: bool, runtime: Path, place: Place | None = None, patient: bool = False
) -> Child:
    """Start a process with these sockets; raises StartError where the system refuses.

    A `patient` one takes no clients before its databases can be served.
    """
    ours, theirs = socket.socketpair()
    try:
        bequest = bequeath(sockets, fixed, runtime, theirs.fileno(), place, patient)
        process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env=bequest.environment,
            pass_fds=bequest.descriptors,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        ours.close()
        raise StartError(f"{sys.executable}: {reason(error)}") from None
    finally:
        theirs.close()
    ours.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    return Child(process, reader, writer)
