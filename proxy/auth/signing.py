"""Which signing key signs, while keys are exchanged: no claim may ever meet a server that doesn't know its key.

Every server verifies by its own copy of sluice.signing_keys, and by the snapshot of the transaction that asks. So
a new key signs when each host has replayed it and every transaction that was open at that moment has ended on
that host; and an old one goes when its last claim has expired and the transactions that began before that have
ended too, because a claim holds for as long as the transaction that it was good at the start of.

Transactions are told apart by their virtual ids, of which pg_locks shows all, on a standby too. Plain decisions
here; who looks at the hosts is proxy.session.signing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.auth.identity import SigningKey


@dataclass(frozen=True)
class Sight:
    """What one host shows at one moment."""

    keys: tuple[SigningKey, ...]
    """The newest first."""

    expired: frozenset[str]
    """Kids by which no claim is good any more that isn't in use in a transaction."""

    transactions: frozenset[str]
    """Virtual ids of the transactions that are open."""

    @property
    def kids(self) -> frozenset[str]:
        """Return the kids of its keys."""
        return frozenset(key.kid for key in self.keys)


Sights = Mapping[str, Sight | None]
"""By host; None for one that didn't answer."""


class Rotation:
    """Chooses the key that signs, from looks at all hosts that are taken again and again."""

    def __init__(self) -> None:
        self.current: SigningKey | None = None
        self._new: dict[str, _Outlived] = {}
        self._old: dict[str, _Outlived] = {}

    def look(self, keys: tuple[SigningKey, ...], sights: Sights) -> SigningKey | None:
        """Return the key that signs now: one of `keys`, the newest first, which the leading host has.

        The newest that is safe on every host; where none is, the one that signed until now if it is still
        there, else the oldest. A host that doesn't answer holds a change up.
        """
        self._new = {key.kid: self._new.get(key.kid) or _Outlived() for key in keys}
        safe = [key for key in keys if self._new[key.kid].look(_having(key.kid, sights))]
        if safe:
            self.current = safe[0]
        elif self.current not in keys:
            self.current = keys[-1] if keys else None
        return self.current

    def retiring(self, expired: frozenset[str], sights: Sights) -> list[str]:
        """Return the kids that nobody needs any more, of those that are `expired`; call it after `look`."""
        current = self.current
        self._old = {kid: self._old.get(kid) or _Outlived() for kid in sorted(expired)}
        over = [kid for kid, outlived in self._old.items() if outlived.look(sights)]
        return [kid for kid in over if current is not None and kid != current.kid]


class _Outlived:
    """Whether the transactions that each host had at the first look have ended."""

    def __init__(self) -> None:
        self._left: dict[str, frozenset[str]] = {}

    def look(self, sights: Sights) -> bool:
        """Take another look; a host that doesn't answer begins again."""
        left: dict[str, frozenset[str]] = {}
        for host, sight in sights.items():
            if sight is not None:
                left[host] = self._left.get(host, sight.transactions) & sight.transactions
        self._left = left
        return len(left) == len(sights) and not any(left.values())


def _having(kid: str, sights: Sights) -> Sights:
    """Return `sights` without those that lack `kid`."""
    return {
        host: sight if sight is not None and kid in sight.kids else None for host, sight in sights.items()
    }
