"""What a compute agent has besides bus and tree: images, which cost next to nothing when they are cached, and which the
nodes of a rack share when they are not."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.effects import FetchImage, HoldersWanted, ImageReady, Input, ReleaseImage
from fabric.images.archive import ENTRYPOINT
from fabric.images.cache import ImageCache
from fabric.messages import HolderRef
from fabric.resources import Resources
from fabric.runtime.compute import PIN, ComputeWorld
from fabric.runtime.settings import AgentConfig
from tests.unit.images.content import image_of
from tests.unit.images.peers import peers_in
from tests.unit.images.test_archive import START, member, tar_of
from tests.unit.runtime.until import until

IMAGE = image_of(tar_of(START, member("data", b"1" * 300_000)), 1 << 20)
OTHER = image_of(tar_of(START, member("data", b"2" * 300_000)), 1 << 20)
ROOM = 400_000
"""For one of them."""


def run(directory: Path, body: Callable[[ComputeWorld, list[Input]], Awaitable[None]]) -> None:
    """With IMAGE in the cache."""
    cache = ImageCache(directory / "cache", ROOM)
    admit(cache, IMAGE.digest, IMAGE.data)
    cache.close()

    async def main() -> None:
        news: list[Input] = []
        config = AgentConfig("c1", "r1", "compute", "", directory, Resources(1, 1, 1), driver="null", cache_bytes=ROOM)
        world = ComputeWorld(config, news.append)
        await world.open()
        try:
            await body(world, news)
        finally:
            await world.close()

    asyncio.run(main())


def admit(cache: ImageCache, digest: str, data: bytes) -> None:
    blob = cache.incoming(digest, len(data))
    blob.write_bytes(data)
    cache.admit(digest, blob)


def test_a_cached_image_is_ready_without_a_thread_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: ComputeWorld, news: list[Input]) -> None:
        world.perform(FetchImage(IMAGE.digest, ()))
        await until(lambda: news)  # the first time it is looked at
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", None)
            patch.setattr("fabric.images.cache._stamp", None)
            for _ in range(3):
                world.perform(ReleaseImage(IMAGE.digest))
                news.clear()
                world.perform(FetchImage(IMAGE.digest, ()))
                assert news == [], "never from inside `perform`"
                await asyncio.sleep(0)
                (ready,) = news
                assert isinstance(ready, ImageReady)
                assert (ready.digest, ready.cached, ready.size > 300_000) == (IMAGE.digest, True, True)
        assert world._unpacked(IMAGE.digest)[1].name == ENTRYPOINT
        assert [(one.digest, one.pinned) for one in world._cache.images()] == [(IMAGE.digest, 1)]

    run(tmp_path, body)


def test_an_image_that_was_evicted_is_fetched_again(tmp_path: Path) -> None:
    async def body(world: ComputeWorld, news: list[Input]) -> None:
        world.perform(FetchImage(IMAGE.digest, ()))
        await until(lambda: news)
        world.perform(ReleaseImage(IMAGE.digest))
        await asyncio.to_thread(admit, world._cache, OTHER.digest, OTHER.data)
        news.clear()
        world.perform(FetchImage(IMAGE.digest, ()))
        await until(lambda: news)
        assert news == [HoldersWanted(IMAGE.digest, ())]

    run(tmp_path, body)


def test_an_image_that_is_pinned_is_not_evicted(tmp_path: Path) -> None:
    async def body(world: ComputeWorld, news: list[Input]) -> None:
        for _ in range(2):
            world.perform(FetchImage(IMAGE.digest, ()))
            await until(lambda: news)
            with pytest.raises(Exception, match="does not fit"):
                await asyncio.to_thread(admit, world._cache, OTHER.digest, OTHER.data)
            world.perform(ReleaseImage(IMAGE.digest))
        world._cache.pin(IMAGE.digest, PIN)

    run(tmp_path, body)


def test_nodes_of_a_rack_share_and_stop_serving_when_there_is_nothing_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.images.fetch.MIN_SHARED_BYTES", 1)
    monkeypatch.setattr("fabric.images.pieces.KEEP_S", -1.0)
    monkeypatch.setattr("fabric.runtime.sharing.LOOK_S", 0.01)
    image = image_of(tar_of(START, member("data", random.Random(5).randbytes(3_000_000))), 65536)

    async def main() -> None:
        with peers_in(tmp_path) as peers:
            holders = [peers.serve(image).holder for _ in range(2)]
            refs = tuple(HolderRef(one.node, one.rack, one.endpoint) for one in holders)
            news: dict[str, list[Input]] = {}
            worlds = []
            for name in ("c1", "c2", "c3"):
                config = AgentConfig(
                    name, "r1", "compute", "", tmp_path / name, Resources(1, 1, 1), driver="null", cache_bytes=1 << 25
                )
                worlds.append(ComputeWorld(config, news.setdefault(name, []).append))
                await worlds[-1].open()
            try:
                for world in worlds:
                    assert world._sharing.counters() is None, "nothing is served before there is something"
                    world.perform(FetchImage(image.digest, refs))
                await until(lambda: all(told and isinstance(told[-1], ImageReady) for told in news.values()))
                ready = [told[-1] for told in news.values()]
                told_of = [told for one in ready if isinstance(one, ImageReady) for told in one.dropped]
                lost = {told.partition(":")[0] for told in told_of}
                assert not lost & {one.node for one in refs}, "a mate that has ended may be missed, a holder may not"
                gave = {node for one in ready if isinstance(one, ImageReady) for node, _ in one.bytes_by_holder}
                assert gave & set(news), "some of it came from mates"
                await until(lambda: all(world._sharing.counters() is None for world in worlds))
            finally:
                for world in worlds:
                    await world.close()

    asyncio.run(main())
