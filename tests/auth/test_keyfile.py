from __future__ import annotations

import base64
import hmac
from pathlib import Path

import pytest

from proxy.auth.keyfile import append_key, read_keys, scram_verifier

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


def test_a_verifier_is_what_postgresql_would_keep() -> None:
    # ALTER ROLE … PASSWORD 'pencil' with this salt, as RFC 7677 has it in its example.
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    verifier = scram_verifier("pencil", salt)
    assert verifier.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    stored, server = verifier.rpartition("$")[2].split(":")
    assert (len(base64.b64decode(stored)), len(base64.b64decode(server))) == (32, 32)
    # The signature that the RFC's server answers with follows from the server key.
    exchange = (
        "n=user,r=rOprNGfwEbeRWgbNEkqO,"
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    signature = hmac.digest(base64.b64decode(server), exchange.encode(), "sha256")
    assert base64.b64encode(signature) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_a_file_of_keys_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    made = [append_key(path, user_id="ann", permissions=["admin"]) for _ in range(2)]
    assert path.stat().st_mode & 0o777 == 0o600
    keys = read_keys(path.read_text())
    assert list(keys) == [each["id"] for each in made]
    assert keys[str(made[0]["id"])].verify_secret(str(made[0]["api_key"]))
