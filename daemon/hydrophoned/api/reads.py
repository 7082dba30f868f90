"""Blocking reads in a bounded pool of threads, so that a slow query never stops the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hydrophoned.api.errors import Unavailable

T = TypeVar("T")


class Reads:
    """Runs ``workers`` functions at a time; ``waiting`` more may wait, the next is refused (503)."""

    def __init__(self, *, workers: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="api read")
        self._most = workers + waiting
        self._held = 0

    async def run(self, function: Callable[[], T]) -> T:
        """The result of ``function()``, called in a thread; raises :class:`Unavailable` when too many wait."""
        if self._held >= self._most:
            raise Unavailable(f"{self._held} queries are in progress or wait; try again in a moment", name="busy")
        loop = asyncio.get_running_loop()
        self._held += 1
        future = self._pool.submit(function)
        # counted until the thread is done, even when the client has gone: it is the threads that are bounded
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release) if not loop.is_closed() else None)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Wait for the queries in progress; those that wait are given up."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    def _release(self) -> None:
        self._held -= 1
