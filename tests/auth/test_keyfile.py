from __future__ import annotations

import pytest

from proxy.auth.keyfile import read_keys

SOUND = f"""
- id: ctm_ab12cd34ef56
  user_id: user@company.com
  permissions: ["read:tasks"]
  secret_sha256: {"ab" * 32}
  expires_at: 2027-01-01T00:00:00Z
- id: ctm_000000000000
  name: reports
  user_id: other
  secret_sha256: {"cd" * 32}
  allowed_addresses: [10.0.0.0/8]
  rate_limit_per_minute: 60
"""


def test_reads_keys_by_id() -> None:
    keys = read_keys(SOUND)
    assert list(keys) == ["ctm_ab12cd34ef56", "ctm_000000000000"]
    assert keys["ctm_ab12cd34ef56"].expires_at == 1798761600.0
    assert keys["ctm_000000000000"].rate_limit_per_minute == 60
    assert keys["ctm_000000000000"].allows("10.0.0.1")


@pytest.mark.parametrize("text", ["", "[]", "# none yet\n"])
def test_a_file_may_hold_no_keys(text: str) -> None:
    assert read_keys(text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("a: b", "a list of keys is needed"),
        ("- x", "a mapping of its columns"),
        ("- {id: ctm_ab12cd34ef56, secret: x}", "unknown: secret"),
        ("- {id: app}", "key app: an id is ctm_"),
        ("- {id: ctm_ab12cd34ef56}", "secret_sha256"),
        (SOUND + SOUND.lstrip(), "is there twice"),
        ("- !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_rejects(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_keys(text)
