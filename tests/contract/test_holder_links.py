"""Connections to holders: what came before they broke counts, wherever that is, and nothing of them is left."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fabric.images.fetch import fetch
from fabric.images.links import Arrived, Links, Lost
from fabric.images.manifest import MAX_CHUNKS
from fabric.images.protocol import Data, Done, GetManifest, Holder, encode
from tests.unit.images.content import random_image
from tests.unit.images.peers import Peers, framed
from tests.waiting import wait_until

IMAGE = random_image(3 * 4096 + 9, chunk_bytes=4096)


@contextmanager
def saying(*streams: bytes) -> Iterator[Holder]:
    """A holder that says these to the first who asks something, one each time it hears of it, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            asker = listener.accept()[0]
            with asker:
                for stream in streams:
                    asker.recv(1 << 16)
                    asker.sendall(stream)
                asker.shutdown(socket.SHUT_WR)
                while asker.recv(1 << 16):
                    pass

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield Holder("cut", "r-cut", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(10)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_answers_that_came_in_one_piece_all_arrive_before_the_end_is_told() -> None:
    stream = b"".join(framed(encode(Done(id=number)), None) for number in range(100))
    before = open_files()
    with saying(stream) as holder, Links() as links:
        links.open(holder)
        links.send("cut", GetManifest(id=1, digest=IMAGE.digest))
        found: list[Arrived | Lost] = []
        wait_until(lambda: found.extend(links.poll(1)) or len(found) == 101, what="all of them, and the end")
        assert [one.answer.id for one in found if isinstance(one, Arrived)] == list(range(100))
        assert found[-1] == Lost("cut", "connection lost")
        assert links.nodes() == ()
    assert open_files() == before


def test_a_connection_may_break_after_any_byte(peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.fetch.MORE_PAUSE_S", 0.01)
    living = peers.serve(IMAGE)
    manifest = framed(encode(Data(id=MAX_CHUNKS)), IMAGE.manifest.encode())
    first, second = (framed(encode(Data(id=number)), bytes(IMAGE.chunks[number].data)) for number in (0, 1))
    said = [(manifest[:at],) for at in (0, 1, 7, 8, 9, 30, 60, len(manifest) - 1)]
    said += [(manifest, (first + second)[:at]) for at in (0, 5, 30, 4000, len(first) - 1, len(first), len(first) + 3)]
    before = open_files()
    for number, streams in enumerate(said):
        with saying(*streams) as cut:
            into = tmp_path / str(number)
            report = fetch(IMAGE.digest, [cut], into, more=lambda excluded: [living.holder])
        assert into.read_bytes() == IMAGE.data
        assert [(drop.node, drop.reason) for drop in report.dropped] == [("cut", "connection lost")]
        assert report.bytes_by_holder.get("cut", 0) == (4096 if len(streams[-1]) >= len(first) else 0)
    wait_until(lambda: open_files() == before, what="all to be closed, also by the server")


def test_who_opens_a_link_again_is_not_told_how_the_one_before_ended(peers: Peers) -> None:
    living = peers.serve(IMAGE).holder
    with Links() as links:
        links.open(Holder(living.node, "r", "no endpoint"))
        links.open(living)
        links.send(living.node, GetManifest(id=1, digest=IMAGE.digest))
        found: list[Arrived | Lost] = []
        wait_until(lambda: found.extend(links.poll(1)) or bool(found), what="the answer")
        assert [type(one) for one in found] == [Arrived]
        links.open(Holder(living.node, "r", "no endpoint"))
        links.drop(living.node)
        assert list(links.poll(0)) == []
