"""Keys from a YAML file, for a database that holds none of the bundled SQL.

The file is a list; each entry has the columns of sluice.api_keys:

    - id: ctm_ab12cd34ef56
      name: reports                     # optional, as is all below but secret_sha256
      user_id: user@company.com
      permissions: ["read:tasks"]
      secret_sha256: 64 hexadecimal digits, of the part behind the second underscore
      scram_verifier: SCRAM-SHA-256$4096:...
      default_pool: background
      allowed_addresses: [10.0.0.0/8]
      rate_limit_per_minute: 600
      expires_at: 2027-01-01T00:00:00Z
      revoked_at: null
      result_cache: true
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import string
from pathlib import Path

import yaml

from proxy.auth.key import Key

_COLUMNS = (
    "id",
    "name",
    "user_id",
    "permissions",
    "secret_sha256",
    "scram_verifier",
    "default_pool",
    "allowed_addresses",
    "rate_limit_per_minute",
    "expires_at",
    "revoked_at",
    "result_cache",
)


def read_keys(text: str) -> dict[str, Key]:
    """Return the keys in `text` by id. Raises ValueError with what is wrong with the first bad entry."""
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise ValueError("a list of keys is needed")
    keys: dict[str, Key] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError("each key is a mapping of its columns")
        if unknown := [str(column) for column in entry if column not in _COLUMNS]:
            raise ValueError(f"key {entry.get('id')}: unknown: {', '.join(unknown)}")
        key = Key.from_row({column: entry.get(column) for column in _COLUMNS})
        if key.id in keys:
            raise ValueError(f"key {key.id} is there twice")
        keys[key.id] = key
    return keys


def append_key(path: Path, **columns: object) -> dict[str, object]:
    """Make a key with `columns`, add it to the file and return them, with the whole key as `api_key`.

    A file that is made here is its owner's alone. Raises ValueError for what a column can't hold, OSError.
    """
    key_id = "ctm_" + "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(12))
    secret = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))
    whole = f"{key_id}_{secret}"
    entry: dict[str, object] = {
        "id": key_id,
        **{column: value for column, value in columns.items() if value is not None},
        "secret_sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "scram_verifier": scram_verifier(whole, secrets.token_bytes(16)),
    }
    text = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    read_keys(text)
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8"
    ) as file:
        file.write(text)
    return {"id": key_id, "api_key": whole, **columns}


def scram_verifier(password: str, salt: bytes, iterations: int = 4096) -> str:
    """Return what PostgreSQL would keep of an ASCII password (RFC 5802, section 3; RFC 7677)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"
