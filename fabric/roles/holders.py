"""Step 8: who holds an image. A storage leader's search for those who ask it, by way of all storage leaders.

    known from before?   ask these alone whether they still hold it    all do: that is the answer
    no, or not all do    ask all storage leaders, each asks its agents  -> found, and known from now on

Who asks for an image that is being asked about waits for the same answers, and what was found is told again for
`holders_fresh_s`: many want an image at the same moment. Later those are asked who were found to hold it, for at most
`holders_known_s`: what a search costs does not grow with the fabric then, and still nobody is named who has not just
said that it holds a whole verified copy. Whoever got a copy since the last look at all is found by the next one.

Who says that holders failed (`exclude`) makes everyone be asked; so does who wants that (`anew`), as the API does after
a push: who held it a moment ago may have dropped it.

Of those found `want` are picked, in different racks where that can be, spread over the racks of askers by a hash of
image and rack: ten racks that want one image do not all lean on the same two of five holders, and the nodes of one rack
do.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import dataclass

from fabric.commands import HasImage, ImageHeld
from fabric.messages import FindHolders, HolderRef, Holders, NodeCommand, PickStores
from fabric.roles.calls import Gathered, RackCalls
from fabric.roles.outbox import Outbox
from fabric.roles.plans import Place
from fabric.roles.settings import Settings

MAX_OPEN = 256
"""Questions under way at a time; one more is not answered."""
MAX_ASKERS = 10_000
"""Who wait for the answer to one question; one more asks another leader."""
MAX_KNOWN = 4096
"""Images; of more, the one that was asked for least lately is searched anew."""
MAX_KNOWN_HOLDERS = 16
"""Of one image with more holders the others are found by the next look at all."""
CHECK_PART = 1 / 3
"""Of the time for a search: what those who are known have to answer."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    ref: HolderRef
    free_bytes: int
    busy: int


@dataclass(frozen=True, slots=True)
class _Found:
    """Of all answers to one question: who can serve, by name too, and who was silent."""

    candidates: tuple[_Candidate, ...]
    nodes: tuple[str, ...]
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """Who held an image when all were asked; `until`: when they are to be asked again."""

    places: tuple[Place, ...]
    until: float


@dataclass(eq=False, slots=True)
class _Search:
    """`askers`: (where to answer, what was asked); there is at least one. `spent`: messages."""

    digest: str
    askers: list[tuple[str, FindHolders | PickStores]]
    deadline: float
    spent: int = 1


class HolderSearch:
    """Embed it; the embedder feeds `calls`."""

    def __init__(self, settings: Settings, out: Outbox, calls: RackCalls) -> None:
        self._settings = settings
        self._out = out
        self._calls = calls
        self._open: set[_Search] = set()
        self._shared: dict[str, _Search] = {}
        """Digest -> the search about it that more askers may wait for."""
        self._found: dict[str, tuple[float, _Found]] = {}
        """Digest -> (fresh until, what was found)."""
        self._known: OrderedDict[str, _Known] = OrderedDict()
        """The one asked for last at the end."""

    def __len__(self) -> int:
        """Searches under way."""
        return len(self._open)

    def end(self) -> None:
        """Nobody is answered any more, and nothing is known."""
        self._open.clear()
        self._shared.clear()
        self._found.clear()
        self._known.clear()

    def on_ask(self, now: float, sender: str, ask: FindHolders | PickStores) -> None:
        asker = (sender, ask)
        if not isinstance(ask, FindHolders) or ask.anew:
            if search := self._begin(now, ask.digest if isinstance(ask, FindHolders) else "", asker):
                self._ask_all(now, search)
            return
        until, found = self._found.get(ask.digest, (0.0, None))
        shared = self._shared.get(ask.digest)
        if found is not None and now < until and not ask.exclude:
            self._answer(asker, found, 1)
        elif shared is not None:
            if len(shared.askers) < MAX_ASKERS:
                shared.askers.append(asker)
        elif search := self._begin(now, ask.digest, asker):
            self._shared[ask.digest] = search
            known = self._known.get(ask.digest)
            if known is not None and now < known.until and not ask.exclude:
                self._ask_known(now, search, known)
            else:
                self._ask_all(now, search)

    # --- asking ------------------------------------------------------------------------------------------------------

    def _begin(self, now: float, digest: str, asker: tuple[str, FindHolders | PickStores]) -> _Search | None:
        """None: too much is being asked; the askers have a deadline, and go to another leader."""
        if len(self._open) >= MAX_OPEN:
            return None
        # Less than an asker waits, so that it hears of those who are silent instead of hearing nothing.
        wait_s = self._settings.command_wait_s - self._settings.hop_margin_s
        search = _Search(digest, [asker], now + wait_s)
        self._open.add(search)
        return search

    def _ask_known(self, now: float, search: _Search, known: _Known) -> None:
        self._known.move_to_end(search.digest)
        commands: dict[str, tuple[NodeCommand, ...]] = {}
        for node, rack in known.places:
            commands[rack] = (*commands.get(rack, ()), NodeCommand(node, HasImage(search.digest)))

        def done(at: float, gathered: Gathered) -> None:
            if search not in self._open:
                return
            search.spent += _messages(gathered)
            found = _sift(search, gathered)
            if len(found.candidates) < len(known.places):
                self._known.pop(search.digest, None)
                self._ask_all(at, search)
            elif any(isinstance(ask, FindHolders) and ask.exclude for _, ask in search.askers):
                self._ask_all(at, search)  # one that came meanwhile, and whom some of these have failed
            else:
                self._end(at, search, found)

        self._calls.gather(now, search.digest, (search.deadline - now) * CHECK_PART, done, commands=commands)

    def _ask_all(self, now: float, search: _Search) -> None:
        def done(at: float, gathered: Gathered) -> None:
            if search not in self._open:
                return
            search.spent += _messages(gathered)
            found = _sift(search, gathered)
            if self._shared.get(search.digest) is search:
                self._learn(at, search.digest, found)
            self._end(at, search, found)

        everyone = HasImage(search.digest)
        self._calls.gather(now, search.digest, search.deadline - now, done, everyone=everyone)

    def _learn(self, now: float, digest: str, found: _Found) -> None:
        """If everybody answered, and there are holders enough."""
        if not self._enough(found):
            return
        places = tuple((one.ref.node, one.ref.rack) for one in found.candidates[:MAX_KNOWN_HOLDERS])
        self._known[digest] = _Known(places, now + self._settings.holders_known_s)
        self._known.move_to_end(digest)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _enough(self, found: _Found) -> bool:
        return not found.silent and len(found.candidates) >= self._settings.redundancy

    def _end(self, now: float, search: _Search, found: _Found) -> None:
        self._open.discard(search)
        if self._shared.get(search.digest) is search:
            del self._shared[search.digest]
            if self._enough(found):
                self._found = {one: kept for one, kept in self._found.items() if kept[0] > now}
                if len(self._found) < MAX_OPEN:
                    self._found[search.digest] = (now + self._settings.holders_fresh_s, found)
        spent = search.spent
        for asker in search.askers:
            self._answer(asker, found, spent)
            spent = 1  # the search is counted once

    def _answer(self, asker: tuple[str, FindHolders | PickStores], found: _Found, messages: int) -> None:
        """`messages` were spent on it."""
        sender, ask = asker
        digest, exclude = (ask.digest, ask.exclude) if isinstance(ask, FindHolders) else ("", ())
        usable = [one for one in found.candidates if one.ref.node not in exclude]
        chosen = choose(usable, ask.want, digest + ask.salt, isinstance(ask, PickStores))
        self._out.send(
            sender, Holders(ask.call, digest, True, chosen, found.nodes[:100], found.silent[:100], messages)
        )


def _messages(gathered: Gathered) -> int:
    return gathered.sent + sum(reply.messages for reply in gathered.replies)


def _sift(search: _Search, gathered: Gathered) -> _Found:
    """Those who hold the image; or (a push) who have the space."""
    ask = search.askers[0][1]
    candidates = tuple(
        _Candidate(HolderRef(node, reply.rack, answer.data_endpoint), answer.free_bytes, answer.busy)
        for reply in gathered.replies
        for node, answer in reply.results
        if isinstance(answer, ImageHeld) and answer.data_endpoint
        if (answer.held if isinstance(ask, FindHolders) else answer.free_bytes >= ask.size)
    )
    silent = [f"rack {rack}" for rack in gathered.silent_racks]
    silent += [node for reply in gathered.replies for node in reply.silent]
    return _Found(candidates, tuple(sorted(one.ref.node for one in candidates)), tuple(silent))


def choose(candidates: list[_Candidate], want: int, salt: str, by_space: bool) -> tuple[HolderRef, ...]:
    """`want` of the candidates, in different racks as long as there are any; the least busy first, then by hash (or,
    for a push, the one with the most space)."""

    def order(one: _Candidate) -> tuple[int, int, int]:
        space = -one.free_bytes if by_space else 0
        return one.busy, space, zlib.crc32(one.ref.node.encode(), zlib.crc32(salt.encode()))

    chosen: list[HolderRef] = []
    left = sorted(candidates, key=order)
    while left and len(chosen) < want:
        racks = {ref.rack for ref in chosen}
        best = next((one for one in left if one.ref.rack not in racks), left[0])
        left.remove(best)
        chosen.append(best.ref)
    return tuple(chosen)
