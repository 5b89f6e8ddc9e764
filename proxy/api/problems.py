"""What an HTTP client is told when something is wrong: a status, a code, and words that tell nothing from inside.

The codes are those that clients of the wire protocol get, where they mean the same. PostgreSQL's own errors become a
status by their SQLSTATE (manual, appendix "PostgreSQL Error Codes").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from proxy.errors import (
    AddressNotAllowed,
    ClientError,
    ClientKilled,
    ConfigurationChanged,
    DatabaseDisabled,
    FeatureNotSupported,
    InsufficientPermissions,
    InvalidApiKey,
    InvalidParameter,
    KeyRevoked,
    MissingApiKey,
    NoPrimary,
    PoolExhausted,
    QueryCancelled,
    QueryTimeout,
    RateLimitExceeded,
    ShuttingDown,
    UnknownDatabase,
    UpstreamUnavailable,
)

VALIDATION: Final = "VALIDATION_ERROR"
EXECUTION: Final = "QUERY_EXECUTION_ERROR"
NOT_FOUND: Final = "NOT_FOUND"
CONFLICT: Final = "CONFLICT"
INTERNAL: Final = "INTERNAL_ERROR"

AGAIN: Final = 1
"""Seconds after which to try again where a server is away or busy: the health monitor looks that often."""

_OWN: Final[dict[str, tuple[type[ClientError], int]]] = {
    f"{kind.sqlstate} {kind.code}": (kind, status)
    for kind, status in (
        (MissingApiKey, 401),
        (InvalidApiKey, 401),
        (KeyRevoked, 401),
        (AddressNotAllowed, 403),
        (InsufficientPermissions, 403),
        (UnknownDatabase, 404),
        (RateLimitExceeded, 429),
        (FeatureNotSupported, 400),
        (PoolExhausted, 503),
        (UpstreamUnavailable, 503),
        (NoPrimary, 503),
        (ShuttingDown, 503),
        (ConfigurationChanged, 503),
        (ClientKilled, 503),
        (DatabaseDisabled, 503),
        (QueryTimeout, 504),
        (QueryCancelled, 504),
    )
}

# What PostgreSQL says, by SQLSTATE or, shorter, by its class. The longest that fits decides.
_SQLSTATES: Final[dict[str, tuple[int, str]]] = {
    "08": (503, UpstreamUnavailable.code),
    "08P01": (422, VALIDATION),
    "22": (422, VALIDATION),
    "23": (409, CONFLICT),
    "23502": (422, VALIDATION),
    "25006": (403, InsufficientPermissions.code),
    "28": (403, InsufficientPermissions.code),
    "3F000": (501, "SCHEMA_NOT_INSTALLED"),
    "40": (503, EXECUTION),
    "42501": (403, InsufficientPermissions.code),
    "42883": (501, "SCHEMA_NOT_INSTALLED"),
    "42P01": (501, "SCHEMA_NOT_INSTALLED"),
    "53": (503, PoolExhausted.code),
    "54": (422, VALIDATION),
    "55P03": (503, EXECUTION),
    "57014": (504, QueryTimeout.code),
    "57": (503, UpstreamUnavailable.code),
    "P0002": (404, NOT_FOUND),
}
# PostgreSQL's words on these are about what the client sent; on others they may be about the server.
_FOR_CLIENTS: Final = frozenset((400, 403, 404, 409, 422))

_MESSAGES: Final = {
    500: "the statement failed",
    501: "the database lacks the schema taskmaster, or a part of it: see `pgsluice migrate status`",
    503: "the database can't do that now; try again",
    504: "the statement took too long, and was cancelled",
}


class ApiError(Exception):
    """What is answered instead of a result. `detail` and `headers` are optional."""

    def __init__(
        self, status: int, code: str, message: str, detail: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail
        self.headers: dict[str, str] = dict(headers or {})
        if status == 401:
            self.headers.setdefault("www-authenticate", "Bearer")
        if status == 503:
            self.headers.setdefault("retry-after", str(AGAIN))

    def body(self) -> dict[str, object]:
        """Return what JSON shows of it."""
        return {"error": {"code": self.code, "message": self.message, "detail": self.detail}}


def limited(per_minute: int, wait: float) -> dict[str, str]:
    """Return the headers for who has to wait `wait` seconds (RFC 9110, and the draft of RateLimit header fields)."""
    seconds = str(max(1, math.ceil(wait)))
    headers = {"retry-after": seconds}
    if per_minute > 0:
        headers |= {
            "ratelimit-limit": str(per_minute),
            "ratelimit-remaining": "0",
            "ratelimit-reset": seconds,
        }
    return headers


def from_client_error(error: ClientError) -> ApiError:
    """Return what is told of an error that the proxy itself raised."""
    _, status = _OWN.get(f"{error.sqlstate} {error.code}", (None, 422 if _is_parameter(error) else 500))
    if status == 500:
        return ApiError(500, INTERNAL, "internal error")
    code = error.code or VALIDATION
    if status == 503:
        # Which host fails, and how, is for the operator.
        return ApiError(503, code, type(error).default_message)
    if isinstance(error, RateLimitExceeded):
        wait = error.extra.removeprefix("retry_after=").removesuffix("s")
        return ApiError(
            429, code, error.message, headers=limited(0, float(wait) if wait.isdecimal() else 1.0)
        )
    return ApiError(status, code, error.message, error.hint)


def _is_parameter(error: ClientError) -> bool:
    return isinstance(error, InvalidParameter)


def from_fields(fields: Mapping[str, str]) -> ApiError:
    """Return what is told of an ErrorResponse, by its fields: the proxy's own error, or PostgreSQL's."""
    state = fields.get("C", "XX000")
    own, _, _ = fields.get("D", "").partition(":")
    known = _OWN.get(f"{state} {own}")
    if known is not None:
        kind, status = known
        message = kind.default_message if status == 503 else fields.get("M", kind.default_message)
        return ApiError(status, kind.code, message, "" if status >= 500 else fields.get("H", ""))
    status, code = _status(state)
    message = fields.get("M", "") if status in _FOR_CLIENTS else _MESSAGES[status]
    detail = ". ".join(each for each in (f"SQLSTATE {state}", fields.get("H", "")) if each)
    return ApiError(status, code, message, detail)


def from_own_sql(fields: Mapping[str, str]) -> ApiError:
    """Return the same for SQL that the client wrote: it is the statement that is wrong, and it is told why."""
    found = from_fields(fields)
    if found.code not in (VALIDATION, CONFLICT, NOT_FOUND, EXECUTION, "SCHEMA_NOT_INSTALLED"):
        return found
    state = fields.get("C", "XX000")
    place = f"character {fields['P']}" if fields.get("P", "").isdecimal() else ""
    told = (f"SQLSTATE {state}", place, fields.get("D", ""), fields.get("H", ""))
    status = 409 if found.status == 409 else 503 if state.startswith("40") else 400
    return ApiError(status, EXECUTION, fields.get("M", ""), ". ".join(each for each in told if each))


def _status(state: str) -> tuple[int, str]:
    for known in (state, state[:2]):
        if known in _SQLSTATES:
            return _SQLSTATES[known]
    return 500, EXECUTION
