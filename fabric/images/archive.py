"""What an image may be, checked while it is uploaded and again while it is unpacked.

An image is one executable file (an ELF binary, or a script that begins with "#!"), or a tar archive, plain or
compressed with gzip or xz, that has an executable regular file `entrypoint` at its root and keeps the rules of
`fabric.images.tarwalk`.

    checker = Checker()                          # constant memory, whatever the size
    for data in upload: checker.feed(data)       # raises BadImage as soon as it is known
    checker.finish()

    prepared = unpack(blob, folder)              # the same rules, from a file; prepared.entrypoint is to be run

Unpacking writes files without write permission and without setuid, owned by whoever unpacks; times and owners of the
archive are not taken over. From a plain archive file bodies are copied inside the kernel, or, if they are files already
(`fabric.images.placing`), these are taken over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fabric.images.errors import BadImage
from fabric.images.hollow import Moved, Placed, copy
from fabric.images.inflate import Gzip, Plain, Xz, inflater
from fabric.images.manifest import Buffer
from fabric.images.tarstream import Receiver, TarStream
from fabric.images.tarwalk import Body, Layout, Limits, Member, Need, NotTar, Walked, walk

ENTRYPOINT = "entrypoint"
_HEAD_BYTES = 6
_READ_BYTES = 1 << 18
_COPY_BYTES = 1 << 30
_BLOCK_BYTES = 4096
"""What a file takes on the disk is a multiple of this."""
_KNOWN_HEADS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2 data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"QFI\xfb": "a qcow2 disk",
    b"<": "markup, such as an error page",
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An unpacked image: its folder, and the file in it to run."""

    root: Path
    entrypoint: Path


def is_program(head: bytes) -> bool:
    """Whether a file that begins with `head` is a single executable."""
    return head.startswith((b"\x7fELF", b"#!"))


def is_plain(head: bytes) -> bool:
    """Whether a file that begins with `head` is an archive that isn't compressed, if it is one."""
    return not is_program(head) and isinstance(inflater(head), Plain)


class Checker:
    """Checks an image as it comes. Raises `BadImage` from `feed` as soon as it is known, or from `finish`."""

    def __init__(self, limits: Limits | None = None, receiver: Receiver | None = None) -> None:
        """`receiver` is told of every member of an archive, with its content."""
        self.layout = Layout(limits or Limits())
        self._head = b""
        self._decided = False
        self._inflate: Plain | Gzip | Xz = Plain()
        self._stream: TarStream | None = TarStream(limits or Limits(), self.layout, receiver or Receiver())

    def feed(self, data: Buffer) -> None:
        if not self._decided:
            self._head += bytes(data)
            if len(self._head) < _HEAD_BYTES:
                return
            data = self._decide()
        self._read(data)

    def finish(self) -> None:
        """The image is complete."""
        if not self._decided:
            self._read(self._decide())
        if self._stream is None:
            return
        if not self._stream.ended:
            self._inflate.finish()
        try:
            self._stream.finish()
        except NotTar as error:
            raise _neither(self._head, error) from None
        check_entrypoint(self.layout)

    def _decide(self) -> bytes:
        head, self._head, self._decided = self._head, self._head[:_HEAD_BYTES], True
        self._inflate = inflater(head)
        if is_program(head):
            self._stream = None
        return head

    def _read(self, data: Buffer) -> None:
        if self._stream is None or self._stream.ended:
            return
        try:
            for piece in self._inflate.feed(data):
                self._stream.feed(piece)
                if self._stream.ended:
                    return  # what follows the end mark is padding
        except NotTar as error:
            raise _neither(self._head, error) from None


def _neither(head: bytes, error: NotTar) -> BadImage:
    if not isinstance(inflater(head), Plain):
        return BadImage(f"expected compressed data of a tar archive, found something else in it ({error})")
    found = next((name for known, name in _KNOWN_HEADS.items() if head.startswith(known)), None)
    return BadImage(
        "expected a tar archive (plain, gzip or xz) or one executable (an ELF binary, or a script that begins with "
        f"'#!'), found {found or f'data that begins with {head!r}'}"
    )


def check_entrypoint(layout: Layout) -> None:
    """Raises `BadImage` if the archive has nothing to start."""
    found = layout.kinds.get(ENTRYPOINT)
    if found == "program":
        return
    if found == "file":
        raise BadImage(f"member {ENTRYPOINT!r}: expected an executable file, found one without execute permission")
    if found is not None:
        raise BadImage(f"member {ENTRYPOINT!r}: expected an executable regular file, found a {found}")
    inside = [path for path in layout.kinds if path.endswith(f"/{ENTRYPOINT}")]
    hint = f", but {min(inside, key=len)!r}: pack the inside of that folder" if inside else ""
    raise BadImage(f"expected an executable file {ENTRYPOINT!r} at the root of the archive, found none{hint}")


def unpack(
    blob: Path,
    into: Path,
    *,
    limits: Limits | None = None,
    room: Callable[[int], None] | None = None,
    placed: Placed | None = None,
) -> tuple[Prepared, tuple[Moved, ...]]:
    """Unpacks the image in the file `blob` to the new folder `into`, in constant memory.

    `room(bytes)` is told before each file what it will take, and may raise to stop. What of a plain archive is `placed`
    is not in the blob: it is renamed into `into`, and the answer says to what. A single executable becomes a hard link
    of the blob, or a copy where that can't be. On any error `into` is removed. Raises `BadImage`, `OSError`.
    """
    into.mkdir()
    limits = limits or Limits()
    extractor = _Extractor(into, room or _any_room, placed)
    walked = placed.walked if placed is not None else None
    if walked is not None and walked.layout.limits != limits:
        walked = None
    try:
        with open(blob, "rb", buffering=0) as source:
            head = os.pread(source.fileno(), _HEAD_BYTES, 0)
            if is_program(head):
                _place_program(blob, into / ENTRYPOINT, room or _any_room)
            else:
                if is_plain(head):
                    layout = _unpack_plain(source.fileno(), limits, extractor, head, walked)
                else:
                    layout = _unpack_stream(source.fileno(), limits, extractor)
                extractor.seal(layout)
    except BaseException:
        remove_tree(into)
        raise
    return Prepared(into, into / ENTRYPOINT), tuple(extractor.moved)


def remove_tree(root: Path) -> None:
    """Removes an unpacked folder, whose folders may not be written to. Nothing happens if it isn't there."""
    if not root.exists():
        return
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o700)
    shutil.rmtree(root)


def _any_room(size: int) -> None:
    """No limit."""


def _place_program(blob: Path, entrypoint: Path, room: Callable[[int], None]) -> None:
    try:
        os.link(blob, entrypoint)
    except OSError:
        room(blob.stat().st_size)
        shutil.copyfile(blob, entrypoint)
    os.chmod(entrypoint, 0o555)
    os.chmod(entrypoint.parent, 0o555)


class _Extractor(Receiver):
    """Writes members below `root`. The layout has made sure that every parent is a real folder in it."""

    def __init__(self, root: Path, room: Callable[[int], None], placed: Placed | None) -> None:
        self.fd = -1  # of the file being written
        self.moved: list[Moved] = []
        self._root = str(root)
        self._room = room
        self._bodies = placed.folder if placed is not None else root
        self._placed = {part.at: part for part in placed.parts} if placed is not None else {}

    def begin(self, body: Body, at: int = -1) -> None:
        """`at`: where in the blob its content is, if that is known."""
        member = body.member
        placed = self._placed.pop(at, None)
        taken = member.size if placed is None else 0
        self._room(_BLOCK_BYTES * (1 + len(body.parents) + taken // _BLOCK_BYTES))
        for parent in body.parents:
            os.mkdir(self._at(parent), 0o755)
        path = self._at(member.path)
        if placed is not None:
            os.chmod(self._bodies / placed.path, _mode(member))
            os.rename(self._bodies / placed.path, path)
            self.moved.append(Moved(at, member.size, member.path))
        elif member.kind == "folder":
            with suppress(FileExistsError):
                os.mkdir(path, 0o755)
        elif member.kind == "symlink":
            os.symlink(member.target, path)
        elif member.kind == "hardlink":
            os.link(self._at(member.target), path, follow_symlinks=False)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(path, flags, 0o600)

    def data(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self.fd, data) :]

    def end(self, member: Member) -> None:
        if self.fd >= 0:
            os.fchmod(self.fd, _mode(member))
            self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def seal(self, layout: Layout) -> None:
        """Takes the write permission from all folders, the inner ones first."""
        for path in sorted((p for p, kind in layout.kinds.items() if kind == "folder"), key=len, reverse=True):
            os.chmod(self._at(path), 0o555)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


def _mode(member: Member) -> int:
    return 0o555 if member.kind == "program" else 0o444


def _unpack_stream(source: int, limits: Limits, extractor: _Extractor) -> Layout:
    checker = Checker(limits, extractor)
    try:
        at = 0
        while data := os.pread(source, _READ_BYTES, at):
            checker.feed(data)
            at += len(data)
        checker.finish()
    finally:
        extractor.close()
    return checker.layout


def _unpack_plain(source: int, limits: Limits, extractor: _Extractor, head: bytes, walked: Walked | None) -> Layout:
    layout = Layout(limits) if walked is None else walked.layout
    try:
        for at, body in _walk_file(source, layout) if walked is None else walked.members:
            extractor.begin(body, at)
            if extractor.fd >= 0:
                _copy(source, at, extractor.fd, body.member)
            extractor.end(body.member)
    except NotTar as error:
        raise _neither(head, error) from None
    finally:
        extractor.close()
    check_entrypoint(layout)
    return layout


def _walk_file(source: int, layout: Layout) -> Iterator[tuple[int, Body]]:
    """Each member, and where its content is."""
    walking = walk(layout.limits, layout)
    at = 0
    answer: bytes | None = None
    try:
        while True:
            wanted = next(walking) if answer is None else walking.send(answer)
            if isinstance(wanted, Need):
                answer = os.pread(source, wanted.bytes, at)
                at += len(answer)
            else:
                yield at, wanted
                answer = b""
                at += wanted.padded_bytes
    except StopIteration:
        return


def _copy(source: int, start: int, into: int, member: Member) -> None:
    """Copies the content of a member inside the kernel."""
    done = 0
    while done < member.size:
        copied = copy(source, start + done, into, done, min(member.size - done, _COPY_BYTES))
        if not copied:
            raise BadImage(
                f"member {member.path!r}: expected {member.size - done} more bytes of its content, found the end of "
                "the input: it was cut off"
            )
        done += copied
