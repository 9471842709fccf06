"""Storage agents: who holds which image (step 8), and which two serve it (step 9).

`Storage` is the agent's own part: it answers `HasImage` and `ListHeld` from what its store told last, drops what nobody
refers to, and replicates when told. `StorageLeading` is what an elected storage leader does beside its rack: it looks
for holders for those who ask it (`holders`), and keeps up redundancy (`repair`).
"""

from __future__ import annotations

import random
from collections.abc import Set

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
from fabric.roles.calls import RackCalls
from fabric.roles.holders import HolderSearch
from fabric.roles.leaders import LeaderDirectory
from fabric.roles.leftovers import Leftovers
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.repair import Repair
from fabric.roles.settings import Identity, Settings
from zk.tree import Outcome, SessionChanged, SessionState

MAX_WAITING = 256
"""Drops or copies under way at a time; one more is answered with Unable."""


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


class StorageLeading:
    """Embed it; it acts only between `begin` and `end`."""

    def __init__(self, identity: Identity, settings: Settings, rng: random.Random, out: Outbox) -> None:
        self._identity = identity
        self._settings = settings
        self._out = out
        self._active = False
        self.directory = LeaderDirectory("storage", out)
        self.calls = RackCalls(out, self.directory, f"{identity.guid[:8]}-s-", settings.hop_margin_s)
        self._search = HolderSearch(settings, out, self.calls)
        self.repair = Repair(identity, settings, rng, out, self.directory, self.calls)

    @property
    def load(self) -> int:
        return len(self._search)

    def begin(self, now: float) -> None:
        self._active = True
        self.directory.start()
        self.repair.begin(now)

    def end(self) -> None:
        self._active = False
        self._search.end()
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
        if self._active and self.directory.known:
            self._search.on_ask(now, sender, ask)
        else:
            digest = ask.digest if isinstance(ask, FindHolders) else ""
            self._out.send(sender, Holders(ask.call, digest, False, (), (), (), 1))

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

