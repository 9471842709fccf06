"""The mates of one fetch in the simulated world: what `fabric.images.company` does, without sockets.

Who is told of whom is decided by the real `MateTable` of each holder's process, who asks whom by the real `parents`,
`links` and `Transfer`. Introductions and questions take their time, and are lost on a cut way, or when nobody answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fabric.images.mates import MAX_LINKS, MateTable, links, parents
from fabric.images.protocol import Holder
from fabric.images.transfer import Transfer
from fabric.messages import HolderRef
from fabric.sim.clock import Clock

MEET_WAIT_S = 0.3
RENEW_EVERY_S = 2.0


class Pieces(Protocol):
    """What a process gives to its mates (`fetches.Fetches`)."""

    def have(self, digest: str) -> bytes | None:
        """One bit a chunk; None: it knows nothing of this image."""


class Wire(Protocol):
    def mates_at(self, machine: str, endpoint: str) -> MateTable | None:
        """The table of the holder that answers there now; None: nobody does."""

    def pieces_at(self, machine: str, endpoint: str) -> Pieces | None:
        """What the compute agent that answers there now has; None: nobody does."""

    def is_cut(self, machine: str, endpoint: str) -> bool: ...

    def took_s(self) -> float: ...


class Company:
    """`changed`: somebody is known, or has said what it has."""

    def __init__(
        self, clock: Clock, wire: Wire, digest: str, here: Holder, transfer: Transfer, changed: Callable[[], None]
    ) -> None:
        self.over = False
        self._clock = clock
        self._wire = wire
        self._digest = digest
        self._here = here
        self._transfer = transfer
        self._changed = changed
        self._met = False
        self._versions: dict[str, int] = {}
        self._known: dict[str, Holder] = {}
        self._dropped: set[Holder] = set()
        self.linked: dict[str, HolderRef] = {}
        self._silent: set[str] = set()
        clock.after(MEET_WAIT_S, self._enough)

    @property
    def settled(self) -> bool:
        return self._met and not self._silent

    def introduce(self, holder: HolderRef) -> None:
        self._clock.after(self._wire.took_s(), lambda: self._introduced(holder))

    def served(self, holder: HolderRef) -> None:
        """A holder sent a chunk, and says whether it knows others by now."""
        table = self._wire.mates_at(self._here.node, holder.endpoint)
        if table is not None and table.version(self._peer(holder)) > self._versions.get(holder.node, 1 << 62):
            self.introduce(holder)

    def lost(self, node: str) -> None:
        self.linked.pop(node, None)
        self._silent.discard(node)
        gone = self._known.pop(node, None)
        if gone is not None:
            self._dropped.add(gone)
        self._connect()

    def ask_news(self) -> None:
        for node in self._transfer.news_of(self._clock.now):
            self._ask_have(self.linked[node])

    def _peer(self, holder: HolderRef) -> bytes:
        return f"{self._here.node} {holder.node} {self._digest}".encode()

    def _introduced(self, holder: HolderRef) -> None:
        if self.over or self._wire.is_cut(self._here.node, holder.endpoint):
            return
        table = self._wire.mates_at(self._here.node, holder.endpoint)
        if table is None:
            return
        version, mates = table.introduce(self._clock.now, self._peer(holder), self._digest, self._here)
        self._versions[holder.node] = version
        self._known.update({mate.node: mate for mate in mates if mate not in self._dropped})
        self._met = True
        self._connect()
        self._changed()

    def _connect(self) -> None:
        self._transfer.lead(parents(self._digest, self._here.node, self._known))
        wanted = links(self._digest, self._here.node, self._known)
        for node in [one for one in self.linked if one not in wanted and self._transfer.leave(one)]:
            del self.linked[node]
            self._silent.discard(node)
        for node in wanted:
            if node not in self.linked and len(self.linked) < MAX_LINKS:
                mate = self._known[node]
                self.linked[node] = HolderRef(mate.node, mate.rack, mate.endpoint)
                self._silent.add(node)
                self._ask_have(self.linked[node])

    def _ask_have(self, mate: HolderRef) -> None:
        self._clock.after(self._wire.took_s(), lambda: self._has(mate))

    def _has(self, mate: HolderRef) -> None:
        if self.over or self.linked.get(mate.node) is not mate or self._wire.is_cut(self._here.node, mate.endpoint):
            return
        pieces = self._wire.pieces_at(self._here.node, mate.endpoint)
        have = pieces.have(self._digest) if pieces is not None else None
        if have is None:
            self._transfer.dropped(self._clock.now, mate.node, "knows nothing of it")
            self.lost(mate.node)
        else:
            self._silent.discard(mate.node)
            self._transfer.add_mate(self._clock.now, mate.node, have)
        self._changed()

    def _enough(self) -> None:
        """What is not known by now is not waited for."""
        if not self.over and not self.settled:
            self._met = True
            for node in sorted(self._silent):
                self.lost(node)
            self._silent.clear()
            self._changed()
