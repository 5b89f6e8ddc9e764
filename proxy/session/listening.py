"""Hearing of what others do to one database: the primary notifies of changed keys, and of relations that were written.

Who listens at a primary that was replaced would hear nothing, and not know it: so this begins again with each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from proxy.auth.keystore import KeyStore
from proxy.errors import ClientError
from proxy.session.keeping import Keeping
from proxy.tasks import spawn, stop
from proxy.upstream.control import Control

_KEY_CHANNEL: Final = "sluice_keys"
_CACHE_CHANNEL: Final = "sluice_cache"

_RETRY: Final = 1.0
"""Seconds from an interruption until it is tried to listen again."""


class Listening:
    """Listens at the primary of the database `name`, for its keys and for the results that are kept."""

    def __init__(
        self, name: str, primary: Callable[[], Control], keys: KeyStore | None, keeping: Keeping
    ) -> None:
        """Begin with nothing; `primary` returns the primary's control connections, or raises NoPrimary.

        `keys` is None where they are not the database's.
        """
        self._name = name
        self._primary = primary
        self._keys = keys
        self._keeping = keeping
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Listen at the primary as it is reached now."""
        if self._keys is not None:
            self._tasks.append(spawn(self._hear_keys(self._keys), f"{self._name}: key changes"))
        self._tasks.append(spawn(self._hear_writes(), f"{self._name}: writes elsewhere"))

    def start_again(self) -> None:
        """Listen to this primary: the last one may live on, and tell nothing of what happens here.

        Every result is dropped, as what the last primary took may be lost. Before `start` that is all.
        """
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks and self._keys is not None:
            self._keys.changed_all()
        self._keeping.flush()
        if tasks:
            self.start()

    async def stop(self) -> None:
        """Listen no more, whoever becomes the primary."""
        tasks, self._tasks = self._tasks, []
        await stop(*tasks)

    async def _hear_keys(self, keys: KeyStore) -> None:
        """Hear of changed keys as they happen; after an interruption every cached key is read again.

        Also when it comes about: what was read before may have changed before anything was heard.
        """
        while True:
            with contextlib.suppress(ClientError):
                await self._primary().listen(_KEY_CHANNEL, keys.changed, keys.changed_all)
            await asyncio.sleep(_RETRY)
            keys.changed_all()

    async def _hear_writes(self) -> None:
        """Hear, while results are kept, of relations that were written elsewhere.

        Behind an interruption nothing is known of what happened meanwhile.
        """
        while True:
            if self._keeping.keeps:
                with contextlib.suppress(ClientError):
                    await self._primary().listen(_CACHE_CHANNEL, self._keeping.heard, self._keeping.flush)
                    self._keeping.flush()
            await asyncio.sleep(_RETRY)
