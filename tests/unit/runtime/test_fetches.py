"""Fetches: threads beside the loop, and the talk between them and a role."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

from fabric.effects import FetchProgress, HoldersWanted, ImageFailed, ImageReady, Input
from fabric.images.errors import BadImage, FetchCancelled, FetchFailed
from fabric.images.fetch import FetchReport
from fabric.images.manifest import Manifest
from fabric.images.protocol import Holder
from fabric.images.transfer import Dropped
from fabric.messages import HolderRef
from fabric.runtime.fetches import MAX_WANTED, SLOTS, Fetches, Obtain, Obtained, Talk
from tests.unit.runtime.until import until

A = "b3:" + 64 * "a"
REF = HolderRef("s1", "r1", "tcp://127.0.0.1:1")
MANIFEST = Manifest(5000, 4096, (bytes(32), bytes(32)))


def run(obtain: Obtain, body: Callable[[Fetches, list[Input]], Awaitable[None]]) -> None:
    async def main() -> None:
        news: list[Input] = []
        fetches = Fetches(obtain, news.append)
        try:
            await body(fetches, news)
        finally:
            await fetches.close()

    asyncio.run(main())


def report() -> FetchReport:
    return FetchReport(MANIFEST, {"s2": 3000, "s1": 2000}, 1.5, [Dropped("s3", "stalled")], 2, 0)


def test_what_was_fetched_is_told_with_who_gave_it() -> None:
    def obtain(digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        assert holders == [Holder("s1", "r1", "tcp://127.0.0.1:1")]
        return Obtained(5000, report(), 7)

    async def body(fetches: Fetches, news: list[Input]) -> None:
        fetches.want(A, (REF,))
        await until(lambda: news)
        ready = ImageReady(A, (("s1", 2000), ("s2", 3000)), ("s3: stalled",), 5000, 1500, 7, cached=False)
        assert news == [ready]
        assert fetches.under_way == 0

    run(obtain, body)


def test_what_was_there_already_is_told_as_cached() -> None:
    async def body(fetches: Fetches, news: list[Input]) -> None:
        fetches.want(A, ())
        await until(lambda: news)
        assert news == [ImageReady(A, (), (), 5000, 0, 3, cached=True)]

    run(lambda digest, holders, talk: Obtained(5000, None, 3), body)


def test_failures_are_told_with_whose_fault_they_are() -> None:
    errors: list[Exception] = [BadImage("no entry point"), FetchFailed("all died"), ZeroDivisionError("a bug")]

    def obtain(digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        raise errors.pop(0)

    async def body(fetches: Fetches, news: list[Input]) -> None:
        for count in (1, 2, 3):
            fetches.want(A, ())
            await until(lambda: len(news) == count)  # noqa: B023
        assert news == [
            ImageFailed(A, "image", "no entry point"),
            ImageFailed(A, "node", "all died"),
            ImageFailed(A, "node", "ZeroDivisionError: a bug"),
        ]

    run(obtain, body)


def test_a_fetch_asks_for_holders_and_waits_for_the_answer_to_this_question() -> None:
    asked = threading.Event()

    def obtain(digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        asked.wait(10)
        found = talk.more(frozenset({"s9", "s8"}))
        raise FetchFailed(",".join(holder.node for holder in found))

    async def body(fetches: Fetches, news: list[Input]) -> None:
        fetches.want(A, ())
        fetches.more(A, (HolderRef("old", "r1", "x"),))  # to a question nobody asked
        asked.set()
        await until(lambda: news)
        assert news == [HoldersWanted(A, ("s8", "s9"))]
        fetches.more(A, (REF,))
        await until(lambda: len(news) == 2)
        assert news[1] == ImageFailed(A, "node", "s1")
        fetches.more(A, (REF,))  # nobody waits for it any more

    run(obtain, body)


def test_the_time_of_the_search_is_not_counted_as_fetching() -> None:
    def obtain(digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        talk.more(frozenset())
        return Obtained(5000, FetchReport(MANIFEST, {}, 0.001, [], 2, 0), 0)

    async def body(fetches: Fetches, news: list[Input]) -> None:
        fetches.want(A, ())
        await until(lambda: news)
        fetches.more(A, (REF,))
        await until(lambda: len(news) == 2)
        ready = news[1]
        assert isinstance(ready, ImageReady)
        assert ready.fetch_ms == 0

    run(obtain, body)


def test_one_image_is_fetched_once_and_only_so_many_at_a_time() -> None:
    running: list[str] = []
    go = threading.Event()

    def obtain(digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        running.append(digest)
        go.wait(10)
        return Obtained(1, None, 0)

    async def body(fetches: Fetches, news: list[Input]) -> None:
        digests = [f"b3:{number:064x}" for number in range(SLOTS + 3)]
        for digest in [*digests, *digests]:
            fetches.want(digest, ())
        await until(lambda: len(running) == SLOTS)
        assert fetches.under_way == SLOTS + 3
        go.set()
        await until(lambda: len(news) == SLOTS + 3)
        assert sorted(running) == digests

    run(obtain, body)


def test_more_than_may_wait_are_refused() -> None:
    go = threading.Event()

    def obtain(digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        go.wait(10)
        return Obtained(1, None, 0)

    async def body(fetches: Fetches, news: list[Input]) -> None:
        for number in range(MAX_WANTED + 1):
            fetches.want(f"b3:{number:064x}", ())
        assert news == []
        await until(lambda: news)
        assert isinstance(news[0], ImageFailed)
        assert news[0].digest == f"b3:{MAX_WANTED:064x}"
        go.set()

    run(obtain, body)


def test_progress_is_told_rarely_and_at_the_end() -> None:
    def obtain(digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        for done in range(1001):
            talk.progress(done, 1000)
        return Obtained(1000, None, 0)

    async def body(fetches: Fetches, news: list[Input]) -> None:
        fetches.want(A, ())
        await until(lambda: news and isinstance(news[-1], ImageReady))
        told = [each for each in news if isinstance(each, FetchProgress)]
        assert told[0] == FetchProgress(A, 0, 1000)
        assert told[-1] == FetchProgress(A, 1000, 1000)
        assert len(told) < 20

    run(obtain, body)


def test_closing_cuts_off_what_is_under_way_and_tells_nothing() -> None:
    ended = threading.Event()

    def obtain(digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        assert talk.more(frozenset()) == []
        ended.set()
        raise FetchCancelled(digest)

    async def body(fetches: Fetches, news: list[Input]) -> None:
        fetches.want(A, ())
        await until(lambda: news)
        await fetches.close()
        assert ended.is_set()
        assert news == [HoldersWanted(A, ())]

    run(obtain, body)
