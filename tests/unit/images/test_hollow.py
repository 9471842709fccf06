"""A blob that gave its large bodies away still reads as it was."""

from __future__ import annotations

import gzip
import os
from contextlib import closing
from pathlib import Path

import pytest

from fabric.images.archive import Prepared, remove_tree, unpack
from fabric.images.hollow import MIN_MOVED_BYTES, Moved, Parts, can_punch
from fabric.images.placing import place
from fabric.images.tarwalk import Limits
from tests.unit.images.test_archive import START, member, tar_of

LARGE = os.urandom(3_333_333)
DATA = tar_of(
    START,
    member("a/large", LARGE),
    member("small", b"s" * (MIN_MOVED_BYTES - 1)),
    member("b/other", LARGE[:MIN_MOVED_BYTES]),
)


def unpacked(blob: Path, folder: Path) -> tuple[Prepared, tuple[Moved, ...]]:
    placed = place(blob, folder / "bodies", Limits())
    assert placed is not None
    return unpack(blob, folder / "root", placed=placed)


def read(parts: Parts, at: int, size: int) -> bytes:
    with closing(parts.open(at, size)) as stretch:
        return stretch.read()


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_large_bodies_move_and_the_blob_reads_as_before(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(DATA)
    with open(blob, "r+b") as file:
        if not can_punch(file.fileno()):
            pytest.skip("this file system punches no holes")
    prepared, moved = unpacked(blob, tmp_path)
    root = prepared.root
    assert [(part.path, part.size) for part in moved] == [("a/large", len(LARGE)), ("b/other", MIN_MOVED_BYTES)]
    assert (root / "a/large").read_bytes() == LARGE
    assert blob.stat().st_size == len(DATA)
    assert blocks(blob) < MIN_MOVED_BYTES + 10 * 4096
    assert b"".join(Parts(blob, root, moved).pieces()) == DATA
    assert b"".join(Parts(blob, root, []).pieces()) != DATA
    for at, size in ((0, 9), (500, 100_000), (len(LARGE) - 5, 3_000), (len(DATA) - 7, 7), (0, len(DATA))):
        assert read(Parts(blob, root, moved), at, size) == DATA[at : at + size]
    (root / "a/large").chmod(0o600)
    os.truncate(root / "a/large", len(LARGE) - 1)
    with pytest.raises(EOFError):
        list(Parts(blob, root, moved).pieces())
    remove_tree(root)


def test_a_compressed_archive_and_a_program_stay_whole(tmp_path: Path) -> None:
    for data in (gzip.compress(DATA, 1), b"#!/bin/sh\n" + bytes(100_000)):
        blob = tmp_path / "blob"
        blob.write_bytes(data)
        _, moved = unpacked(blob, tmp_path)
        assert (moved, blob.read_bytes()) == ((), data)
        remove_tree(tmp_path / "root")
        blob.unlink()


def test_where_no_holes_can_be_punched_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.placing.can_punch", lambda fd: False)
    blob = tmp_path / "blob"
    blob.write_bytes(DATA)
    told: list[int] = []
    assert place(blob, tmp_path / "bodies", Limits()) is None
    prepared, moved = unpack(blob, tmp_path / "root", room=told.append)
    root = prepared.root
    assert (moved, blob.read_bytes()) == ((), DATA)
    assert (root / "a/large").read_bytes() == LARGE
    assert sum(told) > len(LARGE)
    remove_tree(root)


def test_bounds_of_a_hole_are_whole_blocks(tmp_path: Path) -> None:
    """Bodies begin at multiples of 512: what shares a block with a header stays."""
    blob = tmp_path / "blob"
    headers = tar_of(START, *(member(f"{n}", bytes([n]) * (MIN_MOVED_BYTES + n * 512 + 7)) for n in range(8)))
    blob.write_bytes(headers)
    prepared, moved = unpacked(blob, tmp_path)
    assert b"".join(Parts(blob, prepared.root, moved).pieces()) == headers
    remove_tree(prepared.root)
