"""Storage agents: who holds which image (step 8), and which two serve it (step 9).

`Storage` is the agent's own part: it answers `HasImage` and `ListHeld` from what its store told last, drops what nobody
refers to, and replicates when told. `StorageLeading` is what an elected storage leader does beside its rack: it asks
all storage leaders (each asks its agents) and picks `want` holders, in different racks where it can, spread over the
racks of askers by a hash of image and rack, so that ten racks that want one image do not all lean on the same two of
five holders, and the nodes of one rack do.
Who asks for an image that is being asked about waits for the same answers, and what was found is told again for
`holders_fresh_s`: many want an image at the same moment, and each question goes to every storage agent there is. Who
says that holders failed (`exclude`) is not told what was found before; nor is who wants all to be asked `anew`, as the
API does after a push: who held it a moment ago may have dropped it. It also keeps up redundancy (`repair`).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Set
from dataclasses import dataclass

from fabric.commands import (
    Answer,
    Command,
    DropImage,
    Dropped,
    HasImage,
    HeldList,
    ImageHeld,
    ListHeld,
    Replicate,
    Replicating,
    Unable,
)
from fabric.effects import (
    ContentDropped,
    DropContent,
    FetchImage,
    HoldersWanted,
    ImageFailed,
    ImageReady,
    MoreHolders,
    StoreChanged,
)
from fabric.messages import FindHolders, HolderRef, Holders, PickStores, Vitals
from fabric.resources import ZERO
from fabric.roles.beats import Beats
from fabric.roles.calls import Gathered, RackCalls
from fabric.roles.leaders import LeaderDirectory
from fabric.roles.leftovers import Leftovers
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.repair import Repair
from fabric.roles.settings import Identity, Settings
from zk.tree import Outcome, SessionChanged, SessionState

MAX_WAITING = 256
"""Questions, drops or copies under way at a time; one more is answered with Unable, or not at all."""
MAX_ASKERS = 10_000
"""Who wait for the answer to one question; one more asks another leader."""


class Storage:
    """A storage agent's answers to commands."""

    def __init__(self, identity: Identity, settings: Settings, out: Outbox, beats: Beats) -> None:
        self._identity = identity
        self._out = out
        self._beats = beats
        self.leftovers = Leftovers(settings, out, identity.guid)
        self._held: frozenset[str] = frozenset()
        self._damaged: frozenset[str] = frozenset()
        self._free_bytes = 0
        self._busy = 0
        self._drops: dict[str, tuple[str, str]] = {}
        self._copies: dict[str, str] = {}
        """Digest -> why the last copy failed; empty while it is under way."""

    def registered(self, now: float) -> None:
        """Present in ZooKeeper: what is held can be compared with the image records."""
        self.leftovers.begin(now)

    def tick(self, now: float) -> None:
        self.leftovers.tick(now, self._held | self._damaged)

    @property
    def next_deadline(self) -> float | None:
        return self.leftovers.next_deadline

    def on_store(self, event: StoreChanged) -> None:
        self._held = frozenset(event.held)
        self._damaged = frozenset(event.damaged)
        self._free_bytes = event.free_bytes
        self._busy = event.busy

    def command(self, now: float, sender: str, call: str, command: Command) -> None:
        answer: Answer
        if isinstance(command, HasImage):
            held = command.digest in self._held
            answer = ImageHeld(held, self._identity.data_endpoint, self._free_bytes, self._busy)
        elif isinstance(command, ListHeld):
            answer = self._list(command.digests)
        elif isinstance(command, DropImage):
            if len(self._drops) < MAX_WAITING:
                self._drops[call] = (sender, call)
                self._out.add(DropContent(call, command.digest))
                return
            answer = Unable("too many images are being dropped")
        elif isinstance(command, Replicate):
            answer = self._replicate(command)
        else:
            answer = Unable(f"{type(command).__name__}: expected a command for a storage agent")
        self._beats.answer(now, sender, call, answer)

    def _list(self, digests: tuple[str, ...]) -> HeldList:
        under_way = {digest for digest, reason in self._copies.items() if not reason} - self._held

        def among(some: Set[str]) -> tuple[int, ...]:
            return tuple(index for index, digest in enumerate(digests) if digest in some)

        return HeldList(
            held=among(self._held),
            copying=among(under_way),
            damaged=among(self._damaged),
            copies=len(under_way),
            data_endpoint=self._identity.data_endpoint,
            free_bytes=self._free_bytes,
            busy=self._busy,
        )

    def _replicate(self, command: Replicate) -> Answer:
        if command.digest in self._held:
            self._copies.pop(command.digest, None)
            return Replicating(True, "")
        reason = self._copies.pop(command.digest, None)
        if reason:
            return Replicating(False, reason)
        if reason is None:
            if len(self._copies) >= MAX_WAITING:
                self._copies = {digest: failed for digest, failed in self._copies.items() if not failed}
            if len(self._copies) >= MAX_WAITING:
                return Unable("too many images are being copied")
            holders = tuple(
                HolderRef(f"source-{index}", "unknown", source) for index, source in enumerate(command.sources)
            )
            self._out.add(FetchImage(command.digest, holders))
        self._copies[command.digest] = ""
        return Replicating(False, "")

    def on_ready(self, event: ImageReady) -> None:
        self._copies.pop(event.digest, None)

    def on_failed(self, event: ImageFailed) -> None:
        if event.digest in self._copies:
            self._copies[event.digest] = event.reason[:500] or "failed"

    def on_holders_wanted(self, event: HoldersWanted) -> None:
        """A copy has no source left. Who ordered it knows better ones: it ends here, and the order is repeated."""
        self._out.add(MoreHolders(event.digest, ()))

    def on_dropped(self, now: float, event: ContentDropped) -> None:
        asked = self._drops.pop(event.token, None)
        if asked is not None:
            sender, call = asked
            self._beats.answer(now, sender, call, Dropped(event.freed_bytes))

    @property
    def mark(self) -> tuple[int, int]:
        """Another one when a heartbeat would say something else."""
        return len(self._held), self._free_bytes

    @property
    def vitals(self) -> Vitals:
        return Vitals(ZERO, False, 0, 0, len(self._held), self._free_bytes)


@dataclass(frozen=True, slots=True)
class _Candidate:
    ref: HolderRef
    free_bytes: int
    busy: int


Asker = tuple[str, FindHolders | PickStores]
"""(where to answer, what was asked)."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Of all answers to one question: who can serve, by name too, and who was silent."""

    candidates: tuple[_Candidate, ...]
    nodes: tuple[str, ...]
    silent: tuple[str, ...]


class StorageLeading:
    """Embed it; it acts only between `begin` and `end`."""

    def __init__(self, identity: Identity, settings: Settings, rng: random.Random, out: Outbox) -> None:
        self._identity = identity
        self._settings = settings
        self._out = out
        self._active = False
        self._open = 0
        self._askers: dict[str, list[Asker]] = {}
        """Digest -> who waits for the answers to the question about it that is under way."""
        self._found: dict[str, tuple[float, _Found]] = {}
        """Digest -> (fresh until, what was found)."""
        self.directory = LeaderDirectory("storage", out)
        self.calls = RackCalls(out, self.directory, f"{identity.guid[:8]}-s-", settings.hop_margin_s)
        self.repair = Repair(identity, settings, rng, out, self.directory, self.calls)

    @property
    def load(self) -> int:
        return self._open

    def begin(self, now: float) -> None:
        self._active = True
        self.directory.start()
        self.repair.begin(now)

    def end(self) -> None:
        self._active = False
        self._open = 0
        self._askers.clear()
        self._found.clear()
        self.directory.stop()
        self.repair.end()

    def on_session(self, now: float, event: SessionChanged) -> None:
        self.directory.on_session(event)
        if event.state is SessionState.CONNECTED:
            self.repair.release(now)
        else:
            self.repair.hold()

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if self.directory.on_tree(now, token, outcome):
            self.calls.on_leaders_changed()
            self.repair.on_leaders(now)
            return True
        return self.repair.on_tree(now, token, outcome)

    def on_ask(self, now: float, sender: str, ask: FindHolders | PickStores) -> None:
        digest = ask.digest if isinstance(ask, FindHolders) else ""
        if not self._active or not self.directory.known:
            self._out.send(sender, Holders(ask.call, digest, False, (), (), (), 1))
            return
        asker = (sender, ask)
        if not isinstance(ask, FindHolders) or ask.anew:
            self._gather(now, HasImage(digest), [asker])
            return
        until, found = self._found.get(digest, (0.0, None))
        askers = self._askers.get(digest)
        if found is not None and now < until and not ask.exclude:
            self._answer(asker, found, 1)
        elif askers is None:
            self._askers[digest] = [asker]
            if not self._gather(now, HasImage(digest), self._askers[digest]):
                del self._askers[digest]
        elif len(askers) < MAX_ASKERS:
            askers.append(asker)

    def _gather(self, now: float, question: HasImage, askers: list[Asker]) -> bool:
        """Ask everyone, and then answer those who ask. False: too much is being asked; they have a deadline, and go to
        another leader."""
        if self._open >= MAX_WAITING:
            return False
        self._open += 1
        # Less than an asker waits, so that it hears of those who are silent instead of hearing nothing.
        wait_s = self._settings.command_wait_s - self._settings.hop_margin_s

        def done(at: float, gathered: Gathered) -> None:
            self._open = max(0, self._open - 1)
            found = _sift(askers[0][1], gathered)
            if self._askers.get(question.digest) is askers:
                del self._askers[question.digest]
                self._keep(at, question.digest, found)
            spent = gathered.sent + sum(reply.messages for reply in gathered.replies) + 1
            for asker in askers:
                self._answer(asker, found, spent)
                spent = 1  # the search is counted once

        self.calls.gather(now, question.digest, wait_s, done, everyone=question)
        return True

    def _keep(self, now: float, digest: str, found: _Found) -> None:
        """What was found is told again for a moment, if everybody answered and there are holders enough."""
        if not found.silent and len(found.candidates) >= self._settings.redundancy:
            self._found = {one: kept for one, kept in self._found.items() if kept[0] > now}
            if len(self._found) < MAX_WAITING:
                self._found[digest] = (now + self._settings.holders_fresh_s, found)

    def _answer(self, asker: Asker, found: _Found, messages: int) -> None:
        """`messages` were spent on it."""
        sender, ask = asker
        digest, exclude = (ask.digest, ask.exclude) if isinstance(ask, FindHolders) else ("", ())
        usable = [one for one in found.candidates if one.ref.node not in exclude]
        chosen = choose(usable, ask.want, digest + ask.salt, isinstance(ask, PickStores))
        self._out.send(
            sender, Holders(ask.call, digest, True, chosen, found.nodes[:100], found.silent[:100], messages)
        )

    def tick(self, now: float) -> None:
        if self._active:
            self.directory.tick(now)
            self.calls.tick(now)
            self.repair.tick(now)

    @property
    def next_deadline(self) -> float | None:
        if not self._active:
            return None
        return earliest(self.directory.next_deadline, self.calls.next_deadline, self.repair.next_deadline)


def _sift(ask: FindHolders | PickStores, gathered: Gathered) -> _Found:
    """Those who hold the image; or (a push) who have the space."""
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
