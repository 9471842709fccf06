"""The inbox: everything that threads put is run on the loop, in order, woken few times, and harmless after its end."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

from tests.zookeeper import eventually
from zk.inbox import Inbox


def test_everything_put_is_run_on_the_loop_in_the_order_of_each_thread() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        here = threading.get_ident()
        inbox = Inbox(loop)
        seen: list[tuple[int, int]] = []

        def see(thread: int, number: int) -> None:
            assert threading.get_ident() == here
            seen.append((thread, number))

        def produce(thread: int) -> None:
            for number in range(5000):
                inbox.put(partial(see, thread, number))

        threads = [threading.Thread(target=produce, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        await eventually(lambda: len(seen) == 20_000)
        for thread in threads:
            thread.join()
        for n in range(4):
            assert [number for thread, number in seen if thread == n] == list(range(5000))

    asyncio.run(main())


def test_one_wake_up_drains_all_there_is() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        woken: list[Any] = []
        wake = loop.call_soon_threadsafe

        def counted(callback: Any, *args: Any, **options: Any) -> asyncio.Handle:
            woken.append(callback)
            return wake(callback, *args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment]
        inbox = Inbox(loop)
        seen: list[int] = []
        for number in range(100):
            inbox.put(partial(seen.append, number))
        await eventually(lambda: len(seen) == 100)
        assert len(woken) == 1
        inbox.put(partial(seen.append, 100))
        await eventually(lambda: len(seen) == 101)
        assert len(woken) == 2

    asyncio.run(main())


def test_an_item_that_raises_is_reported_and_the_next_is_run() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reported: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: reported.append(context))
        inbox = Inbox(loop)
        seen: list[str] = []
        inbox.put(lambda: 1 / 0)
        inbox.put(partial(seen.append, "next"))
        await eventually(lambda: seen)
        assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]

    asyncio.run(main())


def test_an_item_may_put_another() -> None:
    async def main() -> None:
        inbox = Inbox(asyncio.get_running_loop())
        seen: list[str] = []
        inbox.put(lambda: inbox.put(partial(seen.append, "inner")))
        inbox.put(partial(seen.append, "second"))
        await eventually(lambda: len(seen) == 2)
        assert seen == ["second", "inner"]

    asyncio.run(main())


def test_putting_after_the_loops_end_does_nothing() -> None:
    async def main() -> Inbox:
        return Inbox(asyncio.get_running_loop())

    inbox = asyncio.run(main())
    seen: list[str] = []
    inbox.put(partial(seen.append, "late"))
    inbox.put(partial(seen.append, "later"))
    assert seen == []
