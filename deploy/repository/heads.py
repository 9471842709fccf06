"""Heads of HTTP messages that have been read, or written, before.

Theory of operation. Ten thousand siblings ask the same, and are answered the same: their messages' heads are equal byte
for byte, but for the lengths of bodies. On a connection on which nothing is under way, what h11 makes of a head depends
on its bytes alone. So it is asked once for each, and looked up from then on. Both sides remember the heads of whole,
simple exchanges only: HTTP/1.1 on a connection that was kept, no body or one with its length told, and no expectation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

MAX_HEADS = 500
_NOT_SIMPLE = frozenset({"transfer-encoding", "expect", "upgrade", "connection"})


class Heads(dict[K, V]):
    """At most MAX_HEADS; when there are more, it begins anew."""

    def keep(self, key: K, value: V) -> None:
        if len(self) >= MAX_HEADS:
            self.clear()
        self[key] = value


def is_simple(names: Iterable[str]) -> bool:
    """Of headers, in lower case."""
    return _NOT_SIMPLE.isdisjoint(names)


def parted(data: bytes) -> tuple[bytes, bytes]:
    """A message's head, without the empty line that ends it, and what follows that."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body
