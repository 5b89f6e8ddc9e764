"""What a service manager is told of this process: systemd's sd_notify protocol (sd_notify(3)), without a library."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Final

log = logging.getLogger(__name__)

_VARIABLE: Final = "NOTIFY_SOCKET"

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"


def notify(*states: str) -> None:
    """Send `states`, such as READY=1, to the manager that asked for them; nothing where there is none.

    A manager that can't be reached is told of in the log: nothing depends on it here.
    """
    address = os.environ.get(_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.connect("\0" + address[1:] if address.startswith("@") else address)
            line.send("\n".join(states).encode())
    except OSError as error:
        log.warning("the service manager can't be told %s: %s", states[0], error.strerror)


def reloading() -> None:
    """Tell that a reload begins; READY tells that it is over."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def main_process(pid: int) -> None:
    """Tell that from now on the process `pid` is the service's main one."""
    notify(f"MAINPID={pid}")
