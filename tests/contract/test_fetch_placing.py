"""A fetch over real sockets that places large bodies as they come: all of it, or nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fabric.images.errors import FetchCancelled, FetchFailed
from fabric.images.fetch import fetch
from fabric.images.hollow import Parts
from fabric.images.tarwalk import Limits
from tests.unit.images.content import image_of, random_image
from tests.unit.images.peers import Peers
from tests.unit.images.rack import Once
from tests.unit.images.test_archive import START, member, tar_of

DATA = random_image(40 * 65536 + 99).data
ARCHIVE = image_of(tar_of(START, member("a", DATA), member("small"), member("b", DATA[:99_999])), 65536)


def test_large_bodies_of_an_archive_are_placed_beside_the_file_if_asked_for(peers: Peers, tmp_path: Path) -> None:
    holders = [peers.serve(ARCHIVE).holder, peers.serve(ARCHIVE).holder]
    report = fetch(ARCHIVE.digest, holders, tmp_path / "out", place=Limits())
    placed = report.placed
    assert placed is not None
    assert [(placed.folder / part.path).read_bytes() for part in placed.parts] == [DATA, DATA[:99_999]]
    assert placed.folder.parent == tmp_path
    assert b"".join(Parts(tmp_path / "out", placed.folder, placed.parts).pieces()) == ARCHIVE.data
    assert fetch(ARCHIVE.digest, holders, tmp_path / "plain").placed is None
    assert (tmp_path / "plain").read_bytes() == ARCHIVE.data


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_fetch_that_places_and_does_not_end_leaves_nothing(peers: Peers, tmp_path: Path, how: str) -> None:
    cancelled, served = threading.Event(), peers.serve(ARCHIVE)
    (tmp_path / "out").mkdir()

    def stop() -> None:
        assert len(os.listdir(tmp_path / "out")) == 2, "there is something to leave"
        if how == "cancelled":
            cancelled.set()
        else:
            served.server.stop()

    with pytest.raises(FetchCancelled if how == "cancelled" else FetchFailed):
        fetch(
            ARCHIVE.digest,
            [served.holder],
            tmp_path / "out" / "image",
            cancelled=cancelled,
            progress=Once(ARCHIVE.manifest.size // 2, stop),
            place=Limits(),
        )
    assert os.listdir(tmp_path / "out") == []
