"""Narrow links: a chunk takes longer than anybody may be silent."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.images.errors import FetchFailed
from fabric.images.fetch import fetch
from fabric.images.manifest import CHUNK_BYTES, chunk_hash
from fabric.images.protocol import Done, Put, Refused, decode_answer, encode
from fabric.images.push import Push
from fabric.images.wire import address_of
from tests.unit.images.content import random_image
from tests.unit.images.peers import Peers, answering, framed, peers_in, send_slowly, unframed

IMAGE = random_image(2 * 65536, chunk_bytes=65536)
STALL_S = 0.5


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peers]:
    monkeypatch.setattr("fabric.images.fetch._COUNT_EVERY_S", 0.05)
    monkeypatch.setattr("fabric.images.push.COUNT_EVERY_S", 0.05)
    with peers_in(tmp_path) as made:
        yield made


def test_a_holder_that_sends_a_chunk_slowly_is_not_dropped(peers: Peers, tmp_path: Path) -> None:
    slow = peers.misbehave(answering(IMAGE, lambda n, data: data), piece_bytes=16384, pause_s=STALL_S / 3)
    report = fetch(IMAGE.digest, [slow], tmp_path / "image", stall_s=STALL_S)
    assert report.dropped == []
    assert report.seconds > STALL_S
    assert (tmp_path / "image").read_bytes() == IMAGE.data


def test_a_holder_of_which_a_trickle_comes_is_dropped(peers: Peers, tmp_path: Path) -> None:
    trickling = peers.misbehave(answering(IMAGE, lambda n, data: data), piece_bytes=100, pause_s=STALL_S / 10)
    with pytest.raises(FetchFailed, match=f"sent (no manifest|nothing) for {STALL_S:g} s"):
        fetch(IMAGE.digest, [trickling], tmp_path / "image", stall_s=STALL_S)
    assert not (tmp_path / "image").exists()


def test_a_target_that_takes_a_chunk_slowly_is_not_lost(peers: Peers) -> None:
    upload = os.urandom(CHUNK_BYTES)
    slow = peers.misbehave(lambda request: (Done(id=request.id), None), piece_bytes=CHUNK_BYTES // 8, pause_s=0.1)
    with Push([slow, peers.serve().holder], stall_s=STALL_S) as push:
        push.feed(upload)
        result = push.finish()
    assert [holder.node for holder in result.holders] == [slow.node, "s2"]
    assert result.seconds > STALL_S


def test_who_sends_a_chunk_slowly_is_not_silent(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.server.SILENT_S", STALL_S)
    monkeypatch.setattr("fabric.images.server.SWEEP_S", STALL_S / 10)
    served = peers.serve()
    data = os.urandom(CHUNK_BYTES)
    put = framed(encode(Put(id=7, push="none", hash=chunk_hash(data))), data)
    with socket.create_connection(address_of(served.holder.endpoint)[1], timeout=10) as slow:
        send_slowly(slow, put, CHUNK_BYTES // 8, STALL_S / 4, threading.Event())
        answer = unframed(bytearray(slow.recv(65536)))
    assert answer is not None
    assert isinstance(decode_answer(answer[0], None), Refused)
    assert served.server.counters().rejected == 0
