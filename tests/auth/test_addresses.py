from __future__ import annotations

import ipaddress

import pytest

from proxy.auth.addresses import allowed, networks


@pytest.mark.parametrize(
    ("address", "among", "expected"),
    [
        ("203.0.113.9", [], True),
        ("", [], True),
        ("203.0.113.9", ["203.0.113.0/24"], True),
        ("203.0.114.9", ["203.0.113.0/24"], False),
        ("203.0.113.9", ["203.0.113.9"], True),
        ("203.0.113.9", ["10.0.0.0/8", "203.0.113.8/31"], True),
        ("::ffff:203.0.113.9", ["203.0.113.0/24"], True),
        ("::ffff:203.0.113.9", ["::/0"], False),
        ("2001:db8::1", ["2001:db8::/32"], True),
        ("2001:db8::1", ["203.0.113.0/24"], False),
        ("fe80::1%eth0", ["fe80::/10"], True),
        ("", ["127.0.0.0/8"], True),
        ("", ["::1"], True),
        ("", ["203.0.113.0/24"], False),
        ("not an address", ["0.0.0.0/0"], False),
    ],
)
def test_allowed(address: str, among: list[str], expected: bool) -> None:
    assert allowed(address, networks(among)) is expected


def test_networks_take_text_and_networks() -> None:
    v4, v6 = ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128")
    assert networks(["10.0.0.0/8", v4, "::1", v6]) == [v4, v4, v6, v6]


@pytest.mark.parametrize("bad", ["10.0.0.1/8", "ten", "", None, "10.0.0.0/33"])
def test_rejects_what_is_no_network(bad: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        networks([bad])
