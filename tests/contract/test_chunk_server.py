"""A chunk server and who connects to it: whatever one of them does, the others are served, and all ends some day."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from pathlib import Path

import pytest

from fabric.images import links
from fabric.images.errors import EndpointError
from fabric.images.fetch import fetch
from fabric.images.manifest import CHUNK_BYTES
from fabric.images.protocol import Begin, GetChunk, GetHave, Put, Request, decode_answer, encode
from fabric.images.push import Push
from fabric.images.server import ChunkServer
from fabric.images.wire import address_of
from tests.unit.images.content import random_image
from tests.unit.images.peers import Peers, Served, framed, unframed
from tests.waiting import wait_until

IMAGE = random_image(5 * 65536 + 99, chunk_bytes=65536)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is silent is parted with soon."""
    monkeypatch.setattr("fabric.images.server.SILENT_S", 0.4)
    monkeypatch.setattr("fabric.images.server.SWEEP_S", 0.05)


def connected(served: Served) -> socket.socket:
    return socket.create_connection(address_of(served.holder.endpoint)[1], timeout=5)


def ask(stranger: socket.socket, *requests: Request) -> None:
    stranger.sendall(b"".join(framed(encode(request), None) for request in requests))


def answers(stranger: socket.socket, count: int) -> list[tuple[str, int]]:
    """The kinds and ids of so many answers; fewer if the connection is closed before."""
    found: list[tuple[str, int]] = []
    stream = bytearray()
    while len(found) < count and (came := stranger.recv(1 << 16)):
        stream += came
        while (message := unframed(stream)) is not None:
            answer = decode_answer(message[0], None if message[1] is None else len(message[1]))
            found.append((type(answer).__name__, answer.id))
    return found


def is_closed(stranger: socket.socket) -> bool:
    try:
        return stranger.recv(1) == b""
    except ConnectionResetError:  # it was, with something unread
        return True


def pass_s(seconds: float) -> None:
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > seconds, what="some time to pass")


def test_requests_that_came_in_one_piece_are_all_answered(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that the server has and did not look at, because it owed too much."""
    monkeypatch.setattr("fabric.images.callers.PEER_BYTES", 1)
    with connected(peers.serve(IMAGE)) as stranger:
        ask(stranger, *(GetHave(id=number, digest=IMAGE.digest) for number in range(9)))
        assert answers(stranger, 9) == [("Have", number) for number in range(9)]


def test_one_who_is_gone_while_nothing_is_wanted_of_it_is_forgotten_at_once(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.images.server.MAX_BODIES", 0)
    served = peers.serve()
    with connected(served) as gone:
        gone.sendall(framed(encode(Put(id=1, push="p", hash=b"h" * 32)), b"data"))
        wait_until(lambda: any(c.incoming.hungry for c in served.server._callers.values()), what="it to be put off")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    wait_until(lambda: not served.server._callers, timeout_s=5, what="the server to notice")


def test_an_error_of_our_own_costs_one_connection(
    peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = peers.serve(IMAGE)

    def broken(digest: str) -> bytes:
        raise RuntimeError(digest)

    monkeypatch.setattr(served.store, "have", broken)
    with connected(served) as stranger:
        ask(stranger, GetHave(id=1, digest=IMAGE.digest))
        assert stranger.recv(1) == b""
    assert fetch(IMAGE.digest, [served.holder], tmp_path / "image").dropped == []


def test_a_file_that_is_cut_off_while_it_is_sent_ends_the_connection_and_is_found_out(
    peers: Peers, tmp_path: Path
) -> None:
    served = peers.serve(IMAGE)
    request = GetChunk(id=1, hash=IMAGE.chunks[0].hash)
    with connected(served) as asker:
        ask(asker, request)
        assert answers(asker, 1) == [("Data", 1)]
    os.truncate(tmp_path / "store-1" / "chunks" / request.hash.hex(), 1000)
    with connected(served) as asker:
        ask(asker, request)
        assert answers(asker, 1) == [], "the rest does not come"
    served.store._clock = lambda: time.monotonic() + 60
    with connected(served) as asker:
        ask(asker, request)
        assert answers(asker, 1) == [("Refused", 1)]
    assert served.store.damaged() == [IMAGE.digest]


@pytest.mark.usefixtures("strict")
def test_who_sends_slowly_is_heard_out_and_who_stops_is_not(peers: Peers) -> None:
    served = peers.serve()
    message = framed(encode(Put(id=1, push="p", hash=b"h" * 32)), bytes(100_000))
    with connected(served) as slow, connected(served) as silent:
        silent.sendall(message[:50_000])
        for at in range(0, len(message), 10_000):
            slow.sendall(message[at : at + 10_000])
            pass_s(0.1)
        assert answers(slow, 1) == [("Refused", 1)]
        assert is_closed(silent)
    assert served.server.counters().rejected == 1


@pytest.mark.usefixtures("strict")
def test_who_waits_for_memory_is_not_silent(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others have it all, however long they take."""
    monkeypatch.setattr("fabric.images.server.MAX_BODIES", 1)
    served = peers.serve()
    message = framed(encode(Put(id=1, push="p", hash=b"h" * 32)), bytes(1000))
    with connected(served) as first, connected(served) as second:
        buffers = served.server._buffers
        taken = buffers.take(1)
        assert taken is not None
        second.sendall(message)
        pass_s(1.0)
        buffers.give_back(taken)
        first.sendall(message)
        assert answers(first, 1) + answers(second, 1) == [("Refused", 1), ("Refused", 1)]


@pytest.mark.usefixtures("strict")
def test_a_push_may_pause_between_two_chunks(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs in it then; so nothing may be left half sent."""

    def narrow(made: socket.socket) -> None:
        set_up(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)

    set_up = links.set_up
    monkeypatch.setattr("fabric.images.links.set_up", narrow)
    one, other = peers.serve(), peers.serve()
    content = os.urandom(2 * CHUNK_BYTES)
    with Push([one.holder, other.holder]) as push:
        push.feed(content[: CHUNK_BYTES + 1])
        pass_s(1.0)
        push.feed(content[CHUNK_BYTES + 1 :])
        assert len(push.finish().holders) == 2
    assert [each.server.counters().rejected for each in (one, other)] == [0, 0]


@pytest.mark.usefixtures("strict")
def test_those_who_ask_for_nothing_make_room_for_others(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.server.MAX_CALLERS", 2)
    served = peers.serve(IMAGE)
    with connected(served) as idle, connected(served) as busy:
        ask(idle, GetHave(id=1, digest=IMAGE.digest))
        assert answers(idle, 1) == [("Have", 1)]

        def served_too() -> bool:
            ask(busy, GetHave(id=2, digest=IMAGE.digest))
            assert answers(busy, 1) == [("Have", 2)]
            with connected(served) as third:
                try:
                    ask(third, GetHave(id=3, digest=IMAGE.digest))
                    return answers(third, 1) == [("Have", 3)]
                except ConnectionError:
                    return False

        wait_until(served_too, what="the third to be served")
        assert idle.recv(1) == b""


def test_a_disk_that_removes_nothing_does_not_keep_the_server_from_stopping(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(push_id: str) -> None:
        raise OSError(errno.EROFS, f"Read-only file system: {push_id}")

    served = peers.serve()
    with monkeypatch.context() as disk, connected(served) as gone, connected(served) as stays:
        disk.setattr(served.store, "abort", refuse)
        ask(gone, Begin(id=1, push="p"))
        ask(stays, Begin(id=2, push="q"))
        assert answers(gone, 1) + answers(stays, 1) == [("Done", 1), ("Done", 2)]
        gone.close()
        ask(stays, Begin(id=3, push="q"))
        assert answers(stays, 1) == [("Done", 3)]
        served.server.stop()
    again = ChunkServer(served.store, served.holder.endpoint)
    assert again.start() == served.holder.endpoint, "the port is free"
    again.stop()


def test_too_few_files_at_the_start_is_a_clear_error_and_leaves_none(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = peers.serve().store

    def none_left() -> select.epoll:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("select.epoll", none_left)
    server = ChunkServer(store)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EndpointError, match="Too many open files"):
        server.start()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_endpoint_of_ipv6_is_for_both(peers: Peers) -> None:
    server = ChunkServer(peers.serve().store, "tcp://[::ffff:127.0.0.1]:*")
    port = int(server.start().rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    server.stop()
