"""What each answer of Cloudflare's is said to mean: the operator reads nothing else."""

from __future__ import annotations

import pytest

from proxy.tunnel.answers import refusal
from tests.edge.answers import ANSWERS

MEANT = [
    ("login", True, "the service token was not accepted (302)", "Service Auth"),
    ("login", False, "Access asks for a login in a browser (302)", "set service_token"),
    ("elsewhere", True, "a redirect to www.example.com (301)", "the tunnel's own hostname"),
    ("unauthorized", True, "the service token was not accepted (401)", "expired"),
    ("unauthorized", False, "Access refuses who has no service token (401)", "set service_token"),
    ("forbidden", True, "the service token was not accepted (403)", "Service Auth policy"),
    ("blocked", True, "blocks our User-Agent (403, error code 1010)", "Browser Integrity Check"),
    ("no-rule", True, "no ingress rule for this hostname (404)", "tcp://localhost:5432"),
    ("no-service", True, "no ingress rule for this hostname (503)", "tcp://localhost:5432"),
    ("no-postgres", True, "can't dial PostgreSQL behind it (502)", "whether PostgreSQL runs"),
    (
        "no-cloudflared",
        True,
        "no cloudflared is connected for this tunnel (530, error code 1033)",
        "start it",
    ),
    ("no-dns", True, "finds no way to the tunnel (530, error code 1016)", "cfargotunnel.com"),
    ("limited", True, "limits the rate of connections (429, error code 1015)", "rate limiting rule"),
    ("page", True, "something else than a tunnel to a TCP service answers there (200)", "service: tcp://"),
    ("broken", True, "Cloudflare has an error (520)", "may pass"),
]


@pytest.mark.parametrize(("name", "token", "what", "remedy"), MEANT)
def test_an_answer_is_told_with_what_to_do(name: str, token: bool, what: str, remedy: str) -> None:
    answer = ANSWERS[name]
    error = refusal(answer.status, answer.location, answer.body.encode(), token)
    assert what in error.what
    assert remedy in error.remedy
    assert str(error) == f"{error.what}: {error.remedy}"


def test_each_answer_has_its_row() -> None:
    assert {name for name, *_ in MEANT} == ANSWERS.keys()


@pytest.mark.parametrize(
    "body",
    [b"error code: 1033", b"Error 1033", b"<span>Error</span> <span>1033</span>", b"Error: 1033 Ray ID"],
)
def test_the_number_is_found_in_texts_and_pages(body: bytes) -> None:
    assert "1033" in refusal(530, "", body, True).what


def test_nothing_else_of_an_answer_is_repeated() -> None:
    told = str(refusal(302, "https://evil\n.example/s3cr3t", b"s3cr3t", True)) + str(
        refusal(418, "", b"error code: 99999 s3cr3t", True)
    )
    assert "s3cr3t" not in told and "\n" not in told and "99999" not in told
