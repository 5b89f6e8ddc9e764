"""Connections that have not proven a key yet: how many there may be, and which one goes where there are too many.

A login takes milliseconds, and one that stalls has a deadline; so among too many the oldest is the one that is least
likely to come to anything. Turning newcomers away instead would let whoever opens sockets and says nothing keep
everybody else out.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

MOST: Final = 2000
"""Unproven connections in all. Each may make the proxy hold 64 KiB, so that they take 128 MiB at the worst."""

MOST_OF_ADDRESS: Final = 500
"""Unproven connections of one address: a restarting application with a pool of hundreds gets in at once, and four
hostile addresses are needed to fill the whole. Programs on this machine have no limit of their own, for they all come
from one address."""

L = TypeVar("L")


class Unproven(Generic[L]):
    """Logins in the order in which they came, in all and for each address."""

    def __init__(self, most: int = MOST, most_of_address: int = MOST_OF_ADDRESS) -> None:
        self.most = most
        self.most_of_address = most_of_address
        # Dictionaries keep the order in which keys were put in.
        self._all: dict[L, str] = {}
        self._of: dict[str, dict[L, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, login: L, address: str, local: bool) -> L | None:
        """Enter `login`; returns the one that has to go for it, which is then no longer among them."""
        self._all[login] = address
        of_address = self._of.setdefault(address, {})
        of_address[login] = None
        if len(of_address) > self.most_of_address and not local:
            oldest = next(iter(of_address))
        elif len(self._all) > self.most:
            oldest = next(iter(self._all))
        else:
            return None
        self.discard(oldest)
        return oldest

    def discard(self, login: L) -> None:
        """Take `login` out: it has proven its key, or is gone."""
        address = self._all.pop(login, None)
        if address is None:
            return
        of_address = self._of[address]
        del of_address[login]
        if not of_address:
            del self._of[address]
