"""Facts about a text, gathered statement by statement."""

from __future__ import annotations

from typing import Final

from proxy.query.intent import DDL, PRIMARY, READ, READONLY, SESSION, TRANSACTION, UNKNOWN, WRITE, Intent
from proxy.query.parameters import FOLDING

POOL_PARAMETER: Final = "sluice.pool"
OWN_PREFIX: Final = "sluice."

HOST_PARAMETERS: Final = frozenset(
    {"default_transaction_read_only", "in_hot_standby", "transaction_read_only"}
)
"""They tell primary and standby apart: drivers ask for them (target_session_attrs)."""

# They end with the transaction, so there is nothing to carry to another connection.
_TRANSACTION_PARAMETERS: Final = frozenset(
    {"transaction_deferrable", "transaction_isolation", "transaction_read_only"}
)

NO_HINT: Final = -1.0
"""The cache_hint of a text without a comment that says for how long its answer may be kept."""

CACHE_ON: Final = -2.0
"""That of one whose comment wants it kept for as long as the configuration says."""

_STRENGTH: Final = {READ: 0, TRANSACTION: 1, SESSION: 2, UNKNOWN: 3, WRITE: 4, DDL: 5}


def _is_on(value: str | None) -> bool:
    """Tell whether PostgreSQL takes `value` for "on", as far as whole words go."""
    return value is not None and value.lower() in ("on", "true", "yes", "1")


class Facts:
    """What is known so far; attributes mean what they mean in Intent."""

    def __init__(self) -> None:
        self.kind = READ
        self.statements = 0
        self.begins = ""
        self.ends = False
        self.pool = ""
        self.sets_pool = False
        self.settings: dict[str, None] = {}
        self.resets: dict[str, None] = {}
        self.local_settings: dict[str, None] = {}
        self.shows_pool = False
        self.pins: dict[str, None] = {}
        self.unpins: dict[str, None] = {}
        self.unclean = ""
        self.lasting = False
        self.refused = ""
        self.refused_for_admin = False
        self.needs_write = False
        self.needs_admin = False
        self.prepares = ""
        self.executes = ""
        self.deallocates = ""
        self.literal_dependent = False
        self.relations: dict[str, None] = {}
        self.unseen = False
        self.steady = True
        self.cache_hint = NO_HINT
        self._reason = ""
        self._reason_strength = (False, -1)
        self._targets: set[str] = set()

    @property
    def pin(self) -> str:
        """Return the first reason for a pin, "" where there is none."""
        return next(iter(self.pins), "")

    def note(self, kind: str, target: str, reason: str) -> None:
        """Add a statement's kind and target, "" for one that may run anywhere; the strongest reason stays."""
        if _STRENGTH[kind] > _STRENGTH[self.kind]:
            self.kind = kind
        strength = (target == PRIMARY, _STRENGTH[kind])
        if strength > self._reason_strength:
            self._reason, self._reason_strength = reason, strength
        if target:
            self._targets.add(target)

    def writes(self, reason: str) -> None:
        """Add a statement that writes for certain."""
        self.note(WRITE, PRIMARY, reason)
        self.needs_write = True

    def loosen(self, reason: str) -> None:
        """Add a way out of READ ONLY, which is all that holds functions back that run with their owner's rights."""
        self.note(TRANSACTION, PRIMARY, reason)
        self.needs_write = True

    def defines(self, reason: str) -> None:
        """Add DDL."""
        self.note(DDL, PRIMARY, reason)
        self.needs_admin = True

    def keep(self, pin: str, *, lasting: bool = False) -> None:
        """Pin the session. What is lasting can't be reset either."""
        self.pins[pin] = None
        if lasting:
            self.lasting = True
            self.soil(pin)

    def soil(self, reason: str) -> None:
        """Ask for a reset of the connection; the first reason stays."""
        self.unclean = self.unclean or reason

    def refuse(self, message: str, *, for_admin: bool = False) -> None:
        """Refuse the text; a refusal that holds for admin keys too wins over one that doesn't."""
        if not self.refused or (for_admin and not self.refused_for_admin):
            self.refused = message
        self.refused_for_admin = self.refused_for_admin or for_admin

    def set_parameter(self, name: str, *, local: bool, value: str | None = None, reset: bool = False) -> None:
        """Add SET, RESET or set_config() of one parameter; `value` is None where it isn't known."""
        name = name.lower()
        if name in ("role", "session_authorization"):
            if not reset and value != "none":
                words = "SET ROLE" if name == "role" else "SET SESSION AUTHORIZATION"
                self.refuse(f"{words} needs an API key with the permission admin")
            if name == "session_authorization":
                # It changes the role too, and cannot be replayed: nobody else gets the connection as it is.
                if not local and not reset:
                    self.keep("session authorization")
                    self.soil("session authorization")
                self.change("role", local=local, reset=True)
                return
        if name == "session_replication_role":
            self.refuse("session_replication_role needs an API key with the permission admin")
        elif name == "seed":
            self.keep("setseed", lasting=True)
            return
        elif name.startswith(OWN_PREFIX) and name != POOL_PARAMETER:
            self.refuse(f'parameter "{name}" is set by the proxy alone', for_admin=True)
        if name in HOST_PARAMETERS:
            self.note(SESSION, PRIMARY, f"SET {name}")
            if not reset and not _is_on(value):
                self.loosen(f"SET {name}")
        self.change(name, local=local, reset=reset)

    def change(self, name: str, *, local: bool, reset: bool) -> None:
        """Note that a parameter changes beyond the transaction, unless it is `local`."""
        if local or name in _TRANSACTION_PARAMETERS:
            if name in FOLDING:
                self.local_settings[name] = None
            return
        self.settings[name] = None
        if reset:
            self.resets[name] = None
        else:
            self.resets.pop(name, None)

    def reset_all(self) -> None:
        """Add RESET ALL or DISCARD ALL: every parameter is given back its value of the start."""
        self.settings["all"] = None
        self.resets = dict.fromkeys([*self.settings])

    def set_unseen(self) -> None:
        """Add a change of parameters whose names aren't in the text."""
        self.keep("unseen settings")
        self.soil("unseen settings")

    def intent(self, normalized: str, *, parsed: bool = True, source: bytes = b"") -> Intent:
        """Return what was gathered of a text; its fingerprint is that of `source`, or of `normalized` without one."""
        # Where each statement may run anywhere, nothing has been proven to read: primary.
        reads = not self.statements or (self._targets and PRIMARY not in self._targets)
        target = READONLY if reads else PRIMARY
        return Intent(
            self.kind,
            target,
            self._reason or "no statement",
            self.statements,
            self.begins,
            self.ends,
            self.pool,
            self.sets_pool,
            tuple(self.settings),
            tuple(self.resets),
            tuple(self.local_settings),
            self.shows_pool,
            self.pin,
            tuple(self.pins),
            tuple(reason for reason in self.unpins if reason not in self.pins),
            self.unclean,
            self.lasting,
            self.refused,
            self.refused_for_admin,
            self.needs_write,
            self.needs_admin,
            self.prepares,
            self.executes,
            self.deallocates,
            self.literal_dependent,
            tuple(self.relations),
            self.unseen or self.kind == DDL or not parsed,
            self.steady,
            self.cache_hint,
            parsed,
            source,
            normalized,
        )
