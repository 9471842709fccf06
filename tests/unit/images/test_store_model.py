"""Any order of pushes, drops, rot and restarts: the store holds what a simple model says, and not one file more."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fabric.images.errors import ChunkCorrupt, NotHeld, PushIncomplete, StoreFull, UnknownPush
from fabric.images.store import ChunkStore
from tests.unit.images.content import image_of, read_image

BLOCKS = [bytes([n]) * 4096 for n in range(5)]
IMAGES = [
    image_of(b"".join(BLOCKS[n] for n in places))
    for places in ([0], [0, 1], [1, 2, 1], [0, 1, 2, 3], [3, 4], [4, 0, 4, 0])
]
CHUNKS = {chunk.hash: bytes(chunk.data) for image in IMAGES for chunk in image.chunks}
MAX_BYTES = 5 * 4096 + 200
"""All chunks once and some manifests: now and then it is full."""

Pushes = st.sampled_from(["p", "q", "r"])
Which = st.sampled_from(range(len(IMAGES)))


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = ChunkStore(self.directory, MAX_BYTES)
        self.images: set[int] = set()  # committed and not dropped
        self.pushes: dict[str, set[bytes]] = {}
        self.lost: set[bytes] = set()  # rotten, and noticed

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def named(self) -> set[bytes]:
        """What something refers to."""
        return {chunk for n in self.images for chunk in IMAGES[n].manifest.chunks}.union(*self.pushes.values())

    def forget_unnamed(self) -> None:
        self.lost &= self.named()

    @rule(push=Pushes)
    def begin(self, push: str) -> None:
        self.store.begin(push)
        self.pushes.setdefault(push, set())

    @rule(push=Pushes, chunk=st.sampled_from(sorted(CHUNKS)))
    def put(self, push: str, chunk: bytes) -> None:
        try:
            self.store.put(push, chunk, CHUNKS[chunk])
        except UnknownPush:
            assert push not in self.pushes
        except StoreFull:
            del self.pushes[push]
            self.forget_unnamed()
        else:
            if chunk not in self.pushes[push]:
                self.lost.discard(chunk)
            self.pushes[push].add(chunk)

    @rule(push=Pushes, which=Which)
    def put_all_and_commit(self, push: str, which: int) -> None:
        self.begin(push)
        for chunk in IMAGES[which].chunks:
            self.put(push, chunk.hash)
        self.commit(push, which)

    @rule(push=Pushes, which=Which)
    def commit(self, push: str, which: int) -> None:
        whole = self.is_whole(which)
        try:
            assert self.store.commit(push, IMAGES[which].manifest.encode()) == IMAGES[which].digest
        except UnknownPush:
            assert push not in self.pushes
            assert not whole
            return
        except PushIncomplete:
            chunks = set(IMAGES[which].manifest.chunks)
            assert not chunks <= self.pushes[push] or chunks & self.lost
        except StoreFull:
            pass
        else:
            self.images.add(which)
        self.pushes.pop(push, None)
        self.forget_unnamed()

    @rule(push=Pushes)
    def abort(self, push: str) -> None:
        self.store.abort(push)
        self.pushes.pop(push, None)
        self.forget_unnamed()

    @rule(which=Which)
    def drop(self, which: int) -> None:
        assert self.store.drop(IMAGES[which].digest) == (which in self.images)
        self.images.discard(which)
        self.forget_unnamed()

    @precondition(lambda self: self.named() - self.lost)
    @rule(data=st.data())
    def rot(self, data: st.DataObject) -> None:
        """A chunk rots, and somebody reads it."""
        chunk = data.draw(st.sampled_from(sorted(self.named() - self.lost)))
        path = self.directory / "chunks" / chunk.hex()
        path.write_bytes(b"x" + path.read_bytes()[1:])
        try:
            self.store.read_chunk(chunk)
        except ChunkCorrupt:
            self.lost.add(chunk)
        else:
            raise AssertionError("a rotten chunk was served")

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = ChunkStore(self.directory, MAX_BYTES)
        self.pushes.clear()
        self.forget_unnamed()

    def is_whole(self, which: int) -> bool:
        return which in self.images and not set(IMAGES[which].manifest.chunks) & self.lost

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        whole = {n for n in range(len(IMAGES)) if self.is_whole(n)}
        assert {image.digest for image in self.store.held()} == {IMAGES[n].digest for n in whole}
        for n in whole:
            assert read_image(self.store, IMAGES[n].digest) == IMAGES[n].data
        for chunk in self.lost:
            try:
                self.store.read_chunk(chunk)
            except NotHeld:
                continue
            raise AssertionError("a chunk that was lost is served")

    @invariant()
    def has_not_one_file_more(self) -> None:
        files = {path.name: path.stat().st_size for path in (self.directory / "chunks").iterdir()}
        assert set(files) == {chunk.hex() for chunk in self.named() - self.lost}
        manifests = [path.stat().st_size for path in (self.directory / "manifests").iterdir()]
        assert len(manifests) == len(self.images)
        assert self.store.used_bytes() == sum(files.values()) + sum(manifests) <= MAX_BYTES
        assert list((self.directory / "partial").iterdir()) == []
        assert self.store.pushes() == len(self.pushes)


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_store = StoreMachine.TestCase
