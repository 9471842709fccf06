"""Step 7: an agent asks ZooKeeper for a storage leader, and that leader who holds the image.

One question an image at a time. Those who want the same image ask the same few leaders (`MEETING_LEADERS`), who can
then look once for many of them (`storage`): were any leader as good as another, each of 500 nodes with a share would
make another one ask all storage agents. For the same reason the nodes of a rack ask in the name of the rack: they are
told of the same holders, so they can pass chunks on to each other (`fabric.images.mates`). A storage leader that does
not answer in `command_wait_s`, or leads no more, is passed over for another. After `find_wait_s`, and TRIES at least
(an outage of ZooKeeper is no answer), the end is that nobody was found, with the reason; and whether all who could know
said so (`nobody`).

Who leads is read from ZooKeeper once, and remembered for as long as it turns out true: a leader that answers is asked
again without a reading, for at most `storage_leaders_fresh_s`; one that does not answer, or leads no more, is
forgotten, and so is the list of racks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from fabric.messages import FindHolders, HolderRef, Holders
from fabric.records import BadRecord, Leader, decode
from fabric.roles.leaders import nearest
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity, Settings
from zk import paths
from zk.tree import Children, Get, Got, Listed, Outcome

PREFIX = "find:"
TRIES = 8
FIRST_PAUSE_S = 0.1
MEETING_LEADERS = 3
"""Of one image; a few, so that none of them has to be there, and that a thousand askers are not all at one."""


@dataclass(frozen=True, slots=True)
class Found:
    """`holders` is empty when none was found; `reason` says why. `nobody`: because every storage agent was heard, and
    none has the image, so that others would not find it either. `tree_reads` and `messages` were spent on it."""

    digest: str
    holders: tuple[HolderRef, ...]
    all_holders: tuple[str, ...]
    storage_leader: str
    took_ms: int
    tree_reads: int
    messages: int
    reason: str
    nobody: bool = False


@dataclass(slots=True)
class _Search:
    digest: str
    exclude: tuple[str, ...]
    began: float
    tries: int = 0
    call: str = ""
    rack: str = ""
    leader: str = ""
    address: str = ""
    deadline: float | None = None
    reads: int = 0
    messages: int = 0
    reason: str = ""
    nobody: bool = False
    failed: tuple[str, ...] = ()


class HolderFinder:
    """Embed it. `found(now, Found)` is called when a search ends."""

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        rng: random.Random,
        out: Outbox,
        found: Callable[[float, Found], None],
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._rng = rng
        self._out = out
        self._found = found
        self._searches: dict[str, _Search] = {}
        self._serial = 0
        self._racks: tuple[str, ...] = ()
        """Those with a storage leader, as listed last; empty: to be listed."""
        self._leaders: dict[str, Leader] = {}
        """Those of them that were read, by rack."""
        self._fresh_until = 0.0

    def search(self, now: float, digest: str, exclude: tuple[str, ...]) -> None:
        search = self._searches.get(digest)
        if search is None:
            self._searches[digest] = search = _Search(digest, exclude, now)
            self._begin(search, now)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(PREFIX):
            return False
        kind, _, call = token[len(PREFIX) :].partition(":")
        search = next((one for one in self._searches.values() if one.call == call), None)
        if search is None:
            return True
        if isinstance(outcome, Listed):
            self._racks, self._leaders = tuple(outcome.names), {}
            self._fresh_until = now + self._settings.storage_leaders_fresh_s
            if not self._racks:
                self._again(search, now, "no storage rack has a leader")
            else:
                self._choose(search, now)
        elif isinstance(outcome, Got):
            try:
                leader = decode(outcome.data, Leader, paths.leader("storage", search.rack))
            except BadRecord as error:
                self._again(search, now, str(error))
                return True
            if search.rack in self._racks:
                self._leaders[search.rack] = leader
            self._ask(search, now, leader)
        else:
            self._racks, self._leaders = (), {}
            self._again(search, now, f"ZooKeeper: {outcome}" if kind != "get" else "the storage leader is gone")
        return True

    def on_holders(self, now: float, answer: Holders) -> bool:
        search = self._searches.get(answer.digest)
        if search is None or search.call != answer.call:
            return False
        search.messages += answer.messages
        if not answer.leads:
            self._doubt(search)
            self._again(search, now, f"{search.leader} leads the storage agents of rack {search.rack} no more")
        elif not answer.chosen:
            silent = f"; silent: {', '.join(answer.silent)}" if answer.silent else ""
            failed = f"; not asked again: {', '.join(search.exclude)}" if search.exclude else ""
            why = f"no storage agent has a whole copy of {answer.digest}{silent}{failed}"
            self._again(search, now, why, nobody=not answer.found and not answer.silent)
        else:
            self._end(search, now, answer.chosen, answer.found)
        return True

    def tick(self, now: float) -> None:
        for search in list(self._searches.values()):
            if search.deadline is not None and now >= search.deadline:
                if search.leader:
                    search.failed = (*search.failed, search.rack)[-16:]
                    self._doubt(search)
                    self._again(search, now, f"{search.leader}, storage leader of rack {search.rack}, did not answer")
                else:
                    self._begin(search, now)

    @property
    def next_deadline(self) -> float | None:
        if not self._searches:
            return None
        return min((one.deadline for one in self._searches.values() if one.deadline is not None), default=None)

    def _begin(self, search: _Search, now: float) -> None:
        """One try: list the racks, choose one, read who leads it, ask; from as far on as is known already."""
        self._serial += 1
        search.call = f"{self._identity.guid[:8]}-f-{self._serial}"
        search.rack = search.leader = ""
        search.deadline = None  # the outcome comes, however long ZooKeeper is away
        if self._racks and now < self._fresh_until:
            self._choose(search, now)
        else:
            search.reads += 1
            self._out.tree(f"{PREFIX}list:{search.call}", Children(paths.leaders("storage")))

    def _choose(self, search: _Search, now: float) -> None:
        names = [name for name in self._racks if name not in search.failed] or list(self._racks)
        search.rack = self._rng.choice(nearest(search.digest, names, MEETING_LEADERS))
        leader = self._leaders.get(search.rack)
        if leader is not None:
            self._ask(search, now, leader)
        else:
            search.reads += 1
            self._out.tree(f"{PREFIX}get:{search.call}", Get(paths.leader("storage", search.rack)))

    def _ask(self, search: _Search, now: float, leader: Leader) -> None:
        search.messages += 1
        search.leader, search.address = leader.node, leader.address
        search.deadline = now + self._settings.command_wait_s
        want, exclude = self._settings.redundancy, search.exclude
        self._out.send(
            leader.address, FindHolders(search.call, search.digest, want, exclude, self._identity.rack, False)
        )

    def _doubt(self, search: _Search) -> None:
        """Who was asked does not answer, or leads no more: who leads is read anew, unless it has been meanwhile."""
        known = self._leaders.get(search.rack)
        if known is not None and known.address == search.address:
            self._racks, self._leaders = (), {}

    def _again(self, search: _Search, now: float, reason: str, nobody: bool = False) -> None:
        search.reason, search.nobody = reason, nobody
        search.tries += 1
        if search.tries >= TRIES and now >= search.began + self._settings.find_wait_s:
            self._end(search, now, (), ())
            return
        search.leader = ""
        search.call = ""
        pause_s = min(FIRST_PAUSE_S * 2 ** min(search.tries, TRIES), self._settings.retry_max_s)
        search.deadline = now + pause_s * (0.5 + self._rng.random())

    def _end(self, search: _Search, now: float, chosen: tuple[HolderRef, ...], found: tuple[str, ...]) -> None:
        del self._searches[search.digest]
        took_ms = int((now - search.began) * 1000)
        nobody = not chosen and search.nobody
        spent = (search.reads, search.messages)
        self._found(now, Found(search.digest, chosen, found, search.leader, took_ms, *spent, search.reason, nobody))
