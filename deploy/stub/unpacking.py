"""Unpacking a tar archive of installation code into the managent's folder.

The rules for its members are those for images (fabric.images.tarwalk): nothing gets out of the folder, nothing but
files, folders and links, bounded in number and size. Other than an image it may be written to: what it unpacks is the
managent's own, and goes with it. Unpacked over what an earlier installation left, it replaces files of the same name.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from fabric.images.inflate import inflater
from fabric.images.tarstream import Receiver, TarStream
from fabric.images.tarwalk import Body, Layout, Limits, Member

READ_BYTES = 1 << 18
MAX_MEMBERS = 65_536


def unpack_code(archive: Path, into: Path, unpacked_bytes: int) -> frozenset[str]:
    """The files and links at its top. Blocks. `into` is there. Raises fabric.images.errors.BadImage, OSError."""
    limits = Limits(members=MAX_MEMBERS, unpacked_bytes=unpacked_bytes)
    extractor = _Extractor(str(into))
    stream = TarStream(limits, Layout(limits), extractor)
    try:
        with archive.open("rb") as source:
            data = source.read(READ_BYTES)
            inflate = inflater(data)
            while data and not stream.ended:
                for piece in inflate.feed(data):
                    if not stream.ended:  # what follows the end mark is padding
                        stream.feed(piece)
                data = source.read(READ_BYTES)
        if not stream.ended:
            inflate.finish()
        stream.finish()
    finally:
        extractor.close()
    return frozenset(extractor.at_top)


class _Extractor(Receiver):
    """Writes members below `root`. The layout makes sure that their parents are folders of the archive; what was there
    before and is no folder makes room for one, so that no link of an earlier time is followed."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._fd = -1
        self.at_top: set[str] = set()

    def begin(self, body: Body) -> None:
        member = body.member
        for parent in body.parents:
            self._folder(self._at(parent))
        path = self._at(member.path)
        if member.kind == "folder":
            self._folder(path)
            return
        if "/" not in member.path:
            self.at_top.add(member.path)
        self._clear(path)
        if member.kind == "symlink":
            os.symlink(member.target, path)
        elif member.kind == "hardlink":
            os.link(self._at(member.target), path, follow_symlinks=False)
        else:
            mode = 0o755 if member.kind == "program" else 0o644
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)

    def data(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def end(self, member: Member) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _folder(self, path: str) -> None:
        if not os.path.isdir(path) or os.path.islink(path):
            self._clear(path)
            os.mkdir(path, 0o755)

    def _clear(self, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root
