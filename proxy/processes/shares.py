"""Limits of the whole proxy, shared out over its workers; what is left over goes to the first ones."""

from __future__ import annotations

from proxy.config import Config, Database
from proxy.processes.inherited import Place


def share_of(config: Config, place: Place) -> Config:
    """Return `config` with the limits of one worker: its clients, and the connections of its pools."""
    if place.workers == 1:
        return config
    listen = config.listen.model_copy(update={"max_clients": share(config.listen.max_clients, place)})
    databases = {name: _database(database, place) for name, database in config.databases.items()}
    return config.model_copy(update={"listen": listen, "databases": databases})


def share(number: int, place: Place) -> int:
    """Return this worker's part of `number`; those of all are the number again."""
    return number // place.workers + (place.index < number % place.workers)


def _database(database: Database, place: Place) -> Database:
    pools = {
        name: pool.model_copy(update={"min": share(pool.min, place), "max": share(pool.max, place)})
        for name, pool in database.pools.items()
    }
    return database.model_copy(update={"pools": pools})
