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
"""

from __future__ import annotations

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
