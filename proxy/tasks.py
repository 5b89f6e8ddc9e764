"""Background tasks that are named, kept and whose failures are logged.

The event loop keeps weak references to tasks only, so a task that nobody holds may vanish in mid-work
(Python's documentation of asyncio.create_task).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)

_running: set[asyncio.Task[Any]] = set()


def spawn(work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    """Start `work` as a task called `name` and keep it until it ends.

    A failure is logged with its traceback; a cancellation is not a failure.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_finished)
    return task


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel `tasks` and wait until each has ended."""
    pending = [task for task in tasks if task is not None]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


def _finished(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (failure := task.exception()) is not None:
        log.error("task %s failed", task.get_name(), exc_info=failure)
