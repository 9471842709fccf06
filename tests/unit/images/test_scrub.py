"""The scrubber finds what has rotted in files that nobody reads, at its pace, and gets in nobody's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fabric.images import scrub
from fabric.images.scrub import MIB, Scrubber
from fabric.images.store import ChunkStore
from tests.unit.images.content import put_image, random_image
from tests.waiting import wait_until

IMAGE = random_image(20 * 4096 + 7)
OTHER = random_image(3 * 4096, seed=2)

Start = Callable[..., Scrubber]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    opened = ChunkStore(tmp_path)
    put_image(opened, IMAGE)
    put_image(opened, OTHER, "other")
    yield opened
    opened.close()


@pytest.fixture
def start(store: ChunkStore) -> Iterator[Start]:
    """Starts a quick scrubber, to be stopped at the end."""
    with ExitStack() as stack:

        def go(mib_s: float = 10_000, every_s: float = 0.01, found: Callable[[], None] = lambda: None) -> Scrubber:
            made = Scrubber(store, mib_s, every_s, found, first_after_s=0.0)
            made.start()
            stack.callback(made.stop)
            return made

        yield go


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_what_has_rotted_is_found_though_nobody_reads_it_and_the_other_images_stay(
    store: ChunkStore, tmp_path: Path, start: Start, how: str
) -> None:
    path = tmp_path / "chunks" / IMAGE.chunks[7].hash.hex()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"rot" + path.read_bytes()[3 if how == "flipped" else 4 :])
    told = threading.Event()
    scrubber = start(found=told.set)
    assert told.wait(10)
    assert [image.digest for image in store.held()] == [OTHER.digest]
    assert store.damaged() == [IMAGE.digest]
    wait_until(lambda: scrubber.passes >= 2, what="it goes on")
    assert [image.digest for image in store.held()] == [OTHER.digest]


def test_a_disk_that_came_back_with_old_bytes_is_found_out_by_the_first_pass_after_opening(tmp_path: Path) -> None:
    """Of the right size, so opening can't tell."""
    folder = tmp_path / "store"
    store = ChunkStore(folder)
    put_image(store, IMAGE)
    store.close()
    (folder / "chunks" / IMAGE.chunks[2].hash.hex()).write_bytes(bytes(4096))
    store = ChunkStore(folder)
    assert [image.digest for image in store.held()] == [IMAGE.digest]
    told = threading.Event()
    scrubber = Scrubber(store, 10_000, 3600, told.set, first_after_s=0.0)
    scrubber.start()
    assert told.wait(10)
    assert store.held() == []
    scrubber.stop()
    store.close()


def test_it_reads_no_faster_than_it_may(start: Start) -> None:
    began = time.monotonic()
    scrubber = start(mib_s=0.5, every_s=3600)
    wait_until(lambda: scrubber.passes == 1, what="a pass")
    assert time.monotonic() - began >= (IMAGE.manifest.size + OTHER.manifest.size) / (0.5 * MIB)


def test_a_pass_begins_no_sooner_than_it_may(start: Start) -> None:
    began = time.monotonic()
    scrubber = start(every_s=0.1)
    wait_until(lambda: scrubber.passes == 3, what="three passes")
    assert time.monotonic() - began >= 0.2


def test_an_empty_store_and_one_that_is_emptied_meanwhile_are_no_trouble(store: ChunkStore, start: Start) -> None:
    scrubber = start(mib_s=1)
    for digest in (IMAGE.digest, OTHER.digest):
        store.drop(digest)
    wait_until(lambda: scrubber.passes >= 2, what="passes over nothing")
    put_image(store, IMAGE)
    assert [image.digest for image in store.held()] == [IMAGE.digest]


def test_an_error_that_says_nothing_about_the_chunk_costs_no_image_and_the_pass_goes_on(
    store: ChunkStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "ERROR_PAUSE_S", 0.001)
    real, broken = store.read_chunk, IMAGE.chunks[4].hash

    def read(chunk: bytes, from_disk: bool = False) -> bytes:
        if chunk == broken:
            raise OSError(24, "Too many open files")
        return real(chunk, from_disk)

    monkeypatch.setattr(store, "read_chunk", read)
    scrubber = start()
    wait_until(lambda: scrubber.passes >= 1, what="a pass")
    assert len(store.held()) == 2


def test_stopping_waits_for_no_pass(start: Start) -> None:
    scrubber = start(mib_s=0.001)
    began = time.monotonic()
    scrubber.stop()
    assert time.monotonic() - began < 2
