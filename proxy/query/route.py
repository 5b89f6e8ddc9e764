"""From Intent, key and session to a host and a login."""

from __future__ import annotations

from typing import Final, final

from proxy.query.intent import PRIMARY, READONLY, Intent

REPLICA: Final = "replica"
ADMIN: Final = "admin"
POOLS: Final = ("primary", "readonly", "priority", "background", "admin")


@final
class Route:
    """Where a unit goes; one object for each combination, so that choosing allocates nothing."""

    def __init__(self, host_role: str, pool: str, reason: str, by_intent: bool = False) -> None:
        # "replica": replicas first, then the primary. "primary": there alone.
        self.host_role: Final = host_role
        # The pool whose login is used.
        self.pool: Final = pool
        self.reason: Final = reason
        # The statements themselves decided: neither the key nor a pool that was asked for.
        self.by_intent: Final = by_intent
        # What each access record of this route shares, encoded; in a transaction, where that decided, and else.
        self.log_part: bytes = b""
        self.transaction_part: bytes = b""

    @property
    def target(self) -> str:
        """Return "readonly" where replicas may serve it, else "primary"."""
        return READONLY if self.host_role == REPLICA else PRIMARY


_READ: Final = Route(REPLICA, "readonly", "read", True)
_READER_ON_PRIMARY: Final = Route(PRIMARY, "readonly", "the key may not write")
_WRITE: Final = Route(PRIMARY, "primary", "not a proven read", True)
_ADMIN: Final = Route(PRIMARY, "admin", "admin key")
_ASKED_READONLY: Final = Route(REPLICA, "readonly", "asked for readonly")
_LISTEN_READONLY: Final = Route(PRIMARY, "readonly", "asked for readonly, but replicas can't LISTEN")
_ON_PRIMARY: Final = ("primary", "priority", "background")
_ASKED: Final = {name: Route(PRIMARY, name, "asked for " + name) for name in _ON_PRIMARY}
_READER_ASKED: Final = {name: Route(PRIMARY, "readonly", "asked for " + name) for name in _ON_PRIMARY}
_ASKED_ADMIN: Final = Route(PRIMARY, "admin", "asked for admin")


def choose(
    intent: Intent,
    can_write: bool,
    is_admin: bool,
    in_transaction_target: str,
    asked_pool: str,
    default_pool: str,
) -> Route:
    """Return where a unit with `intent` goes.

    `in_transaction_target` is the target of the transaction that it is part of, "" outside one. `asked_pool`
    is what the session asked for by SET or startup parameter, `default_pool` what its key carries; "" is
    neither. A comment in the text comes before both. A pool that the key can't have, or that doesn't exist,
    is as if not asked for.
    """
    asked = intent.pool if intent.pool and not intent.sets_pool else asked_pool or default_pool
    target = in_transaction_target or intent.target
    if not can_write and not is_admin:
        # It never gets another login. What may write in spite of it is refused by the server.
        reader = _READER_ASKED.get(asked)
        if reader is not None:
            return reader
        if asked == READONLY:
            return _readonly(intent)
        return _READ if target == READONLY else _READER_ON_PRIMARY
    if asked:
        if asked == READONLY:
            if not intent.needs_write and not intent.needs_admin:
                return _readonly(intent)
        elif asked == ADMIN:
            if is_admin:
                return _ASKED_ADMIN
        else:
            route = _ASKED.get(asked)
            if route is not None:
                return route
    if is_admin:
        return _ADMIN
    return _READ if target == READONLY else _WRITE


def _readonly(intent: Intent) -> Route:
    """Serve who asked for readonly, also with what isn't proven to read: the login can't write."""
    return _LISTEN_READONLY if intent.pin == "listen" else _ASKED_READONLY


def refusal(intent: Intent, can_write: bool, is_admin: bool) -> str:
    """Return the message with which the proxy refuses `intent` to such a key (42501), "" where it doesn't."""
    if intent.refused and (not is_admin or intent.refused_for_admin):
        return intent.refused
    if is_admin:
        return ""
    if intent.needs_admin:
        return "this needs an API key with the permission admin (" + intent.reason + ")"
    if intent.needs_write and not can_write:
        return "this needs an API key with a write permission (" + intent.reason + ")"
    return ""


def pool_problem(pool: str, is_admin: bool) -> str:
    """Return what is wrong with asking for `pool` by SET or startup parameter, "" where nothing is."""
    if pool and pool not in POOLS:
        return 'pool "' + pool + '" does not exist; there are ' + ", ".join(POOLS)
    if pool == ADMIN and not is_admin:
        return "pool admin needs an API key with the permission admin"
    return ""
