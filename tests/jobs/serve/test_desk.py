"""One thread has the device; what is outdated ends at its next step."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fastviz.jobs.serve.desk import Desk


async def gathered(desk: Desk, client: str, work) -> list[dict]:
    return [event async for event in desk.events(client, work)]


def test_events_come_in_order_and_one_after_the_other():
    desk, running, most = Desk(), [0], [0]

    def work(order):
        running[0] += 1
        most[0] = max(most[0], running[0])
        for number in range(50):
            order.emit({"number": number})
        running[0] -= 1

    async def both():
        return await asyncio.gather(gathered(desk, "a", work), gathered(desk, "b", work))

    for events in asyncio.run(both()):
        assert [event["number"] for event in events] == list(range(50))
    assert most == [1]


def test_a_newer_order_of_a_client_outdates_the_older():
    desk, begun, go, steps = Desk(), threading.Event(), threading.Event(), []

    def long(order):
        order.emit({"step": 0})
        begun.set()
        go.wait(10)
        for number in range(1, 100):
            order.emit({"step": number})
            steps.append(number)

    def short(order):
        order.emit({"step": "new"})

    async def both():
        older = asyncio.create_task(gathered(desk, "a", long))
        await asyncio.to_thread(begun.wait, 10)
        newer = asyncio.create_task(gathered(desk, "a", short))
        await asyncio.sleep(0.05)
        go.set()
        return await older, await newer

    older, newer = asyncio.run(both())
    assert older == [{"step": 0}]
    assert newer == [{"step": "new"}]
    assert steps == []


def test_who_leaves_ends_the_work():
    desk, ended = Desk(), threading.Event()

    def endless(order):
        try:
            while True:
                order.emit({})
        finally:
            ended.set()

    async def leave():
        events = desk.events("a", endless)
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert ended.wait(10)


def test_an_error_of_the_work_is_raised():
    def work(order):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(gathered(Desk(), "a", work))
