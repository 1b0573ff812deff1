"""One thread uses the device; cancelled tasks end at their next step."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fastviz.jobs.serve.device_queue import DeviceQueue


async def gathered(queue: DeviceQueue, client: str, work) -> list[dict]:
    return [event async for event in queue.events(client, work)]


def test_events_come_in_order_and_one_after_the_other():
    queue, running, most = DeviceQueue(), [0], [0]

    def work(task):
        running[0] += 1
        most[0] = max(most[0], running[0])
        for number in range(50):
            task.emit({"number": number})
        running[0] -= 1

    async def both():
        return await asyncio.gather(gathered(queue, "a", work), gathered(queue, "b", work))

    for events in asyncio.run(both()):
        assert [event["number"] for event in events] == list(range(50))
    assert most == [1]


def test_a_newer_task_of_a_client_cancels_the_older():
    queue, begun, go, steps = DeviceQueue(), threading.Event(), threading.Event(), []

    def long(task):
        task.emit({"step": 0})
        begun.set()
        go.wait(10)
        for number in range(1, 100):
            task.emit({"step": number})
            steps.append(number)

    def short(task):
        task.emit({"step": "new"})

    async def both():
        older = asyncio.create_task(gathered(queue, "a", long))
        await asyncio.to_thread(begun.wait, 10)
        newer = asyncio.create_task(gathered(queue, "a", short))
        await asyncio.sleep(0.05)
        go.set()
        return await older, await newer

    older, newer = asyncio.run(both())
    assert older == [{"step": 0}]
    assert newer == [{"step": "new"}]
    assert steps == []


def test_closing_the_iterator_ends_the_work():
    queue, ended = DeviceQueue(), threading.Event()

    def endless(task):
        try:
            while True:
                task.emit({})
        finally:
            ended.set()

    async def leave():
        events = queue.events("a", endless)
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert ended.wait(10)


def test_an_error_of_the_work_is_raised():
    def work(task):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(gathered(DeviceQueue(), "a", work))
