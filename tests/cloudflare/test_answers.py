"""What may be answered: nothing that could mean something else in a file."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.cloudflare import answers
from proxy.errors import SluiceError

CHECKS: dict[str, Callable[[str], object]] = {
    "hostname": lambda text: answers.hostname("--zone", text),
    "route": answers.route,
    "http_service": answers.http_service,
    "identifier": lambda text: answers.identifier("--zone-id", text),
    "audience": answers.audience,
    "tunnel_id": answers.tunnel_id,
    "team_name": answers.team_name,
    "tunnel_name": answers.tunnel_name,
    "image": lambda text: answers.image("--image", text),
    "namespace": answers.namespace,
    "server_tls": answers.server_tls,
    "kinds": answers.kinds,
}
HOSTILE = (
    'db.example.com"',
    "db.example.com'",
    "${file(1)}.example.com",
    "db.example.com\nx: y",
    "db.example.com\n",
    "%{if}.example.com",
    "db.example.com: x",
    "*.example.com",
    "db..example.com",
    "-db.example.com",
    "db.example.com # x",
    "db_1.example.com",
    "dä.example.com",
    "db.example.com/path",
    "a" * 64 + ".example.com",
    "a." * 127 + "example.com",
    "&a.example.com",
    "!x.example.com",
    "",
)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "db.example.com\n"])
def test_a_hostile_hostname_is_refused(text: str) -> None:
    with pytest.raises(SluiceError, match="--hostname: a full host name is needed"):
        answers.route(text)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@settings(deadline=None)
@given(st.text(st.sampled_from("aA0.-_:/=@{}$%\"'\\\n\r\t #&*!|>[]\u2028,`~\x00ü"), max_size=20))
@example("a\n")
@example("null")
@example("\u0130")
def test_what_is_taken_needs_no_escaping(check: Callable[[str], object], text: str) -> None:
    try:
        taken = check(text)
    except SluiceError as error:
        assert str(error).startswith("--")
        return
    words = [str(part) for part in taken] if isinstance(taken, tuple) else [str(taken)]
    for word in words:
        assert word.isascii() and not set(word) & set("\"'\\${}%\n\r\t #&*!|>`~,\x00"), word


def test_what_is_taken() -> None:
    assert answers.route("DB.Example.com.") == ("db.example.com", "localhost", 5432)
    assert answers.route("db.example.com=[::1]:6000").service == "tcp://[::1]:6000"
    assert answers.http_service("http://proxy:9432") == "http://proxy:9432"
    assert answers.team_name("Example.cloudflareaccess.com") == "example"
    assert answers.kinds("systemd, config") == ("config", "systemd")
    digest = f"registry.example.com:5000/team/pgsluice:0.1.0@sha256:{'a' * 64}"
    assert answers.image("--image", digest) == digest


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:0", "localhost:65536", ":5432", "a b:1", "[::1]"]
)
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(SluiceError, match="HOST:PORT"):
        answers.route(f"db.example.com={address}")


def test_answers_have_to_go_together() -> None:
    route = answers.route("db.example.com")
    page = answers.Page("db.example.com", "")
    with pytest.raises(SluiceError, match=r"db\.example\.com comes twice"):
        answers.consistent(answers.Answers(("config",), (route,), (page,)))
    with pytest.raises(SluiceError, match=r"--zone: db\.example\.com is not in ample\.com"):
        answers.consistent(answers.Answers(("config",), (route,), zone="ample.com"))
    answers.consistent(answers.Answers(("config",), (route,), zone="example.com"))
