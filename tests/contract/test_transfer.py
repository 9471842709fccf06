"""Images over real sockets: whole at the other end, or nothing, whatever a holder does."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fabric.images.callers import PEER_REQUESTS
from fabric.images.errors import (
    ChunkCorrupt,
    EndpointError,
    FetchCancelled,
    FetchFailed,
    StoreFull,
)
from fabric.images.fetch import MAX_AT_ONCE, FetchReport, fetch
from fabric.images.links import Arrived, Links
from fabric.images.manifest import CHUNK_BYTES
from fabric.images.protocol import (
    MAX_DATA_BYTES,
    Data,
    Done,
    GetChunk,
    GetManifest,
    Holder,
    Put,
    Refused,
    Request,
    encode,
)
from fabric.images.replicate import replicate
from fabric.images.server import ChunkServer
from fabric.images.store import ChunkStore
from fabric.images.wire import address_of
from tests.unit.images.content import Image, image_of, random_image, read_image
from tests.unit.images.peers import PREFIX, Peers, answering, framed
from tests.waiting import wait_until

IMAGE = random_image(40 * 65536 + 99, chunk_bytes=65536)


def fetched(peers: Peers, into: Path, *holders: Holder, image: Image = IMAGE, **options: object) -> FetchReport:
    """Fetches, and checks that the file is the image and that nothing else was left."""
    into.mkdir(exist_ok=True)
    report = fetch(image.digest, holders, into / "image", **options)  # type: ignore[arg-type]
    assert (into / "image").read_bytes() == image.data
    assert os.listdir(into) == ["image"]
    assert sum(report.bytes_by_holder.values()) == image.manifest.size
    return report


class At:
    """A progress callback that acts once, when `done` bytes are reached."""

    def __init__(self, done: int, act: Callable[[], object]) -> None:
        self.seen: list[tuple[int, int]] = []
        self._done, self._act = done, act
        self._acted = False

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))
        if done >= self._done and not self._acted:
            self._acted = True
            self._act()


# -- fetching ----------------------------------------------------------------------------------------------------------


def test_two_holders_share_the_work(peers: Peers, tmp_path: Path) -> None:
    a, b = peers.serve(IMAGE), peers.serve(IMAGE)
    progress = At(0, lambda: None)
    report = fetched(peers, tmp_path / "out", a.holder, b.holder, progress=progress)
    assert set(report.bytes_by_holder) == {"s1", "s2"}
    assert report.chunks == 41
    assert report.dropped == []
    assert progress.seen[0] == (0, IMAGE.manifest.size)
    assert progress.seen[-1] == (IMAGE.manifest.size, IMAGE.manifest.size)
    assert progress.seen == sorted(progress.seen)
    assert sum(each.server.counters().bytes_out for each in (a, b)) >= IMAGE.manifest.size


def test_a_holder_that_is_killed_is_replaced_by_the_other(peers: Peers, tmp_path: Path) -> None:
    dying, living = peers.serve_apart(IMAGE), peers.serve(IMAGE)
    progress = At(IMAGE.manifest.size // 3, dying.kill)
    report = fetched(peers, tmp_path / "out", dying.holder, living.holder, progress=progress)
    assert [(drop.node, drop.lied) for drop in report.dropped] in ([], [("s1", False)])
    assert report.bytes_by_holder["s2"] >= IMAGE.manifest.size // 3


def test_with_all_holders_dead_others_are_asked_for(peers: Peers, tmp_path: Path) -> None:
    dying, spare = peers.serve_apart(IMAGE), peers.serve(IMAGE)
    asked: list[frozenset[str]] = []

    def more(excluded: frozenset[str]) -> list[Holder]:
        asked.append(excluded)
        return [dying.holder, spare.holder]

    progress = At(IMAGE.manifest.size // 3, dying.kill)
    report = fetched(peers, tmp_path / "out", dying.holder, more=more, progress=progress)
    assert asked == [frozenset()]
    assert set(report.bytes_by_holder) == {"s1", "s2"}
    assert report.dropped[0].reason == "connection lost"


def test_a_holder_that_never_answers_delays_nothing(peers: Peers, tmp_path: Path) -> None:
    mute, living = peers.misbehave(lambda request: None), peers.serve(IMAGE)
    report = fetched(peers, tmp_path / "out", mute, living.holder, stall_s=20)
    assert report.bytes_by_holder == {"s2": IMAGE.manifest.size}
    assert report.seconds < 10


def test_a_holder_that_stalls_in_the_middle_is_dropped(peers: Peers, tmp_path: Path) -> None:
    stalling = peers.misbehave(answering(IMAGE, lambda n, data: data if n < 5 else None))
    living = peers.serve(IMAGE)
    report = fetched(peers, tmp_path / "out", stalling, more=lambda excluded: [living.holder], stall_s=0.3)
    assert report.bytes_by_holder["s1"] == 5 * 65536
    assert "sent nothing for 0.3 s" in report.dropped[0].reason


def test_a_frozen_process_delays_nothing(peers: Peers, tmp_path: Path) -> None:
    frozen, living = peers.serve_apart(IMAGE), peers.serve(IMAGE)
    progress = At(IMAGE.manifest.size // 4, frozen.freeze)
    report = fetched(peers, tmp_path / "out", frozen.holder, living.holder, progress=progress, stall_s=20)
    assert report.seconds < 10


def test_a_holder_that_lies_is_dropped_and_never_asked_again(peers: Peers, tmp_path: Path) -> None:
    lying = peers.misbehave(answering(IMAGE, lambda n, data: data if n < 3 else bytes([data[0] ^ 1]) + data[1:]))
    living = peers.serve(IMAGE)
    report = fetched(peers, tmp_path / "out", lying, living.holder)
    assert [(drop.node, drop.lied) for drop in report.dropped] == [("s1", True)]
    with pytest.raises(FetchFailed, match="failed its hash") as failed:
        fetch(IMAGE.digest, [lying], tmp_path / "again", more=lambda excluded: [lying])
    assert [node for node, _ in failed.value.reasons] == ["s1"]
    assert not [path for path in tmp_path.iterdir() if "again" in path.name]


@pytest.mark.parametrize("kind", ["shorter", "longer", "empty"])
def test_a_chunk_of_another_length_is_a_lie(peers: Peers, tmp_path: Path, kind: str) -> None:
    change: dict[str, Callable[[bytes], bytes]] = {
        "shorter": lambda data: data[:-1],
        "longer": lambda data: data + b"x",
        "empty": lambda data: b"",
    }
    lying = peers.misbehave(answering(IMAGE, lambda n, data: change[kind](data)))
    report = fetched(peers, tmp_path / "out", lying, peers.serve(IMAGE).holder)
    assert [(drop.node, drop.lied) for drop in report.dropped] == [("s1", True)]


def test_a_manifest_of_another_image_is_a_lie(peers: Peers, tmp_path: Path) -> None:
    other = random_image(9000, seed=7)
    lying = peers.misbehave(answering(other, lambda n, data: data))
    living = peers.serve(IMAGE)
    report = fetched(peers, tmp_path / "out", lying, more=lambda excluded: [living.holder])
    assert [(drop.reason, drop.lied) for drop in report.dropped] == [("the manifest failed its hash", True)]


def test_an_answer_that_was_not_asked_for_breaks_the_protocol(peers: Peers, tmp_path: Path) -> None:
    def react(request: Request) -> tuple[Done, None]:
        return Done(id=request.id), None

    report = fetched(peers, tmp_path / "out", peers.misbehave(react), more=lambda _: [peers.serve(IMAGE).holder])
    assert report.dropped[0].reason == "broke the protocol: answered Done"


def test_a_chunk_that_was_not_asked_for_breaks_the_protocol(peers: Peers, tmp_path: Path) -> None:
    """Though it be sound: else a holder could keep a fetch hashing for ever."""
    chunk = IMAGE.chunks[20]

    def react(request: Request) -> tuple[Data, bytes]:
        if isinstance(request, GetManifest):
            return Data(id=request.id), IMAGE.manifest.encode()
        return Data(id=20), bytes(chunk.data)

    pushing = peers.misbehave(react)
    report = fetched(peers, tmp_path / "out", pushing, more=lambda _: [peers.serve(IMAGE).holder])
    assert report.dropped[0].reason == "broke the protocol: sent chunk 20 without being asked"


def test_a_rotten_chunk_is_taken_from_the_other_and_its_image_is_not_held_any_more(
    peers: Peers, tmp_path: Path
) -> None:
    rotten, living = peers.serve(IMAGE), peers.serve(IMAGE)
    for chunk in IMAGE.chunks[::3]:
        path = tmp_path / "store-1" / "chunks" / chunk.hash.hex()
        path.write_bytes(b"rot" + path.read_bytes()[3:])
    report = fetched(peers, tmp_path / "out", rotten.holder, living.holder)
    assert [(drop.node, drop.lied) for drop in report.dropped] == [("s1", False)]
    assert "refused (corrupt)" in report.dropped[0].reason
    assert rotten.store.held() == []
    report = replicate(rotten.store, IMAGE.digest, [living.holder])
    assert read_image(rotten.store, IMAGE.digest) == IMAGE.data
    assert report.chunks < len(IMAGE.chunks) / 2, "only what was lost travels"


def test_two_holders_that_lost_different_chunks_complete_each_other(peers: Peers, tmp_path: Path) -> None:
    one, other = peers.serve(IMAGE), peers.serve(IMAGE)
    for served, lost in ((one, 3), (other, 5)):
        (served.store._shelf.chunk_path(IMAGE.chunks[lost].hash)).write_bytes(b"old data")
        with pytest.raises(ChunkCorrupt):
            served.store.read_chunk(IMAGE.chunks[lost].hash)
    for served, source in ((one, other), (other, one)):
        report = replicate(served.store, IMAGE.digest, [source.holder])
        assert report.chunks == 1
        assert read_image(served.store, IMAGE.digest) == IMAGE.data


def test_a_copy_from_a_source_that_lost_the_same_chunk_fails_and_keeps_what_is_there(peers: Peers) -> None:
    one, other = peers.serve(IMAGE), peers.serve(IMAGE)
    for served in (one, other):
        (served.store._shelf.chunk_path(IMAGE.chunks[3].hash)).unlink()
        with pytest.raises(ChunkCorrupt):
            served.store.read_chunk(IMAGE.chunks[3].hash)
    before = one.store.used_bytes()
    with pytest.raises(FetchFailed):
        replicate(one.store, IMAGE.digest, [other.holder])
    assert (one.store.held(), one.store.damaged(), one.store.used_bytes()) == ([], [IMAGE.digest], before)


def test_a_repeating_image_is_fetched_once_and_written_everywhere(peers: Peers, tmp_path: Path) -> None:
    image = image_of((b"a" * 4096 + b"b" * 4096) * 20 + b"the end")
    report = fetch(image.digest, [peers.serve(image).holder], tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == image.data
    assert (report.chunks, report.bytes_by_holder) == (3, {"s1": 2 * 4096 + 7})


def test_a_cancelled_fetch_leaves_nothing(peers: Peers, tmp_path: Path) -> None:
    cancelled = threading.Event()
    (tmp_path / "out").mkdir()
    with pytest.raises(FetchCancelled):
        fetch(
            IMAGE.digest,
            [peers.serve(IMAGE).holder],
            tmp_path / "out" / "image",
            cancelled=cancelled,
            progress=At(IMAGE.manifest.size // 2, cancelled.set),
        )
    assert os.listdir(tmp_path / "out") == []


def test_a_fetch_has_a_deadline(peers: Peers, tmp_path: Path) -> None:
    mute = peers.misbehave(lambda request: None)
    with pytest.raises(FetchFailed, match="was not here after"):
        fetch(IMAGE.digest, [mute], tmp_path / "image", deadline_s=0.2)


def test_without_a_holder_it_fails_with_the_reason_of_each(peers: Peers, tmp_path: Path) -> None:
    empty = peers.serve()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    nobody = Holder("nobody", "r", f"tcp://127.0.0.1:{port}")
    nonsense = [Holder("ipc", "r", "ipc:///tmp/x"), Holder("bad", "r", "tcp://no port")]
    with pytest.raises(FetchFailed) as failed:
        fetch(IMAGE.digest, [empty.holder, nobody, *nonsense], tmp_path / "image")
    reasons = dict(failed.value.reasons)
    assert set(reasons) == {"s1", "nobody", "ipc", "bad"}
    assert reasons["s1"].startswith("refused (not_found)")
    assert reasons["nobody"] == "connection refused"
    assert "expected an endpoint tcp://" in reasons["ipc"]
    assert "expected an endpoint tcp://" in reasons["bad"]
    with pytest.raises(FetchFailed, match="no holder was given"):
        fetch(IMAGE.digest, [], tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_of_many_holders_some_are_asked_and_the_others_follow(peers: Peers, tmp_path: Path) -> None:
    lying = [peers.misbehave(answering(IMAGE, lambda n, data: b"x" + data[1:])) for _ in range(MAX_AT_ONCE + 1)]
    living = peers.serve(IMAGE)
    report = fetched(peers, tmp_path / "out", *lying, lying[0], living.holder)
    assert sorted(drop.node for drop in report.dropped if drop.lied) == [holder.node for holder in lying]
    assert report.bytes_by_holder == {living.holder.node: IMAGE.manifest.size}


def test_many_fetches_at_once(peers: Peers, tmp_path: Path) -> None:
    holders = [peers.serve(IMAGE).holder, peers.serve(IMAGE).holder]
    with ThreadPoolExecutor(12) as pool:
        reports = list(pool.map(lambda n: fetched(peers, tmp_path / f"out-{n}", *holders), range(12)))
    assert not [report.dropped for report in reports if report.dropped]


# -- the server and strangers ------------------------------------------------------------------------------------------


def test_strangers_are_counted_and_change_nothing(peers: Peers, tmp_path: Path) -> None:
    served = peers.serve(IMAGE)
    before = served.store.used_bytes()
    manifest = encode(GetManifest(id=1, digest=IMAGE.digest))
    put = encode(Put(id=1, push="p", hash=b"h" * 32))
    strange = [
        framed(b"", None),
        framed(b"\xff" * 100, None),
        framed(manifest, b"data"),
        framed(put, None),
        framed(encode(Done(id=1)), None),
        PREFIX.pack(100_000, -1),
        PREFIX.pack(-1, -1),
        PREFIX.pack(len(manifest), -2),
        PREFIX.pack(len(put), MAX_DATA_BYTES + 1) + put,
        b"GET / HTTP/1.0\r\n\r\n",
    ]
    for data in strange:
        with socket.create_connection(address_of(served.holder.endpoint)[1], timeout=10) as stranger:
            stranger.sendall(data)
            assert stranger.recv(1) == b"", "the connection is closed"
    assert served.server.counters().rejected == len(strange)
    with socket.create_connection(address_of(served.holder.endpoint)[1]) as half:
        half.sendall(framed(put, bytes(1000))[:-1])
    assert fetched(peers, tmp_path / "out", served.holder).dropped == []
    assert served.store.used_bytes() == before


def test_a_put_without_a_push_or_with_other_bytes_is_refused(peers: Peers) -> None:
    served = peers.serve()
    with Links() as links:
        links.open(served.holder)
        links.send("s1", Put(id=7, push="p", hash=b"h" * 32), b"other bytes")
        links.send("s1", Put(id=8, push="p", hash=IMAGE.chunks[0].hash), IMAGE.chunks[0].data)
        links.send("s1", GetChunk(id=9, hash=b"h" * 32))
        answers: list[Refused] = []

        def all_three() -> bool:
            answers.extend(
                e.answer for e in links.poll(0.1) if isinstance(e, Arrived) and isinstance(e.answer, Refused)
            )
            return len(answers) == 3

        wait_until(all_three, what="three refusals")
    assert sorted((a.id, a.code) for a in answers) == [(7, "refused"), (8, "unknown_push"), (9, "not_found")]
    assert served.store.used_bytes() == 0


def test_who_asks_and_does_not_read_waits_for_itself_alone(
    peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = random_image(3 * CHUNK_BYTES, chunk_bytes=CHUNK_BYTES)
    served = peers.serve(image)
    with socket.create_connection(address_of(served.holder.endpoint)[1]) as greedy:
        greedy.setblocking(False)
        requests = b"".join(
            framed(encode(GetChunk(id=n, hash=image.chunks[n % 3].hash)), None) for n in range(200 * PEER_REQUESTS)
        )

        def sent() -> bool:
            nonlocal requests
            try:
                requests = requests[greedy.send(requests) :]
            except BlockingIOError:
                return True
            return not requests

        wait_until(sent, what="the server to read no more, or to have all")
        report = fetch(image.digest, [served.holder], tmp_path / "image")
        assert report.bytes_by_holder == {"s1": image.manifest.size}
        assert served.server.counters().chunks_out < 3 * PEER_REQUESTS
        assert served.server.counters().peers == 1
        monkeypatch.setattr("fabric.images.server.SILENT_S", 0.1)
        wait_until(lambda: served.server.counters().peers == 0, what="the greedy peer to be forgotten")
    assert served.server.counters().rejected == 1


def test_a_port_in_use_is_a_clear_error(peers: Peers, tmp_path: Path) -> None:
    served = peers.serve()
    other = ChunkServer(served.store, served.holder.endpoint)
    with pytest.raises(EndpointError, match="the port is in use"):
        other.start()
    other.stop()
    with pytest.raises(EndpointError, match="can't serve chunks at tcp://"):
        ChunkServer(served.store, "tcp://not-a-host-at-all:1").start()


def test_the_advertised_host_is_told(peers: Peers, tmp_path: Path) -> None:
    store = ChunkStore(tmp_path / "advertised")
    server = ChunkServer(store, "tcp://127.0.0.1:*", advertise="storage-7.example")
    endpoint = server.start()
    server.stop()
    server.stop()
    store.close()
    assert endpoint.startswith("tcp://storage-7.example:")
    assert int(endpoint.rpartition(":")[2]) > 0


# -- replicating -------------------------------------------------------------------------------------------------------


def test_a_copy_takes_only_what_is_not_there(peers: Peers) -> None:
    similar = image_of(IMAGE.data[: 30 * 65536] + b"another end", 65536)
    a, b = peers.serve(IMAGE), peers.serve(similar)
    report = replicate(b.store, IMAGE.digest, [a.holder])
    assert report.chunks == 11
    assert read_image(b.store, IMAGE.digest) == IMAGE.data


def test_a_copy_that_does_not_fit_leaves_nothing(peers: Peers) -> None:
    a, small = peers.serve(IMAGE), peers.serve(max_bytes=100_000)
    with pytest.raises(StoreFull):
        replicate(small.store, IMAGE.digest, [a.holder])
    assert (small.store.used_bytes(), small.store.pushes(), small.store.held()) == (0, 0, [])
