"""What can go wrong, as one tree of exceptions with the SQLSTATE and the code that clients are told.

    SluiceError
    ├── ConfigError (proxy.config)
    ├── ServerEnds                    a server's FATAL error; clients are told UpstreamUnavailable
    └── ClientError                   anything a client is told in an ErrorResponse
        ├── ProtocolViolation         08P01, always fatal
        ├── MissingApiKey             28000
        ├── TlsRequired               28000
        ├── InvalidApiKey             28P01  one message for unknown, wrong, expired and revoked
        ├── AddressNotAllowed         28000
        ├── InsufficientPermissions   42501
        ├── RateLimitExceeded         53400
        ├── PoolExhausted             53300
        ├── UpstreamUnavailable       08006
        │   └── HostUnavailable       08006  one host only: another may serve
        ├── NoPrimary                 57P03
        ├── QueryTimeout              57014
        ├── QueryCancelled            57014
        ├── IdleInTransaction         25P03
        ├── IdleSession               57P05
        ├── ShuttingDown              57P01
        ├── KeyRevoked                57P01
        ├── UnknownDatabase           3D000
        ├── DatabaseDisabled          55000
        ├── InvalidParameter          22023
        ├── FeatureNotSupported       0A000
        ├── ClientKilled              57P01  an administrator's KILL or KILL_CLIENT
        ├── ConfigurationChanged      57P01  what served the session is not in the configuration any more
        └── ConsoleError                     the admin console alone
            ├── UnknownCommand        42601
            ├── WrongState            55000
            ├── ReloadRefused         F0000
            └── CommandCancelled      57014

SQLSTATEs are those of the PostgreSQL manual, appendix "PostgreSQL Error Codes", so that drivers map them.
"""

from __future__ import annotations

import os
from typing import ClassVar


class SluiceError(Exception):
    """Base of every error that this program raises on purpose."""


def reason(error: OSError) -> str:
    """Return why the system refused, without the address that asyncio and socket put around it."""
    # The numbers of failed name lookups are negative, and os.strerror doesn't know them.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


class ClientError(SluiceError):
    """An error that a client is told.

    `message` says what to do; `hint` and `extra` are optional. `detail` puts the code first, because
    applications match on it.
    """

    sqlstate: ClassVar[str] = "XX000"
    code: ClassVar[str] = ""
    default_message: ClassVar[str] = "internal error"

    def __init__(self, message: str = "", *, extra: str = "", hint: str = "") -> None:
        self.message = message or self.default_message
        self.extra = extra
        self.hint = hint
        super().__init__(self.message)

    @property
    def detail(self) -> str:
        """Return the DETAIL field: the code, then what else is known."""
        return f"{self.code}: {self.extra}" if self.code and self.extra else self.code or self.extra


class ProtocolViolation(ClientError):
    """Bytes that the protocol does not allow; the connection ends with it."""

    sqlstate = "08P01"
    code = "PROTOCOL_VIOLATION"
    default_message = "protocol violation"


class ServerEnds(SluiceError):
    """A server's last words: a FATAL error, behind which it closes the connection."""


class MissingApiKey(ClientError):
    """A login without a user name or a password."""

    sqlstate = "28000"
    code = "MISSING_API_KEY"
    default_message = "an API key is needed: its id as user name, the whole key as password"


class TlsRequired(ClientError):
    """A login without TLS where `listen.tls.mode` is `require`."""

    sqlstate = "28000"
    code = "TLS_REQUIRED"
    default_message = "this server takes encrypted connections only: connect with sslmode=require or stricter"


class InvalidApiKey(ClientError):
    """A login with a key that is unknown, wrong, expired or revoked; clients are not told which."""

    sqlstate = "28P01"
    code = "INVALID_API_KEY"
    default_message = "API key rejected: it is unknown, wrong, expired or revoked"

    def __init__(self, why: str = "wrong") -> None:
        super().__init__()
        # For the log and the metrics: unknown, wrong, expired or revoked.
        self.why = why


class AddressNotAllowed(ClientError):
    """A login from an address that is not on the key's list."""

    sqlstate = "28000"
    code = "ADDRESS_NOT_ALLOWED"
    default_message = "this API key may not be used from this address"


class InsufficientPermissions(ClientError):
    """A statement that needs a permission that the key lacks."""

    sqlstate = "42501"
    code = "INSUFFICIENT_PERMISSIONS"
    default_message = "permission denied for this API key"


class RateLimitExceeded(ClientError):
    """More statements in a minute than the key allows; the connection stays usable."""

    sqlstate = "53400"
    code = "RATE_LIMIT_EXCEEDED"
    default_message = "rate limit of this API key exceeded"


class PoolExhausted(ClientError):
    """No server connection became free within acquire_timeout, or no more of them may be pinned."""

    sqlstate = "53300"
    code = "POOL_EXHAUSTED"
    default_message = "no server connection became free in time"


class UpstreamUnavailable(ClientError):
    """No host can serve the request."""

    sqlstate = "08006"
    code = "UPSTREAM_UNAVAILABLE"
    default_message = "the database cannot be reached"


class HostUnavailable(UpstreamUnavailable):
    """One host doesn't answer, or takes no connections now; another may serve, or the same one in a while."""


class NoPrimary(ClientError):
    """A write, and no primary within failover_wait."""

    sqlstate = "57P03"
    code = "NO_PRIMARY"
    default_message = "there is no primary to write to; try again"


class QueryTimeout(ClientError):
    """A statement ran longer than `timeouts.query` and was cancelled on the server too."""

    sqlstate = "57014"
    code = "QUERY_TIMEOUT"
    default_message = "canceling statement due to the proxy's query timeout"


class QueryCancelled(ClientError):
    """A cancel request arrived while the session still waited for a server connection."""

    sqlstate = "57014"
    code = "QUERY_CANCELED"
    default_message = "canceling statement due to user request"


class IdleInTransaction(ClientError):
    """A transaction stood idle longer than `timeouts.idle_in_transaction`."""

    sqlstate = "25P03"
    code = "IDLE_IN_TRANSACTION"
    default_message = "terminating connection due to idle-in-transaction timeout"


class IdleSession(ClientError):
    """A session asked nothing for longer than `timeouts.client_idle`."""

    sqlstate = "57P05"
    code = "CLIENT_IDLE"
    default_message = "terminating connection due to idle-session timeout"


class ShuttingDown(ClientError):
    """The proxy is draining."""

    sqlstate = "57P01"
    code = "SHUTTING_DOWN"
    default_message = "terminating connection because the proxy is shutting down"


class KeyRevoked(ClientError):
    """The session's key was revoked, or has expired, after its login."""

    sqlstate = "57P01"
    code = "INVALID_API_KEY"
    default_message = "terminating connection because its API key was revoked, has expired or was changed"


class UnknownDatabase(ClientError):
    """A database name that the configuration does not hold."""

    sqlstate = "3D000"
    code = "UNKNOWN_DATABASE"
    default_message = "database does not exist"


class InvalidParameter(ClientError):
    """A parameter whose value is not accepted, by a server or by the proxy."""

    sqlstate = "22023"


class FeatureNotSupported(ClientError):
    """Something that the proxy refuses because it cannot be carried."""

    sqlstate = "0A000"
    code = "FEATURE_NOT_SUPPORTED"
    default_message = "not supported through the proxy"


class DatabaseDisabled(ClientError):
    """A login to a database that DISABLE has closed to new clients."""

    sqlstate = "55000"
    code = "DATABASE_DISABLED"
    default_message = "the database takes no new connections: it was disabled on the admin console"


class ClientKilled(ClientError):
    """An administrator ended the session."""

    sqlstate = "57P01"
    code = "CLIENT_KILLED"
    default_message = "terminating connection due to administrator command"


class ConfigurationChanged(ClientError):
    """A reload took away what the session can't go on without: its database, or the connection that it keeps."""

    sqlstate = "57P01"
    code = "CONFIGURATION_CHANGED"
    default_message = "terminating connection because the proxy's configuration was changed"


class ConsoleError(ClientError):
    """What the admin console alone tells."""


class UnknownCommand(ConsoleError):
    """A text that is no command of the console."""

    sqlstate = "42601"
    code = "UNKNOWN_COMMAND"


class WrongState(ConsoleError):
    """A command that has no place now: RESUME of what is not paused."""

    sqlstate = "55000"
    code = "WRONG_STATE"


class ReloadRefused(ConsoleError):
    """A configuration that has errors: the old one stays."""

    sqlstate = "F0000"
    code = "RELOAD_REFUSED"
    default_message = "the configuration has errors, the old one stays"


class CommandCancelled(ConsoleError):
    """A command that waited, and was cancelled by its client."""

    sqlstate = "57014"
    code = "QUERY_CANCELED"
    default_message = "canceling command due to user request"
