from __future__ import annotations

import pytest

from proxy.api.problems import ApiError, from_client_error, from_fields, from_own_sql, limited
from proxy.errors import (
    ClientError,
    HostUnavailable,
    InsufficientPermissions,
    InvalidApiKey,
    InvalidParameter,
    NoPrimary,
    PoolExhausted,
    ProtocolViolation,
    RateLimitExceeded,
    UnknownDatabase,
)

INSIDE = "10.1.2.3:5432"


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ("23505", 409, "CONFLICT"),
        ("23503", 409, "CONFLICT"),
        ("23514", 409, "CONFLICT"),
        ("23502", 422, "VALIDATION_ERROR"),
        ("22P02", 422, "VALIDATION_ERROR"),
        ("22023", 422, "VALIDATION_ERROR"),
        ("54000", 422, "VALIDATION_ERROR"),
        ("42501", 403, "INSUFFICIENT_PERMISSIONS"),
        ("25006", 403, "INSUFFICIENT_PERMISSIONS"),
        ("P0002", 404, "NOT_FOUND"),
        ("57014", 504, "QUERY_TIMEOUT"),
        ("57P03", 503, "UPSTREAM_UNAVAILABLE"),
        ("08006", 503, "UPSTREAM_UNAVAILABLE"),
        ("53300", 503, "POOL_EXHAUSTED"),
        ("40001", 503, "QUERY_EXECUTION_ERROR"),
        ("55P03", 503, "QUERY_EXECUTION_ERROR"),
        ("3F000", 501, "SCHEMA_NOT_INSTALLED"),
        ("42P01", 501, "SCHEMA_NOT_INSTALLED"),
        ("42883", 501, "SCHEMA_NOT_INSTALLED"),
        ("42601", 500, "QUERY_EXECUTION_ERROR"),
        ("XX000", 500, "QUERY_EXECUTION_ERROR"),
        ("", 500, "QUERY_EXECUTION_ERROR"),
    ],
)
def test_a_sqlstate_has_a_status(state: str, status: int, code: str) -> None:
    found = from_fields({"C": state, "M": f"words about {INSIDE}", "D": f"more of {INSIDE}", "W": "a stack"})
    assert (found.status, found.code) == (status, code)
    told = str(found.body())
    assert "more of" not in told and "a stack" not in told
    if status >= 500:
        assert INSIDE not in told
    assert (found.headers.get("retry-after") == "1") == (status == 503)


@pytest.mark.parametrize(
    ("state", "detail", "status", "code"),
    [
        ("42501", "INSUFFICIENT_PERMISSIONS", 403, "INSUFFICIENT_PERMISSIONS"),
        ("53400", "RATE_LIMIT_EXCEEDED: limit=3 per minute", 429, "RATE_LIMIT_EXCEEDED"),
        ("08006", f"UPSTREAM_UNAVAILABLE: {INSIDE} is down", 503, "UPSTREAM_UNAVAILABLE"),
        ("57P03", "NO_PRIMARY", 503, "NO_PRIMARY"),
        ("53300", "POOL_EXHAUSTED: pool=primary size=2", 503, "POOL_EXHAUSTED"),
        ("57014", "QUERY_TIMEOUT: query_timeout=1s", 504, "QUERY_TIMEOUT"),
        ("57P01", "SHUTTING_DOWN", 503, "SHUTTING_DOWN"),
        ("57P01", "INVALID_API_KEY", 401, "INVALID_API_KEY"),
    ],
)
def test_the_proxys_own_errors_keep_their_code(state: str, detail: str, status: int, code: str) -> None:
    for told in (from_fields, from_own_sql):
        found = told({"C": state, "D": detail, "M": "why", "H": ""})
        assert (found.status, found.code) == (status, code)
        assert INSIDE not in str(found.body())


def test_a_detail_that_looks_like_a_code_is_none_with_another_sqlstate() -> None:
    assert from_fields({"C": "23505", "D": "NO_PRIMARY", "M": "x"}).status == 409


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidApiKey(), 401, "INVALID_API_KEY"),
        (InsufficientPermissions(), 403, "INSUFFICIENT_PERMISSIONS"),
        (UnknownDatabase(), 404, "UNKNOWN_DATABASE"),
        (HostUnavailable(INSIDE, extra=INSIDE), 503, "UPSTREAM_UNAVAILABLE"),
        (NoPrimary(), 503, "NO_PRIMARY"),
        (PoolExhausted("too many clients", extra="max_clients=1"), 503, "POOL_EXHAUSTED"),
        (InvalidParameter('pool "x" does not exist'), 422, "VALIDATION_ERROR"),
        (ProtocolViolation(INSIDE), 500, "INTERNAL_ERROR"),
    ],
)
def test_errors_that_are_raised_here_have_a_status(error: ClientError, status: int, code: str) -> None:
    found = from_client_error(error)
    assert (found.status, found.code) == (status, code)
    assert INSIDE not in str(found.body())
    assert (found.headers.get("www-authenticate") == "Bearer") == (status == 401)


def test_who_waits_is_told_how_long() -> None:
    found = from_client_error(RateLimitExceeded(extra="retry_after=6s"))
    assert (found.status, found.headers) == (429, {"retry-after": "6"})
    assert limited(60, 0.2) == {
        "retry-after": "1",
        "ratelimit-limit": "60",
        "ratelimit-remaining": "0",
        "ratelimit-reset": "1",
    }


@pytest.mark.parametrize(
    ("state", "status"), [("42601", 400), ("42P01", 400), ("22012", 400), ("P0001", 400), ("23505", 409)]
)
def test_an_administrators_sql_is_told_what_postgresql_says(state: str, status: int) -> None:
    fields = {
        "C": state,
        "M": "no such thing",
        "P": "15",
        "D": "in detail",
        "H": "try another",
        "W": "inside",
    }
    found = from_own_sql(fields)
    assert (found.status, found.code, found.message) == (status, "QUERY_EXECUTION_ERROR", "no such thing")
    assert found.detail == f"SQLSTATE {state}. character 15. in detail. try another"


def test_an_error_has_three_fields() -> None:
    body = ApiError(404, "NOT_FOUND", "nothing there").body()
    assert body == {"error": {"code": "NOT_FOUND", "message": "nothing there", "detail": ""}}
