"""Digests of contents: "blake3:…", by which everything is known here, and "sha256:…", that references may name too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from blake3 import blake3

Buffer = bytes | bytearray | memoryview


class Digester:
    """Of a content that comes in pieces. `declared`: what a reference says it is, or ""."""

    def __init__(self, declared: str = "") -> None:
        self._declared = declared
        self._blake3 = blake3()
        self._sha256 = hashlib.sha256() if declared.startswith("sha256:") else None
        self.size = 0

    def update(self, data: Buffer) -> None:
        self.size += len(data)
        self._blake3.update(data)
        if self._sha256 is not None:
            self._sha256.update(data)

    @property
    def digest(self) -> str:
        return f"blake3:{self._blake3.hexdigest()}"

    def mismatch(self) -> str:
        """What the content's digest is, if it is not the declared one; else ""."""
        found = self.digest if self._sha256 is None else f"sha256:{self._sha256.hexdigest()}"
        return "" if self._declared in ("", found) else found


def digest_of(data: Buffer) -> str:
    return f"blake3:{blake3(data).hexdigest()}"


def mismatch(declared: str, known: str, chunks: Callable[[], Iterable[Buffer]]) -> str:
    """As `Digester.mismatch`, for a content whose "blake3:…" is `known`: read only where that does not tell."""
    if not declared.startswith("sha256:"):
        return "" if declared in ("", known) else known
    digester = Digester(declared)
    for chunk in chunks():
        digester.update(chunk)
    return digester.mismatch()
