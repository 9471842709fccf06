"""Uploads to holders over real sockets: whole at two of them in different racks, or nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fabric.images.errors import (
    DigestMismatch,
    EmptyImage,
    PushFailed,
)
from fabric.images.fetch import fetch
from fabric.images.links import Links
from fabric.images.manifest import CHUNK_BYTES, Buffer
from fabric.images.protocol import (
    Abort,
    Begin,
    Commit,
    Done,
    GetChunk,
    Holder,
    Refused,
    Request,
    refused,
)
from fabric.images.push import WINDOW, Push
from fabric.images.store import ChunkStore
from tests.unit.images.content import image_of, read_image
from tests.unit.images.peers import Peers, Served
from tests.waiting import wait_until

UPLOAD = os.urandom(9 * CHUNK_BYTES + 12_345)
"""What is pushed is cut in whole chunks."""
UPLOADED = image_of(UPLOAD, CHUNK_BYTES)


@pytest.fixture
def heard_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that ends waits for those that forget it, however slow the machine is."""
    monkeypatch.setattr("fabric.images.push.ABORT_WAIT_S", 10.0)


def feed_all(push: Push, data: bytes, piece: int = 300_000) -> None:
    for at in range(0, len(data), piece):
        push.feed(data[at : at + piece])


def nodes(holders: tuple[Holder, ...]) -> list[str]:
    return [holder.node for holder in holders]


def left_nothing(store: ChunkStore) -> bool:
    return store.used_bytes() == 0 and store.pushes() == 0 and store.held() == []


def test_a_push_is_whole_at_two_holders_in_different_racks(peers: Peers, tmp_path: Path) -> None:
    first, same_rack, other = peers.serve(rack="r1"), peers.serve(rack="r1"), peers.serve(rack="r2")
    push = Push([first.holder, same_rack.holder, other.holder], expected_digest=UPLOADED.digest)
    feed_all(push, UPLOAD)
    result = push.finish()
    assert nodes(result.holders) == ["s1", "s3"]
    assert (result.digest, result.size, result.chunks) == (UPLOADED.digest, len(UPLOAD), 10)
    assert [read_image(each.store, result.digest) == UPLOAD for each in (first, other)] == [True, True]
    assert left_nothing(same_rack.store)
    assert first.store.pushes() == 0
    assert fetch(result.digest, result.holders, tmp_path / "out").chunks == 10
    assert (tmp_path / "out").read_bytes() == UPLOAD


def test_a_push_survives_a_holder_that_is_killed(peers: Peers) -> None:
    dying, living, spare = peers.serve_apart(), peers.serve(), peers.serve()
    push = Push([dying.holder, living.holder, spare.holder])
    push.feed(UPLOAD[: 3 * CHUNK_BYTES])
    dying.kill()
    push.feed(UPLOAD[3 * CHUNK_BYTES :])
    result = push.finish()
    assert nodes(result.holders) == ["s2", "s3"]
    assert read_image(living.store, result.digest) == read_image(spare.store, result.digest) == UPLOAD


def test_a_push_survives_a_holder_that_is_frozen(peers: Peers) -> None:
    frozen, living, spare = peers.serve_apart(), peers.serve(), peers.serve()
    push = Push([frozen.holder, living.holder, spare.holder], stall_s=0.5)
    push.feed(UPLOAD[: 3 * CHUNK_BYTES])
    frozen.freeze()
    push.feed(UPLOAD[3 * CHUNK_BYTES :])
    assert nodes(push.finish().holders) == ["s2", "s3"]


def test_a_push_survives_a_holder_that_runs_full(peers: Peers) -> None:
    small, living, spare = peers.serve(max_bytes=4 * CHUNK_BYTES), peers.serve(), peers.serve()
    push = Push([small.holder, living.holder, spare.holder])
    feed_all(push, UPLOAD)
    assert nodes(push.finish().holders) == ["s2", "s3"]
    assert left_nothing(small.store)


def test_a_spare_that_can_not_copy_is_followed_by_the_next(peers: Peers) -> None:
    small, living, full, spare = peers.serve(max_bytes=1), peers.serve(), peers.serve(max_bytes=1), peers.serve()
    push = Push([each.holder for each in (small, living, full, spare)])
    feed_all(push, UPLOAD)
    assert nodes(push.finish().holders) == ["s2", "s4"]
    assert left_nothing(full.store)


@pytest.mark.usefixtures("heard_out")
def test_a_push_without_a_spare_fails_at_once_and_leaves_nothing(peers: Peers) -> None:
    small, living = peers.serve(max_bytes=2 * CHUNK_BYTES), peers.serve()
    push = Push([small.holder, living.holder], name="web")
    with pytest.raises(PushFailed, match=r"image web: .*s1: refused \(full\)") as failed:
        feed_all(push, UPLOAD * 5)
    assert [node for node, _ in failed.value.reasons] == ["s1"]
    assert push._chunker.size < len(UPLOAD) * 5
    with pytest.raises(RuntimeError):
        push.feed(b"more")
    assert left_nothing(living.store), "as soon as it has failed"
    assert left_nothing(small.store)


def test_a_killed_holder_is_replaced_before_anything_was_streamed(peers: Peers) -> None:
    dead, living, spare = peers.serve_apart(), peers.serve(), peers.serve()
    dead.kill()
    push = Push([dead.holder, living.holder, spare.holder])
    feed_all(push, UPLOAD)
    assert nodes(push.finish().holders) == ["s2", "s3"]
    assert spare.server.counters().bytes_in > len(UPLOAD)


@pytest.mark.parametrize("racks", [[], ["r1"], ["r1", "r1"]])
def test_holders_in_one_rack_are_too_few(peers: Peers, racks: list[str]) -> None:
    holders = [peers.serve(rack=rack).holder for rack in racks]
    with pytest.raises(PushFailed, match="expected 2 holders in different racks"):
        Push(holders)


@pytest.mark.usefixtures("heard_out")
def test_another_digest_leaves_nothing(peers: Peers) -> None:
    a, b = peers.serve(), peers.serve()
    with Push([a.holder, b.holder], expected_digest="sha256:" + "0" * 64) as push:
        feed_all(push, UPLOAD)
        with pytest.raises(DigestMismatch):
            push.finish()
    assert left_nothing(a.store)
    assert left_nothing(b.store)


@pytest.mark.usefixtures("heard_out")
def test_an_empty_image_leaves_nothing(peers: Peers) -> None:
    a, b = peers.serve(), peers.serve()
    push = Push([a.holder, b.holder])
    with pytest.raises(EmptyImage):
        push.finish()
    assert left_nothing(a.store)
    assert left_nothing(b.store)


@pytest.mark.usefixtures("heard_out")
def test_an_aborted_push_leaves_nothing(peers: Peers) -> None:
    a, b = peers.serve(), peers.serve()
    with Push([a.holder, b.holder]) as push:
        feed_all(push, UPLOAD)
        assert a.store.pushes() == 1
    assert left_nothing(a.store)
    assert left_nothing(b.store)
    push.abort()


def test_an_abort_waits_a_while_for_holders_that_do_not_answer(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.push.ABORT_WAIT_S", 0.3)
    heard: list[Request] = []

    def mute(request: Request) -> tuple[Done, None] | None:
        heard.append(request)
        return (Done(id=request.id), None) if isinstance(request, Begin) else None

    a, b = peers.misbehave(mute), peers.misbehave(mute)
    begun = time.monotonic()
    Push([a, b]).abort()
    assert 0.3 <= time.monotonic() - begun < 5
    wait_until(lambda: sum(isinstance(request, Abort) for request in heard) == 2, what="both to be told")


def test_a_push_that_fails_while_it_is_committed_says_what_may_be_left(peers: Peers) -> None:
    living = peers.serve()

    def full_at_last(request: Request) -> tuple[Done | Refused, None]:
        if not isinstance(request, Commit):
            return Done(id=request.id), None
        wait_until(lambda: living.store.has(UPLOADED.digest), what="the other one to have it")
        return refused(request.id, "full", "no room"), None

    full = peers.misbehave(full_at_last)
    push = Push([living.holder, full])
    feed_all(push, UPLOAD)
    with pytest.raises(PushFailed, match=r"s2: refused \(full\)") as failed:
        push.finish()
    assert failed.value.digest == UPLOADED.digest
    assert failed.value.held_by in ((), ("s1",)), "its answer may come too late"


_UPLOADER = """
import sys, threading
from fabric.images.protocol import Holder
from fabric.images.push import Push
push = Push([Holder('a', 'r1', sys.argv[1]), Holder('b', 'r2', sys.argv[2])])
push.feed(bytes(1 << 20) + b'x' * (3 << 20))
print('fed', flush=True)
threading.Event().wait()
"""


def test_a_push_whose_sender_is_killed_leaves_nothing(peers: Peers) -> None:
    a, b = peers.serve(push_idle_s=600), peers.serve(push_idle_s=600)
    command = [sys.executable, "-c", _UPLOADER, a.holder.endpoint, b.holder.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
        try:
            assert sender.stdout is not None
            assert sender.stdout.readline() == "fed\n"
            wait_until(lambda: a.store.used_bytes() > 0, what="a chunk at the holder")
        finally:
            sender.kill()
    wait_until(lambda: left_nothing(a.store) and left_nothing(b.store), what="nothing to be left")


class SlowDisk(ChunkStore):
    """Takes its time to make an image durable; or, after `hold_chunks`, to write a chunk."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.go_on = threading.Event()
        self.turns = threading.Semaphore(1000)

    def hold_chunks(self) -> None:
        """Each `put` waits for a release of `turns`."""
        self.turns = threading.Semaphore(0)

    def put(self, push_id: str, chunk: bytes, data: Buffer) -> None:
        assert self.turns.acquire(timeout=10)
        super().put(push_id, chunk, data)

    def commit(self, push_id: str, manifest_bytes: Buffer) -> str:
        assert self.go_on.wait(10)
        return super().commit(push_id, manifest_bytes)


def test_a_holder_too_slow_to_hear_of_the_abort_forgets_the_push_when_nobody_is_there_to_answer(
    peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.images.push.ABORT_WAIT_S", 0.1)
    store = SlowDisk(tmp_path / "slow")
    store.hold_chunks()
    slow, quick = Served("slow", "r-slow", store), peers.serve()
    push = Push([slow.holder, quick.holder])
    feed_all(push, UPLOAD[: WINDOW * CHUNK_BYTES])
    push.abort()
    wait_until(lambda: left_nothing(quick.store), what="the quick one to forget it")
    assert store.pushes() == 1

    def forgotten() -> bool:
        store.turns.release()
        return left_nothing(store)

    wait_until(forgotten, what="the slow one to forget it, long before it counts as idle", every_s=0.1)
    store.turns.release(WINDOW)
    slow.server.stop()
    store.close()


def test_a_slow_commit_is_waited_for_and_delays_no_one_else(
    peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.images.push.ASK_AGAIN_S", 0.05)
    store = SlowDisk(tmp_path / "slow")
    slow, quick = Served("slow", "r-slow", store), peers.serve()
    push = Push([slow.holder, quick.holder], stall_s=0.3)
    feed_all(push, UPLOAD)
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(push.finish)
        wait_until(lambda: slow.server.counters().jobs == 1, what="the commit to be under way")
        with Links() as links:
            links.open(slow.holder)
            links.send("slow", GetChunk(id=1, hash=UPLOADED.chunks[0].hash))
            wait_until(lambda: list(links.poll(0.5)), what="a chunk while the commit runs")
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 3 * 0.3, what="three times the stall to pass")
        assert not finishing.done()
        store.go_on.set()
        assert nodes(finishing.result(10).holders) == ["slow", "s1"]
    slow.server.stop()
    store.close()


def test_pushes_of_the_same_content_at_once(peers: Peers) -> None:
    served = [peers.serve() for _ in range(3)]

    def push_one(n: int) -> str:
        holders = [served[(n + i) % 3].holder for i in range(3)]
        push = Push(holders)
        feed_all(push, UPLOAD)
        return push.finish().digest

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(push_one, range(4))) == {UPLOADED.digest}
    for each in served:
        assert read_image(each.store, UPLOADED.digest) == UPLOAD
        assert each.store.drop(UPLOADED.digest)
        assert left_nothing(each.store)
