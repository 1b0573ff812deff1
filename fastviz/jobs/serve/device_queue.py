"""One thread that uses the device: requests run one after the other, and cancelled ones end at their next step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Cancelled", "DeviceQueue", "Task"]

Event = dict[str, Any]


class Cancelled(Exception):  # noqa: N818 - it is no error
    """Raised in a task whose results are no longer wanted."""


class Task:
    """A running or waiting request: receives its results, and knows whether they are still wanted."""

    def __init__(self, put: Callable[[Event], object]) -> None:
        self._put = put
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Make the next :meth:`check` or :meth:`emit` raise."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise :class:`Cancelled` if the results are no longer wanted."""
        if self._cancelled.is_set():
            raise Cancelled

    def emit(self, event: Event) -> None:
        """Send a result to the client.

        Raises:
            Cancelled: the results are no longer wanted.
        """
        self.check()
        self._put(event)


class DeviceQueue:
    """Runs work in a single thread, in the order of arrival."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastviz-device")
        self._latest: dict[str, Task] = {}

    async def events(self, client: str, work: Callable[[Task], None]) -> AsyncIterator[Event]:
        """The events that ``work`` emits, as they come. A newer task cancels an older one of the same client, and so
        does closing the iterator.

        Args:
            client: name of the client.
            work: the function to run in the thread.

        Raises:
            Exception: any error of ``work``.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        task = Task(lambda event: loop.call_soon_threadsafe(queue.put_nowait, event))
        if client in self._latest:
            self._latest[client].cancel()
        self._latest[client] = task

        def run() -> None:
            try:
                task.check()
                work(task)
            except Cancelled:
                pass
            finally:
                loop.call_soon_threadsafe(queue.put_nowait, None)

        future = loop.run_in_executor(self._pool, run)
        try:
            while (event := await queue.get()) is not None:
                yield event
            await future
        finally:
            task.cancel()
            if self._latest.get(client) is task:
                del self._latest[client]

    def close(self) -> None:
        """Cancel all tasks."""
        for task in list(self._latest.values()):
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
