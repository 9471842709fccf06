"""Reading a tar archive from bytes that come in any pieces, and the rules for its members. No files, no
decompression.

`walk` is a generator that says what it needs next, and the driver has the bytes:

    Need(n)              send it the next n bytes (fewer only at the end of the input)
    Body(member, n)      a member; its content is the next `member.size` bytes, padded to n. Send b"" when past them
    return               end of the archive

so the same reading and the same rules serve a check of an upload, an unpacking from a stream, and an unpacking that
copies file bodies inside the kernel without ever seeing them. The header block itself is decoded by the standard
library.

The rules make the paths of an archive mean the same whoever reads them, and keep all of them inside of its folder:

- No absolute path, no "..", no path twice (a folder may be listed again).
- A parent is a folder, never a link or a file: so a member's folder is where its path says.
- A symbolic link has a relative target, with ".." only at its start and not more of them than its folder is deep.
  Then it stays inside whatever it is chained with: ".." is only ever applied to real folders.
- A hard link names an earlier regular file of the archive.
- Nothing else: no devices, no pipes, no sparse files, no links or folders with a content.
- Numbers and sizes are bounded (`Limits`), those of names and of extended headers too, so memory is.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from fabric.images.errors import BadImage, UnpacksTooLarge

BLOCK = tarfile.BLOCKSIZE
"""512: headers and contents are padded to it."""
MAX_EXTENDED_BYTES = 1 << 16
"""A pax or GNU header of a member: its long names."""
MAX_COMPONENT_BYTES = 255

_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

Kind = Literal["file", "program", "folder", "symlink", "hardlink"]
"""A program is a regular file that somebody may execute."""


class NotTar(BadImage):
    """The input does not begin like a tar archive."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may have: members (with the folders they imply), bytes of all contents, bytes of a path and of
    all.
    """

    members: int = 65_536
    unpacked_bytes: int = 64 << 30
    path_bytes: int = 1024
    all_path_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """`path`: relative, without "." or empty parts; "" is the root folder. `target`: of links; a hard link's is a
    path.
    """

    path: str
    kind: Kind
    size: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True)
class Need:
    bytes: int


@dataclass(frozen=True, slots=True)
class Body:
    """`parents`: the folders on the way that were not mentioned before, outermost first."""

    member: Member
    padded_bytes: int
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Walked:
    """An archive that was read to its end and keeps the rules: each member, with the offset of its content."""

    members: Sequence[tuple[int, Body]]
    layout: Layout


class Layout:
    """The paths seen so far, and the rules for the next one."""

    def __init__(self, limits: Limits) -> None:
        self.kinds: dict[str, Kind] = {"": "folder"}
        self.limits = limits
        self._path_bytes = 0
        self._content_bytes = 0

    def add(self, member: Member) -> tuple[str, ...]:
        """Takes a member in; answers with the parents that are new. Raises `BadImage`."""
        path, kind = member.path, member.kind
        if kind == "folder" and self.kinds.get(path) == "folder":
            return ()
        if path in self.kinds:
            raise BadImage(f"member {path!r}: expected each path once, found it again")
        parents = self._new_parents(path)
        if kind == "symlink":
            _check_symlink(member)
        if kind == "hardlink":
            found = self.kinds.get(member.target)
            if found not in ("file", "program"):
                raise BadImage(
                    f"member {path!r}: expected a hard link to an earlier regular file of the archive, "
                    f"found one to {member.target!r}"
                )
            kind = found
        self._content_bytes += member.size
        if self._content_bytes > self.limits.unpacked_bytes:
            raise UnpacksTooLarge(
                f"member {path!r}: expected at most {self.limits.unpacked_bytes} bytes of contents, "
                f"found {self._content_bytes} up to here"
            )
        for new in (*parents, path):
            self.kinds[new] = "folder"
            self._path_bytes += len(new.encode())
        self.kinds[path] = kind
        if len(self.kinds) - 1 > self.limits.members:
            raise BadImage(f"member {path!r}: expected at most {self.limits.members} members, found more")
        if self._path_bytes > self.limits.all_path_bytes:
            raise BadImage(f"member {path!r}: expected paths of {self.limits.all_path_bytes} bytes in all, found more")
        return parents

    def _new_parents(self, path: str) -> tuple[str, ...]:
        parts = path.split("/")[:-1]
        new: list[str] = []
        for depth in range(len(parts)):
            parent = "/".join(parts[: depth + 1])
            kind = self.kinds.get(parent)
            if kind is None:
                new.append(parent)
            elif kind != "folder":
                raise BadImage(f"member {path!r}: expected {parent!r} to be a folder, found a {kind} of that name")
        return tuple(new)


def walk(limits: Limits, layout: Layout) -> Generator[Need | Body, bytes, None]:
    """Reads one archive; see the module for what it yields. Raises `BadImage`."""
    long: dict[str, str] = {}  # what extended headers say of the next member
    headers = 0
    while True:
        block = yield Need(BLOCK)
        if len(block) < BLOCK:
            if not headers:
                raise NotTar(f"it ends within the first {BLOCK} bytes")
            raise BadImage("expected a tar archive with its end mark, found the end of the input: it was cut off")
        if not any(block):
            if long:
                raise BadImage("expected a member after an extended header, found the end of the archive")
            return
        headers += 1
        if headers > 4 * limits.members:
            raise BadImage(f"expected at most {limits.members} members, found more headers than these can have")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            if headers == 1:
                raise NotTar(str(error)) from None
            raise BadImage(f"header {headers}: expected that of a tar member, found {error}") from None
        if info.size < 0:
            raise BadImage(f"member {info.name!r}: expected a size, found {info.size}")
        if info.type in _EXTENDED:
            if info.size > MAX_EXTENDED_BYTES:
                raise BadImage(
                    f"member {info.name!r}: expected an extended header of at most {MAX_EXTENDED_BYTES} bytes, "
                    f"found {info.size}"
                )
            data = yield Need(_padded(info.size))
            if len(data) < _padded(info.size):
                raise BadImage(f"member {info.name!r}: expected an extended header, found the end of the input")
            _extend(long, info, data[: info.size])
            continue
        member = _member(info, long, limits)
        long = {}
        parents = layout.add(member)
        yield Body(member, _padded(member.size), parents)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _extend(long: dict[str, str], info: tarfile.TarInfo, data: bytes) -> None:
    if info.type == tarfile.GNUTYPE_LONGNAME:
        long["path"] = _text(data.rstrip(b"\0"))
    elif info.type == tarfile.GNUTYPE_LONGLINK:
        long["linkpath"] = _text(data.rstrip(b"\0"))
    else:
        records = _pax_records(info.name, data)
        if any(key.startswith("GNU.sparse") for key in records):
            raise BadImage(
                f"member {info.name!r}: expected a file in full, found a sparse one: pack it without --sparse"
            )
        known = {key: value for key, value in records.items() if key in ("path", "linkpath", "size")}
        if info.type == tarfile.XGLTYPE and known:
            raise BadImage(
                f"expected names and sizes in each member's own header, found {sorted(known)} in a global one"
            )
        long.update(known)


def _pax_records(name: str, data: bytes) -> dict[str, str]:
    """The records `<length> <key>=<value>\\n` of a pax header; the length is that of the whole record in bytes."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, _, rest = data[:20].partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        key, equals, value = data[len(digits) + 1 : length].partition(b"=")
        if not rest or not equals or not value.endswith(b"\n") or length > len(data):
            raise BadImage(f"member {name!r}: expected pax records, found something else")
        records[_text(key)] = _text(value[:-1])
        data = data[length:]
    return records


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _member(info: tarfile.TarInfo, long: dict[str, str], limits: Limits) -> Member:
    name = long.get("path", info.name)
    path = _path(name, limits)
    size = info.size
    if "size" in long:
        if not long["size"].isascii() or not long["size"].isdigit() or len(long["size"]) > 18:
            raise BadImage(f"member {path!r}: expected a size in its pax header, found {long['size'][:40]!r}")
        size = int(long["size"])
    if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        if not path:
            raise BadImage(f"member {name!r}: expected a file with a name, found none")
        return Member(path, "program" if info.mode & 0o111 else "file", size)
    if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        what = "pipe" if info.type == tarfile.FIFOTYPE else "device"
        raise BadImage(f"member {path!r}: expected files, folders and links, found a {what}")
    if info.type not in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
        raise BadImage(f"member {path!r}: expected files, folders and links, found a member of type {info.type!r}")
    if size:
        raise BadImage(f"member {path!r}: expected no content of a folder or link, found {size} bytes")
    if info.type == tarfile.DIRTYPE:
        return Member(path, "folder")
    target = long.get("linkpath", info.linkname)
    if info.type == tarfile.LNKTYPE:
        return Member(path, "hardlink", target=_path(target, limits))
    return Member(path, "symlink", target=target)


def _path(name: str, limits: Limits) -> str:
    """A member's name as a path of plain parts. Raises `BadImage` for one that is not inside, or not plain."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadImage(f"member {name!r}: expected a name in UTF-8, found another encoding") from None
    if "\0" in name:
        raise BadImage(f"member {name!r}: expected a name without a zero byte")
    if size > limits.path_bytes:
        raise BadImage(f"member {name[:80]!r}...: expected a path of at most {limits.path_bytes} bytes, found {size}")
    if name.startswith("/"):
        raise BadImage(f"member {name!r}: expected a relative path, found an absolute one")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadImage(f"member {name!r}: expected a path inside of the archive, found '..'")
    if any(len(part.encode()) > MAX_COMPONENT_BYTES for part in parts):
        raise BadImage(
            f"member {name[:80]!r}...: expected file names of at most {MAX_COMPONENT_BYTES} bytes, found a longer one"
        )
    return "/".join(parts)


def _check_symlink(member: Member) -> None:
    target = member.target
    try:
        target.encode()
    except UnicodeEncodeError:
        raise BadImage(f"member {member.path!r}: expected a link target in UTF-8, found {target!r}") from None
    if not target or target.startswith("/") or "\0" in target or len(target.encode()) > 4095:
        raise BadImage(f"member {member.path!r}: expected a link with a relative target, found {target[:80]!r}")
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    if ups > member.path.count("/") or ".." in parts[ups:]:
        raise BadImage(
            f"member {member.path!r}: expected a link to a place inside of the archive, with '..' only at its start, "
            f"found {target!r}"
        )
