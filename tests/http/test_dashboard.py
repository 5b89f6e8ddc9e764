from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from proxy.http.access import Access
from proxy.http.app import make_app, with_security_headers
from proxy.http.dashboard import FILES, Dashboard
from tests.http.test_access import KEYS, World, key, whole

PAGES = ["/", *(f"/static/{path.name}" for path in sorted(FILES.iterdir()))]


class Told:
    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], int]] = []

    def __call__(self, database: str, known: Sequence[str], since: int) -> dict[str, object]:
        self.asked.append((database, list(known), since))
        return {"database": database}


async def render(accept: str) -> tuple[bytes, str]:
    return b"", "text/plain"


def opened(access: Access, told: Told, address: str = "127.0.0.1") -> httpx.AsyncClient:
    app = with_security_headers(make_app(render, lambda: True, dict, Dashboard(access, told)))
    transport = httpx.ASGITransport(app, client=(address, 50_000))
    return httpx.AsyncClient(base_url="http://proxy", transport=transport)


@pytest.fixture
def world() -> World:
    return World({"app": KEYS, "other": [key("admin", "admin")]})


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def client(world: World, told: Told) -> AsyncIterator[httpx.AsyncClient]:
    async with opened(world.access(), told) as running:
        yield running


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


@pytest.mark.parametrize("path", PAGES)
async def test_each_file_is_served_and_may_load_nothing_from_elsewhere(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    name = path.rpartition("/")[2] or "dashboard.html"
    assert answer.content == (FILES / name).read_bytes()
    policy = answer.headers["content-security-policy"]
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for rule in ("script-src", "style-src", "img-src", "connect-src"):
        assert rules.pop(rule) == "'self'"
    for rule in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert rules[rule] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "path", ["/static/", "/static/x.js", "/static/..%2fapp.py", "/static/../app.py", "/static/app.py"]
)
async def test_no_other_file_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("path", sorted(FILES.iterdir()), ids=lambda path: str(path.name))
def test_no_file_names_another_place(path: Any) -> None:
    text = path.read_text()
    # The one URL is the name of a namespace, which nobody fetches.
    assert set(re.findall(r"\w+://[^\s\"'<>)]+|(?<=[\"'(])//[^\s\"'<>)]+", text)) <= {
        "http://www.w3.org/2000/svg"
    }
    assert not re.search(r"@import|url\(", text)


@pytest.mark.parametrize("path", sorted(FILES.glob("*.html")), ids=lambda path: str(path.name))
def test_the_page_has_nothing_inline_and_only_files_that_are_there(path: Any) -> None:
    text = path.read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", text)
    found = re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    assert found and all(each in PAGES for each in found)


@pytest.mark.parametrize("path", sorted(FILES.glob("*.js")), ids=lambda path: str(path.name))
def test_no_script_makes_markup_or_code_of_text(path: Any) -> None:
    text = path.read_text()
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    assert not re.search(rf"{markup}|\beval\b|new Function", text)
    assert not re.search(r"document\.cookie|localStorage\.setItem\((?!\"pgsluice-theme\")", text)


async def test_the_page_needs_no_key_and_tells_nothing(client: httpx.AsyncClient, told: Told) -> None:
    assert (await client.get("/")).status_code == 200
    assert told.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        bearer(whole("admin")),
        {"authorization": f"bearer  {whole('admin')} "},
        {"x-api-key": whole("admin")},
    ],
)
async def test_a_key_comes_in_a_header(
    client: httpx.AsyncClient, headers: dict[str, str], told: Told
) -> None:
    answer = await client.get("/api/status", headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"database": "app"})
    assert told.asked == [("app", ["app", "other"], 0)]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "MISSING_API_KEY"),
        ({"authorization": "Basic YTpi"}, 401, "MISSING_API_KEY"),
        (bearer(""), 401, "MISSING_API_KEY"),
        (bearer("x"), 401, "INVALID_API_KEY"),
        (bearer("\u00fc" * 50), 401, "INVALID_API_KEY"),
        (bearer(whole("admin") + "x"), 401, "INVALID_API_KEY"),
        (bearer(whole("revoked")), 401, "INVALID_API_KEY"),
        (bearer(whole("expired")), 401, "INVALID_API_KEY"),
        (bearer(whole("writer")), 403, "INSUFFICIENT_PERMISSIONS"),
        (bearer(whole("elsewhere")), 403, "ADDRESS_NOT_ALLOWED"),
    ],
)
async def test_others_are_told_why_not(
    client: httpx.AsyncClient, headers: dict[str, str], status: int, code: str, told: Told
) -> None:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = await client.get("/api/status", headers=encoded)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert error.keys() == {"code", "message", "detail"}
    assert error["message"]
    assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert told.asked == []


async def test_a_key_in_the_url_is_not_taken(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/status", params={"key": whole("admin"), "api_key": whole("admin")})
    assert answer.status_code == 401


async def test_the_address_is_the_peers_whatever_a_header_says(world: World, told: Told) -> None:
    async with opened(world.access(), told, "192.0.2.9") as client:
        forwarded = {**bearer(whole("here")), "x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1"}
        assert (await client.get("/api/status", headers=forwarded)).status_code == 403
        assert (await client.get("/api/status", headers=bearer(whole("elsewhere")))).status_code == 200


async def test_too_many_failures_are_told_when_to_come_again(client: httpx.AsyncClient) -> None:
    for _ in range(10):
        await client.get("/api/status", headers=bearer("x"))
    answer = await client.get("/api/status", headers=bearer("x"))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "6")
    assert answer.json()["error"]["code"] == "RATE_LIMIT_EXCEEDED"


async def test_keys_that_cannot_be_read_are_told_without_the_host(
    world: World, client: httpx.AsyncClient
) -> None:
    world.away = {"app", "other"}
    answer = await client.get("/api/status", headers=bearer(whole("admin")))
    assert answer.status_code == 503
    assert answer.json()["error"]["detail"] == ""


async def test_a_database_is_chosen_among_those_of_the_key(client: httpx.AsyncClient, told: Told) -> None:
    path = "/api/status?database=other&since=17"
    assert (await client.get(path, headers=bearer(whole("admin")))).json() == {"database": "other"}
    answer = await client.get(path, headers=bearer(whole("metrics")))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "UNKNOWN_DATABASE")
    assert told.asked == [("other", ["app", "other"], 17)]


@pytest.mark.parametrize("since", ["", "-1", "x", "9" * 100, "1.5"])
async def test_what_is_no_number_of_a_sample_asks_for_all(
    client: httpx.AsyncClient, since: str, told: Told
) -> None:
    await client.get("/api/status", params={"since": since}, headers=bearer(whole("admin")))
    assert told.asked[0][2] == 0
