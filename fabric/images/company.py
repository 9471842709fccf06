"""The mates of one fetch: who they are, which of them to be connected to, what they have.

    introduce yourself to the holders  -> who else of the rack is there      (again when a holder says there are others)
    connect to some, ask what they have -> `Transfer` knows whom to ask

Until the first of that is done, or `MEET_WAIT_S` is over, nothing is asked of the holders (`settled`): twenty nodes
that begin in the same moment would each begin with the same chunks.

For the fetch's thread, like `Links`. A mate that was dropped isn't taken again unless it has another endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable

from fabric.images.links import Links
from fabric.images.manifest import MAX_CHUNKS
from fabric.images.mates import MAX_LINKS, links, parents
from fabric.images.protocol import GetHave, GetMates, Holder
from fabric.images.transfer import MATE_STALL_S, Transfer

MEET_WAIT_S = 1.0
RENEW_EVERY_S = 2.0
"""How often holders are asked for mates though none of them said that there are others."""
MATES_ID = MAX_CHUNKS + 1
HAVE_ID = MAX_CHUNKS + 2


class Company:
    def __init__(self, now: float, digest: str, here: Holder, sockets: Links, transfer: Transfer) -> None:
        """`here`: this node, and the endpoint of its own chunk server."""
        self._digest = digest
        self._here = here
        self._links = sockets
        self._transfer = transfer
        self._meet_until = now + MEET_WAIT_S
        self._renew_at = now + RENEW_EVERY_S
        self._asked: dict[str, bool] = {}
        """Holder -> whether it has answered who the mates are."""
        self._versions: dict[str, int] = {}
        self._known: dict[str, Holder] = {}
        self._dropped: set[Holder] = set()
        self._linked: dict[str, float | None] = {}
        """Mate -> since when it has not said what it has; None: it did."""

    def __contains__(self, node: str) -> bool:
        return node in self._linked

    def settled(self, now: float) -> bool:
        """Whether it is known who has what, as far as it is worth waiting for."""
        if now >= self._meet_until:
            return True
        return any(self._asked.values()) and all(since is None for since in self._linked.values())

    def wake_at(self, now: float) -> float:
        return self._meet_until if now < self._meet_until else self._renew_at

    def introduce(self, holder: str) -> None:
        """To a holder that was not asked before, or that knows others by now."""
        self._asked.setdefault(holder, False)
        self._links.send(holder, GetMates(id=MATES_ID, digest=self._digest, mate=self._here))

    def served(self, holder: str, version: int) -> None:
        """A holder sent a chunk, and the version of the mates that it knows."""
        if holder in self._asked and version > self._versions.get(holder, version):
            self._versions[holder] = version  # asked for now
            self.introduce(holder)

    def told(self, now: float, holder: str, version: int, mates: tuple[Holder, ...], holders: Iterable[str]) -> None:
        """A holder's answer. `holders`: those of this fetch, whose names nobody else may have."""
        self._asked[holder] = True
        self._versions[holder] = version
        news = {
            mate.node: mate
            for mate in mates
            if mate.node != self._here.node
            and mate.node not in holders
            and mate not in self._dropped
            and self._known.get(mate.node) != mate
        }
        if news:  # mostly they are those that another holder told of
            self._known |= news
            self._connect(now)

    def has(self, now: float, mate: str, bits: bytes) -> None:
        if mate in self._linked:
            self._linked[mate] = None
            self._transfer.add_mate(now, mate, bits)

    def lost(self, now: float, node: str) -> None:
        """A mate was dropped: dead, slow, or a liar."""
        self._linked.pop(node, None)
        gone = self._known.pop(node, None)
        if gone is not None:
            self._dropped.add(gone)
        self._connect(now)

    def turn(self, now: float, holders: Iterable[str]) -> list[str]:
        """Asks for news where some are due. Answers with the mates that never said what they have: to be dropped."""
        for mate in self._transfer.news_of(now):
            self._links.send(mate, GetHave(id=HAVE_ID, digest=self._digest))
        if now >= self._renew_at:
            self._renew_at = now + RENEW_EVERY_S
            for holder in sorted(holders):
                self.introduce(holder)
        return [mate for mate, since in self._linked.items() if since is not None and now - since >= MATE_STALL_S]

    def _connect(self, now: float) -> None:
        self._transfer.lead(parents(self._digest, self._here.node, self._known))
        wanted = links(self._digest, self._here.node, self._known)
        for mate in [one for one in self._linked if one not in wanted]:
            if self._transfer.leave(mate):
                del self._linked[mate]
                self._links.drop(mate)
        for mate in wanted:
            if mate not in self._linked and len(self._linked) < MAX_LINKS:
                self._linked[mate] = now
                self._links.open(self._known[mate])
                self._links.send(mate, GetHave(id=HAVE_ID, digest=self._digest))
