"""Bytes in files on their way to a socket: all, in order, whatever becomes of the files; then they are closed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fabric.images.stretch import Holes, Segment, Stretch


def opened(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDWR)


def test_segments_are_sent_in_order_from_files_that_are_gone_by_name(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "a", b"0123456789"), opened(tmp_path / "b", b"abcdef")
    ended: list[str] = []
    stretch = Stretch(
        [Segment(one, 2, 3), Segment(other, 0, 6), Segment(one, 9, 1)], ended=lambda: ended.append("once")
    )
    for name in ("a", "b"):
        (tmp_path / name).unlink()
    assert (stretch.size, stretch.read()) == (10, b"234abcdef9")
    here, there = socket.socketpair()
    with here, there:
        while stretch:
            stretch.send(here.fileno())
        assert there.recv(100) == b"234abcdef9"
    stretch.close()
    stretch.close()
    assert ended == ["once"]
    for fd in (one, other):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_what_a_full_socket_does_not_take_is_sent_later(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    stretch = Stretch([Segment(opened(tmp_path / "a", data), 0, len(data))])
    here, there = socket.socketpair()
    found = bytearray()
    with here, there:
        here.setblocking(False)
        while stretch:
            try:
                stretch.send(here.fileno())
            except BlockingIOError:
                found += there.recv(1 << 16)
        here.close()
        while piece := there.recv(1 << 20):
            found += piece
    assert found == data
    stretch.close()


def test_a_file_that_was_cut_off_is_told(tmp_path: Path) -> None:
    fd = opened(tmp_path / "a", b"12345")
    here, there = socket.socketpair()
    with here, there:
        stretch = Stretch([Segment(fd, 3, 4)])
        with pytest.raises(EOFError, match="expected 2 more bytes"):
            stretch.read()
        assert stretch.send(here.fileno()) == 2
        with pytest.raises(EOFError, match="expected 2 more bytes"):
            stretch.send(here.fileno())
        stretch.close()


def test_a_hole_waits_for_all_who_read_there_and_for_nobody_else() -> None:
    cut: list[tuple[int, int, int]] = []
    holes = Holes(lambda *hole: cut.append(hole))
    first, second, elsewhere = holes.use([(0, 10), (40, 50)]), holes.use([(5, 20)]), holes.use([(60, 70)])
    holes.cut(1, 20, 40)
    assert cut == [(1, 20, 40)], "between what is read"
    holes.cut(1, 8, 12)
    holes.cut(1, 45, 60)
    assert len(cut) == 1
    holes.end(first, 2)
    assert cut[1:] == [(2, 45, 60)]
    holes.end(elsewhere, 3)
    assert len(cut) == 2
    holes.end(second, 4)
    assert cut[2:] == [(4, 8, 12)]
    holes.cut(5, 0, 100)
    assert cut[3:] == [(5, 0, 100)]
