"""Decompressing a stream in bounded memory: pieces in, pieces of at most `PIECE_BYTES` out.

The window that an xz stream asks for is bounded too, which the standard library's file objects don't offer; a gzip or
xz file of several members is read through, as gzip(1) and xz(1) do.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator

from fabric.images.errors import BadImage
from fabric.images.manifest import Buffer

PIECE_BYTES = 1 << 18
MAX_XZ_WINDOW_BYTES = 128 << 20
"""`xz -9` takes 65 MiB to unpack."""
GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"


class Plain:
    """No compression."""

    def feed(self, data: Buffer) -> Iterator[Buffer]:
        yield data

    def finish(self) -> None:
        """Nothing can be missing."""


class Gzip:
    def __init__(self) -> None:
        self._member = zlib.decompressobj(31)
        self._begun = False

    def feed(self, data: Buffer) -> Iterator[Buffer]:
        pending = bytes(data)
        while pending:
            if self._member.eof:
                pending = pending.lstrip(b"\0")  # padding between members
                if not pending:
                    return
                self._member, self._begun = zlib.decompressobj(31), False
            try:
                piece = self._member.decompress(pending, PIECE_BYTES)
            except zlib.error as error:
                raise BadImage(f"expected gzip data, found it damaged: {error}") from None
            self._begun = True
            pending = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if piece:
                yield piece

    def finish(self) -> None:
        if self._begun and not self._member.eof:
            raise BadImage("expected the rest of the gzip data, found the end of the input: it was cut off")


class Xz:
    def __init__(self) -> None:
        self._stream = self._new()
        self._begun = False

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_WINDOW_BYTES)

    def feed(self, data: Buffer) -> Iterator[Buffer]:
        pending = bytes(data)
        while pending or (self._begun and not self._stream.eof and not self._stream.needs_input):
            if self._stream.eof:
                pending = pending.lstrip(b"\0")
                if not pending:
                    return
                self._stream, self._begun = self._new(), False
            try:
                piece = self._stream.decompress(pending, PIECE_BYTES)
            except lzma.LZMAError as error:
                raise BadImage(
                    f"expected xz data that unpacks in {MAX_XZ_WINDOW_BYTES} bytes, found: {error}"
                ) from None
            self._begun = True
            pending = self._stream.unused_data if self._stream.eof else b""
            if piece:
                yield piece

    def finish(self) -> None:
        if self._begun and not self._stream.eof:
            raise BadImage("expected the rest of the xz data, found the end of the input: it was cut off")


def inflater(head: bytes) -> Plain | Gzip | Xz:
    """The one for a stream that begins with `head` (at least 6 bytes, if it has so many)."""
    if head.startswith(GZIP_MAGIC):
        return Gzip()
    if head.startswith(XZ_MAGIC):
        return Xz()
    return Plain()
