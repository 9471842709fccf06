"""What znodes were before the latest transactions: for a server in memory that has not applied these yet.

Theory of operation. There is one set of znodes (zk.znodes), always the newest. When a transaction is about to change a
znode, what it was is noted here under the transaction's zxid; when it adds or takes away a child, that is noted for the
parent. A server at zxid Z sees a znode as the first note after Z says, or as it is now if there is none; and children
as they are now, with the notes after Z taken back, the latest first. Notes that every server has passed are forgotten,
so what is kept is the transactions of the longest lag. A transaction that was undone needs no care: undoing it is noted
too, and the first note of a zxid is what counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

from zk.tree import Stat

Known = tuple[bytes, Stat]
"""Data and stat of a znode that is there."""


class _NodeNote(NamedTuple):
    zxid: int
    before: Known | None


class _ChildNote(NamedTuple):
    zxid: int
    name: str
    there: bool


class Past:
    def __init__(self) -> None:
        self._nodes: dict[str, deque[_NodeNote]] = {}
        self._names: dict[str, deque[_ChildNote]] = {}
        self._order: deque[tuple[int, str, bool]] = deque()  # (zxid, path, whether it is about children), as noted

    # --- noting ---------------------------------------------------------------------------------------------------

    def node_was(self, zxid: int, path: str, before: Known | None) -> None:
        """None: it was not there."""
        self._nodes.setdefault(path, deque()).append(_NodeNote(zxid, before))
        self._order.append((zxid, path, False))

    def child_was(self, zxid: int, parent: str, name: str, there: bool) -> None:
        self._names.setdefault(parent, deque()).append(_ChildNote(zxid, name, there))
        self._order.append((zxid, parent, True))

    def forget(self, up_to: int) -> None:
        """Every server has applied all transactions up to this one."""
        while self._order and self._order[0][0] <= up_to:
            _, path, of_children = self._order.popleft()
            notes = self._notes(path, of_children)
            notes.popleft()
            self._tidy(path, of_children)

    # --- looking back ---------------------------------------------------------------------------------------------

    def node_at(self, zxid: int, path: str, now: Known | None) -> Known | None:
        """What a server sees that has applied all up to `zxid`."""
        known = now
        for note in self._nodes.get(path, ()):
            if note.zxid > zxid:
                known = note.before
                break
        if known is None:
            return None
        children = 0 if now is None else now[1].children
        for child in self._names.get(path, ()):
            if child.zxid > zxid:
                children += 1 if child.there else -1
        data, stat = known
        return known if stat.children == children else (data, replace(stat, children=children))

    def names_at(self, zxid: int, path: str, now: Collection[str]) -> Collection[str]:
        """The children's names, in no order."""
        notes = self._names.get(path)
        if not notes or notes[-1].zxid <= zxid:
            return now
        names = set(now)
        for note in reversed(notes):
            if note.zxid <= zxid:
                break
            if note.there:
                names.add(note.name)
            else:
                names.discard(note.name)
        return names

    def _notes(self, path: str, of_children: bool) -> deque[_NodeNote] | deque[_ChildNote]:
        return self._names[path] if of_children else self._nodes[path]

    def _tidy(self, path: str, of_children: bool) -> None:
        if not self._notes(path, of_children):
            del (self._names if of_children else self._nodes)[path]
