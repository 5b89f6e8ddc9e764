"""A proxy whose processes come and go: handovers, and what its clients saw."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.integration.support import Installation, Proxy, wait_until

_SUCCESSOR = re.compile(r"handed over to process (\d+)")


class Dynasty(Proxy):
    """A proxy, its successors and their workers; all that live are ended by `stop`."""

    def __init__(
        self, installation: Installation, directory: Path, changes: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(installation, directory, changes)
        self.pids: list[int] = []

    @property
    def pid(self) -> int:
        """Return the process that serves now."""
        return self.pids[-1]

    def start(self) -> None:
        super().start()
        self.pids = [self.process.pid]

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process that somebody else has started, once it listens."""
        self._process = process
        wait_until(lambda: process.poll() is not None or self.said("listening on"), 60.0, "the proxy listens")
        assert process.poll() is None, self.tail()
        self.pids = [process.pid]

    def workers(self) -> list[int]:
        """Return the workers of the process that serves now, in their order."""
        return [child.pid for child in psutil.Process(self.pid).children() if _is_worker(child)]

    def hand_over(self, timeout: float = 30.0) -> int:
        """Have a new process take over; returns it once it serves."""
        before = len(self.pids)
        os.kill(self.pid, signal.SIGUSR2)
        wait_until(lambda: len(self._successors()) >= before, timeout, self.tail())
        self.pids = [self.process.pid, *map(int, self._successors())]
        return self.pid

    def stop(self, timeout: float = 45.0) -> None:
        """End all of them (SIGTERM), and expect that they do so cleanly."""
        living = [psutil.Process(pid) for pid in self.pids if psutil.pid_exists(pid)]
        for process in reversed(living):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout)
        _, left = psutil.wait_procs(living, timeout)
        for process in left:
            process.kill()
        assert not left, self.tail()
        assert code == 0, f"exit code {code}\n{self.tail()}"
        assert not self.said("Traceback"), self.errors.read_text()[-8000:]

    def alive(self) -> list[int]:
        """Return the processes of all generations that haven't ended; those of workers aren't among them."""
        self.process.poll()
        return [pid for pid in self.pids if psutil.pid_exists(pid) and not _is_zombie(pid)]

    def tail(self) -> str:
        return self.errors.read_text(errors="replace")[-4000:]

    def _successors(self) -> list[str]:
        return _SUCCESSOR.findall(self.errors.read_text(errors="replace"))


@contextlib.contextmanager
def dynasty(
    installation: Installation, directory: Path, changes: Mapping[str, Any] | None = None
) -> Iterator[Dynasty]:
    """Run such a proxy for the time of a `with` block."""
    directory.mkdir(exist_ok=True)
    running = Dynasty(installation, directory, changes)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def activated(proxy: Proxy, sockets: Mapping[str, list[int]]) -> subprocess.Popen[bytes]:
    """Start `proxy` as systemd would that listens at `sockets`: descriptors by their name."""
    names = [name for name, descriptors in sockets.items() for _ in descriptors]
    passed = [descriptor for descriptors in sockets.values() for descriptor in descriptors]
    launcher = (
        "import os, sys\n"
        "passed = [int(each) for each in sys.argv[1].split(',')]\n"
        # First out of the way, then to where systemd puts them.
        "held = [os.dup2(each, 100 + at) for at, each in enumerate(passed)]\n"
        "for at, each in enumerate(held):\n"
        "    os.dup2(each, 3 + at)\n"
        "    os.close(each)\n"
        "os.environ |= {'LISTEN_FDS': str(len(passed)), 'LISTEN_PID': str(os.getpid())}\n"
        "os.environ['LISTEN_FDNAMES'] = sys.argv[2]\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'proxy', 'serve', '-c', sys.argv[3]])\n"
    )
    arguments = [",".join(map(str, passed)), ":".join(names), str(proxy.config)]
    with proxy.errors.open("wb") as errors, proxy.output.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", launcher, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            pass_fds=passed,
        )


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and "serve" in process.cmdline()
    return False


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return False
