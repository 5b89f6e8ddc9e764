"""What one SQL text means to the proxy."""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from proxy.query.fingerprint import fingerprint_of

READ: Final = "read"
TRANSACTION: Final = "transaction"
SESSION: Final = "session"
UNKNOWN: Final = "unknown"
WRITE: Final = "write"
DDL: Final = "ddl"

READONLY: Final = "readonly"
PRIMARY: Final = "primary"


@final
class Intent:
    """Facts about one SQL text, which is one unit to PostgreSQL however many statements it holds.

    Shared by every session that sends the text, or another that differs in literals alone. Immutable, but for
    the parts of access records, what `refuted` changes, and what is only worked out when it is asked for.
    """

    def __init__(
        self,
        kind: str,
        target: str,
        reason: str,
        statements: i64,
        begins: str,
        ends: bool,
        pool: str,
        sets_pool: bool,
        settings: tuple[str, ...],
        resets: tuple[str, ...],
        local_settings: tuple[str, ...],
        shows_pool: bool,
        pin: str,
        pins: tuple[str, ...],
        unpins: tuple[str, ...],
        unclean: str,
        lasting: bool,
        refused: str,
        refused_for_admin: bool,
        needs_write: bool,
        needs_admin: bool,
        prepares: str,
        executes: str,
        deallocates: str,
        literal_dependent: bool,
        relations: tuple[str, ...],
        unseen: bool,
        steady: bool,
        cache_hint: float,
        parsed: bool,
        source: bytes,
        normalized: str,
    ) -> None:
        # The strongest of the statements, in the order of the constants above.
        self.kind: Final = kind
        # What the text deserves by itself, outside a transaction: "readonly" or "primary".
        self.target = target
        # Short, for people: "plain SELECT", "calls nextval".
        self.reason = reason
        # 0 for a text without any.
        self.statements: Final = statements
        # "read write" or "read only" where the text leaves a transaction open that it began.
        self.begins: Final = begins
        # The text holds COMMIT, ROLLBACK, END, ABORT or PREPARE TRANSACTION.
        self.ends: Final = ends
        # The pool asked for by a comment or by SET sluice.pool; any text that the client chose.
        self.pool: Final = pool
        # The text is one SET or RESET of sluice.pool.
        self.sets_pool: Final = sets_pool
        # Parameters, in lower case, that change beyond the transaction; "all" for RESET ALL and DISCARD ALL.
        self.settings: Final = settings
        # Those of them that may be given back the value that they had at the start; "all" too.
        self.resets: Final = resets
        # Parameters on which the meaning of literals depends, that change for the transaction alone.
        self.local_settings: Final = local_settings
        # It asks for the value of sluice.pool, which no server knows unless it was set.
        self.shows_pool: Final = shows_pool
        # Why the session must keep its server connection, "" where it needn't.
        self.pin: Final = pin
        # All the reasons for that, the one above first.
        self.pins: Final = pins
        # Reasons for a pin that the text takes away; "all" for DISCARD ALL.
        self.unpins: Final = unpins
        # Why the connection must be reset before another session uses it, "" where it needn't.
        self.unclean: Final = unclean
        # What the text leaves behind outlives DISCARD ALL: the connection is closed, not reset.
        self.lasting: Final = lasting
        # The message with which the proxy refuses the text to all but admin keys, or to them too.
        self.refused: Final = refused
        self.refused_for_admin: Final = refused_for_admin
        # It writes for certain. Calls of functions that only may write leave this False: the servers decide.
        self.needs_write: Final = needs_write
        # DDL or DO.
        self.needs_admin: Final = needs_admin
        # Names in SQL-level PREPARE, EXECUTE and DEALLOCATE ("all" for DEALLOCATE ALL), as the parser folds
        # them.
        self.prepares: Final = prepares
        self.executes: Final = executes
        self.deallocates: Final = deallocates
        # Another text that differs in literals alone may mean something else.
        self.literal_dependent: Final = literal_dependent
        # Names, without their schemas, of the relations that it reads or changes, as far as the text tells.
        self.relations: Final = relations
        # It may change relations that it doesn't name.
        self.unseen = unseen
        # It may change what others read. Also learned of what was taken for a read, see `refuted`.
        self.changes: bool = kind in (WRITE, DDL, UNKNOWN) and (unseen or len(relations) > 0)
        # One SELECT from relations whose answer stays the same while these do, so that it may be kept: its
        # functions are immutable or stable, and not about the server or its connection.
        self.cacheable: Final = (
            kind == READ
            and target == READONLY
            and statements == 1
            and steady
            and not (pin or unpins or unclean or settings or local_settings or shows_pool or refused)
            and len(relations) > 0
        )
        # Seconds for which a comment wants its answer kept; 0.0, NO_HINT and CACHE_ON (facts) beside.
        self.cache_hint: Final = cache_hint
        # The text with each literal as $n, or "<not parsed: N bytes, sha256 16-hex>".
        self.normalized: Final = normalized
        # The text has names of prepared statements in it.
        self.names: Final = bool(prepares or executes or deallocates)
        # RESET ALL or DISCARD ALL: the identity goes with everything else.
        self.sweeps: Final = unclean == "RESET ALL" or unclean == "DISCARD ALL"
        # The session has something to do for it before it runs.
        self.special: Final = bool(pin or unpins or unclean or settings or local_settings or shows_pool)
        # What the fingerprint is taken of; b"" where that is `normalized`, or where the text wasn't parsed.
        self._parsed: Final = parsed
        self._source: Final = source
        self._fingerprint = ""
        # Bytes that it takes more than any other, roughly.
        self.size: Final[i64] = len(source) + len(normalized)
        # What every access record of this text shares, encoded; filled by the access log.
        self.log_part: bytes = b""
        # Target and reason, encoded, where the text itself decides.
        self.where_part: bytes = b""

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits that all texts share which differ in literals alone; "" where it wasn't parsed.

        It is libpg_query's, but for long texts. Only the access log asks, and it takes as long as parsing.
        """
        if self._parsed and not self._fingerprint:
            self._fingerprint = fingerprint_of(self._source, self.normalized)
        return self._fingerprint

    def refuted(self, sqlstate: str) -> None:
        """Learn that a replica, or a login that can't write, refused what was taken for a read: the primary is next."""
        self.target = PRIMARY
        self.changes = True
        self.unseen = True
        self.reason = "refused as a read before (" + sqlstate + ")"
        self.where_part = b""
