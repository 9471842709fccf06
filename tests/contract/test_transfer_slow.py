"""Narrow links: a chunk takes longer than anybody may be silent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.images.errors import FetchFailed
from fabric.images.fetch import fetch
from tests.unit.images.content import random_image
from tests.unit.images.peers import Peers, answering, peers_in

IMAGE = random_image(2 * 65536, chunk_bytes=65536)
STALL_S = 0.5


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peers]:
    monkeypatch.setattr("fabric.images.fetch._COUNT_EVERY_S", 0.05)
    with peers_in(tmp_path) as made:
        yield made


def test_a_holder_that_sends_a_chunk_slowly_is_not_dropped(peers: Peers, tmp_path: Path) -> None:
    slow = peers.misbehave(answering(IMAGE, lambda n, data: data), piece_bytes=16384, pause_s=STALL_S / 3)
    report = fetch(IMAGE.digest, [slow], tmp_path / "image", stall_s=STALL_S)
    assert report.dropped == []
    assert report.seconds > STALL_S
    assert (tmp_path / "image").read_bytes() == IMAGE.data


def test_a_holder_that_stops_in_a_chunk_is_dropped_though_a_trickle_comes(peers: Peers, tmp_path: Path) -> None:
    trickling = peers.misbehave(answering(IMAGE, lambda n, data: data), piece_bytes=100, pause_s=STALL_S / 10)
    with pytest.raises(FetchFailed, match=f"sent no manifest for {STALL_S:g} s|sent nothing for {STALL_S:g} s"):
        fetch(IMAGE.digest, [trickling], tmp_path / "image", stall_s=STALL_S)
    assert not (tmp_path / "image").exists()
