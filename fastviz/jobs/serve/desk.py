"""One thread that has the device: requests run one after the other, and what is outdated ends at its next step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Desk", "Order", "Outdated"]

Event = dict[str, Any]


class Outdated(Exception):  # noqa: N818 - it is no error
    """Nobody waits for the rest any more."""


class Order:
    """A request on its way: where its results go, and whether they are still wanted."""

    def __init__(self, put: Callable[[Event], object]) -> None:
        self._put = put
        self._outdated = threading.Event()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._outdated.set()

    def check(self) -> None:
        """Raise :class:`Outdated` if nobody waits for it any more."""
        if self._outdated.is_set():
            raise Outdated

    def emit(self, event: Event) -> None:
        """Give a result to whoever waits.

        Raises:
            Outdated: nobody does.
        """
        self.check()
        self._put(event)


class Desk:
    """Runs work in its one thread, in the order in which it comes."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastviz-device")
        self._latest: dict[str, Order] = {}

    async def events(self, client: str, work: Callable[[Order], None]) -> AsyncIterator[Event]:
        """What ``work`` emits, as it comes. An older order of the same client is outdated, and so is one left early.

        Args:
            client: whose order it is.
            work: runs in the thread.

        Raises:
            Exception: what ``work`` raised.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        order = Order(lambda event: loop.call_soon_threadsafe(queue.put_nowait, event))
        if client in self._latest:
            self._latest[client].cancel()
        self._latest[client] = order

        def run() -> None:
            try:
                order.check()
                work(order)
            except Outdated:
                pass
            finally:
                loop.call_soon_threadsafe(queue.put_nowait, None)

        future = loop.run_in_executor(self._pool, run)
        try:
            while (event := await queue.get()) is not None:
                yield event
            await future
        finally:
            order.cancel()
            if self._latest.get(client) is order:
                del self._latest[client]

    def close(self) -> None:
        """Outdate all that runs or waits."""
        for order in list(self._latest.values()):
            order.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
