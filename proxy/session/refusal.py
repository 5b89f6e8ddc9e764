"""Reads that a replica refuses: what is taken for a read and isn't one, and what no standby does.

Views and operators hide functions that write, a standby has no unlogged tables, and it cancels what conflicts with its
recovery. Such a read is tried once more on the primary, and its text goes there from then on. Pure: which errors tell
that, of which statements, and what the access log says of where a statement went.
"""

from __future__ import annotations

from typing import Final

from proxy.observe.record import route_part
from proxy.query.intent import READ, Intent
from proxy.query.parameters import Profile
from proxy.query.route import REPLICA, Route
from proxy.session.unit import Message
from proxy.wire.reply import NOTHING, Reply

READ_ONLY: Final = b"25006"
NOT_SUPPORTED: Final = b"0A000"
DENIED: Final = b"42501"
RETRIED: Final = frozenset(
    {
        READ_ONLY,  # read_only_sql_transaction: it writes after all
        b"55000",  # object_not_in_prerequisite_state: "recovery is in progress"
        NOT_SUPPORTED,  # feature_not_supported: temporary or unlogged tables during recovery
        DENIED,  # insufficient_privilege: the login that reads may not what the one that writes may (nextval in a view)
        b"40001",  # serialization_failure: a conflict with recovery
    }
)
"""SQLSTATEs with which a standby, or a login that can't write, refuses what it isn't for."""

_CHOSEN: Final = "default_transaction_read_only"


def refutes(route: Route, intent: Intent, reply: Reply, profile: Profile) -> bool:
    """Tell whether an error of RETRIED shows that `intent`, which its own text sent to a replica, isn't for one.

    Not where the client chose to be read-only: by a pool, a transaction or a setting.
    """
    if not route.by_intent or route.host_role != REPLICA or intent.kind != READ or reply.in_transaction:
        return False
    return _CHOSEN not in profile.names


def sole_statement(kept: Message, tail: Reply | None) -> Intent | None:
    """Return the intent of the one statement of the unit that begins with `kept`; None where there are more.

    None too where more is owed behind the unit than its own answer, which ends with `tail`.
    """
    found: Intent | None = None
    last: Message | None = None
    message: Message | None = kept
    while message is not None:
        intent = message.intent
        if intent is None and message.statement is not None:
            intent = message.statement.intent
        if intent is not None:
            if found is not None and found is not intent:
                return None
            found = intent
        if message.kind != NOTHING:
            last = message
        message = message.following
    return found if last is tail and found is not None and found.statements == 1 else None


def where_part(route: Route, intent: Intent, in_transaction: bool) -> bytes:
    """Return target and reason of a statement as a part of its access record."""
    if route.by_intent and in_transaction:
        if not route.transaction_part:
            route.transaction_part = route_part(route.target, "part of a transaction")
        return route.transaction_part
    if route.by_intent and intent.target == route.target:
        if not intent.where_part:
            intent.where_part = route_part(route.target, intent.reason)
        return intent.where_part
    if not route.log_part:
        route.log_part = route_part(route.target, route.reason)
    return route.log_part
