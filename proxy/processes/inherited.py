"""What a process is given by the one that started it: listening sockets, its place, and whom to tell that it is ready.

Of another process of this program it comes in PGSLUICE_INHERITED, as JSON, because the LISTEN_PID of a process that is
yet to start can't be known; of systemd in LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES (sd_listen_fds(3)). Both are taken
out of the environment, and the descriptors are closed in programs that this one starts.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from proxy.errors import SluiceError
from proxy.processes.sockets import HTTP, POSTGRES, Named

VARIABLE: Final = "PGSLUICE_INHERITED"

_FIRST: Final = 3
"""The first descriptor that systemd passes (SD_LISTEN_FDS_START)."""

_READY: Final = b"ready\n"


@dataclass(frozen=True)
class Place:
    """Which of the workers this is: its `index` in the `numbers` of all of them."""

    index: int = 0
    numbers: tuple[int, ...] = (0,)

    @property
    def number(self) -> int:
        """Return the number of this process, which no other that lives has."""
        return self.numbers[self.index]

    @property
    def workers(self) -> int:
        """Return how many workers there are."""
        return len(self.numbers)

    @property
    def is_first(self) -> bool:
        """Tell whether this is the worker that does what has to be done once."""
        return self.index == 0


@dataclass(frozen=True)
class Inherited:
    """What was given. `place` is a worker's, None for a process of its own.

    `fixed` sockets are used whatever the configuration says. `report` is a descriptor on which the process that
    started this one hears of it; -1 where nobody listens. Who is `patient` takes no clients before it can serve them.
    """

    sockets: Sequence[Named] = ()
    fixed: bool = False
    runtime: Path | None = None
    place: Place | None = None
    report: int = -1
    patient: bool = False

    def tell_ready(self) -> None:
        """Tell that clients are served."""
        self._tell(_READY)

    def tell_failed(self, why: str) -> None:
        """Tell why this process can't start."""
        self._tell(f"failed {' '.join(why.split())}\n".encode())

    def tell(self, what: str) -> None:
        """Tell anything else."""
        self._tell(f"{what}\n".encode())

    def _tell(self, line: bytes) -> None:
        if self.report >= 0:
            try:
                os.write(self.report, line)
            except OSError:
                # Whoever started this process has gone, or gave up.
                return


@dataclass(frozen=True)
class Bequest:
    """What a process is started with: `environment` and the descriptors that it keeps."""

    environment: dict[str, str]
    descriptors: tuple[int, ...] = field(default=())


def bequeath(
    sockets: Iterable[Named],
    fixed: bool,
    runtime: Path,
    report: int,
    place: Place | None = None,
    patient: bool = False,
) -> Bequest:
    """Return how a new process is to be started so that `inherited` gives it this."""
    passed = [(name, sock.fileno()) for name, sock in sockets]
    given = {
        "sockets": passed,
        "fixed": fixed,
        "runtime": str(runtime),
        "report": report,
        "place": asdict(place) if place is not None else None,
        "patient": patient,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    environment[VARIABLE] = json.dumps(given)
    return Bequest(environment, (*(descriptor for _, descriptor in passed), report))


def inherited(environ: MutableMapping[str, str]) -> Inherited:
    """Return what this process was given, and take it out of `environ`; raises SluiceError."""
    given = environ.pop(VARIABLE, "")
    activated = {
        name: environ.pop(name, "")
        for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    }
    if given:
        return _from_process(given)
    # Of a parent that forgot to clear them.
    if activated["LISTEN_PID"] != str(os.getpid()) or activated["LISTEN_FDS"] in ("", "0"):
        return Inherited()
    return _from_systemd(activated["LISTEN_FDS"], activated["LISTEN_FDNAMES"])


def _from_process(text: str) -> Inherited:
    try:
        given = json.loads(text)
        place = given["place"]
        for _, descriptor in given["sockets"]:
            os.set_inheritable(descriptor, False)
        os.set_inheritable(given["report"], False)
        return Inherited(
            [(str(name), _listening(str(name), int(descriptor))) for name, descriptor in given["sockets"]],
            bool(given["fixed"]),
            Path(given["runtime"]),
            Place(int(place["index"]), tuple(map(int, place["numbers"]))) if place is not None else None,
            int(given["report"]),
            bool(given["patient"]),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SluiceError(f"{VARIABLE} is not what another process of pgsluice sets: {error}") from None


def _from_systemd(count: str, names: str) -> Inherited:
    number = int(count) if count.isdecimal() else -1
    called = names.split(":") if names else [POSTGRES] * number
    if not 0 < number <= 64 or len(called) != number:
        raise SluiceError("socket activation: LISTEN_FDS and LISTEN_FDNAMES don't fit each other")
    sockets: list[Named] = []
    for descriptor, name in enumerate(called, _FIRST):
        if name not in (POSTGRES, HTTP):
            raise SluiceError(
                f'socket activation: descriptor {descriptor} is called "{name}"; FileDescriptorName= has to be '
                f"{POSTGRES} or {HTTP}"
            )
        sock = _listening(name, descriptor)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise SluiceError(
                f"socket activation: {name}: descriptor {descriptor} doesn't listen (Accept=no)"
            )
        sockets.append((name, sock))
    if not any(name == POSTGRES for name, _ in sockets):
        raise SluiceError(f"socket activation: none of the sockets is called {POSTGRES}")
    return Inherited(sockets, fixed=True)


def _listening(name: str, descriptor: int) -> socket.socket:
    """Return the socket that `descriptor` is; raises SluiceError where it is none that clients could connect to."""
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        kind, family = sock.type, sock.family
    except OSError:
        raise SluiceError(f"{name}: descriptor {descriptor} is no socket") from None
    if kind != socket.SOCK_STREAM or family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        sock.detach()
        raise SluiceError(f"{name}: descriptor {descriptor} is no stream socket of TCP or Unix")
    sock.setblocking(False)
    return sock
