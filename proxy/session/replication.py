"""Replication connections (`replication=…` in the startup message), which are refused, of any key.

What a walsender sends is held to no user: physical replication copies the whole cluster, and logical decoding, whose
plugin the client names, every row of the database. Both pass by row-level security, and both hand out the keys that
sign identities, by which their reader could be anybody. So no pool's login has the attribute REPLICATION, and none
is made to have it here.
"""

from __future__ import annotations

from typing import Final

from proxy.errors import FeatureNotSupported, InvalidParameter

_YES: Final = ("true", "yes", "on", "1")
_NO: Final = ("false", "no", "off", "0")


def check_replication(value: str) -> None:
    """Do nothing where `value` asks for an ordinary connection.

    Raises FeatureNotSupported where it asks for replication, and InvalidParameter for what PostgreSQL takes for
    neither: like there a beginning of a word will do (manual, "Streaming Replication Protocol").
    """
    if value == "database" or _is_one_of(value, _YES):
        raise FeatureNotSupported(
            "replication connections are not served through the proxy",
            hint="They pass by row-level security: connect to PostgreSQL itself, as a role with REPLICATION.",
        )
    if not _is_one_of(value, _NO):
        raise InvalidParameter(
            f'invalid value for parameter "replication": "{value}"',
            hint='Valid values are: "false", 0, "true", 1, "database".',
        )


def _is_one_of(value: str, words: tuple[str, ...]) -> bool:
    said = value.lower()
    # "o" alone is neither on nor off.
    return said not in ("", "o") and any(word.startswith(said) for word in words)
