"""Redundancy kept up (promise 5): what an elected storage leader does for the contents in its share.

Theory of operation. The wanted contents (`wanted`) are shared by all storage leaders, by rendezvous hashing over the
racks that have one. Each leader compares its share with who holds it, in rounds:

    read records -> ask all storage agents, one `ListHeld` for up to MAX_LISTED contents -> note what lacks holders
                                                                                            |
       done, failed  <-  follow it by repeating `Replicate`  <-  still wanted?  <-  target <- lacking for repair_grace_s

A round begins every `repair_interval_s`, when the grace of a content is over, and soon after news: a leader of the
layer came or went; a storage agent of its own rack came, went, or holds fewer images than before, which it tells all
other storage leaders too (`HoldersChanged`), as the contents concerned are in their shares. So redundancy comes back
within about

    session_timeout_s (a dead agent, or rack leader, is noticed) + repair_grace_s + a few rounds of SOON_S + the copying

and if the news is lost, within `repair_interval_s` more. Copying is bounded: `repair_copies` at a time, of these
`repair_copies_a_target` to one agent; the others wait in a queue that each round makes anew.

Who does not answer does not count as a holder; the grace keeps a restart from costing a copy. There is no grace where
an agent says that it has lost chunks: that is no restart, and it fetches them itself, as it has all others; a damaged
copy is healed even if there are holders enough.
Before a copy begins a record is read that still names the content, so what was deleted is not brought back; one deleted
in the midst of a copy is a leftover at its target, and freed as such. What nobody holds whole can't be repaired: that
is said once, counted (`lost`), and looked at again in every round, for a holder may come back.

Two leaders that disagree on whose a content is pick the same target, where `Replicate` is idempotent. A leader that
takes over finds copies under way (`HeldList.copying`) and follows these. Out of touch with ZooKeeper (`hold`) it begins
nothing, and afterwards every grace begins anew. More holders than wanted are let be: see `redundancy`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from fabric.commands import MAX_LISTED, ListHeld
from fabric.messages import HoldersChanged, Vitals
from fabric.roles.calls import Gathered, RackCalls
from fabric.roles.copies import Copies
from fabric.roles.leaders import LeaderDirectory, looks_after
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.redundancy import Found, Store, lacks, pick_sources, pick_target, survey, with_holder
from fabric.roles.settings import Identity, Settings
from fabric.roles.wanted import Wanted
from zk.tree import Outcome

PREFIX = "repair:"
SOON_S = 1.0
"""News is waited for this long, half more or less, for more of it; rounds do not begin more often."""
MAX_SOURCES = 4
MAX_LOOK = 64
"""Waiting contents that are looked at for a free target when a copy has ended."""


@dataclass(slots=True)
class _Round:
    """One that is under way. `ahead`: what is still to be asked, a list for each question."""

    ahead: deque[tuple[str, ...]] = field(default_factory=deque)
    share: frozenset[str] = frozenset()
    sizes: dict[str, int] = field(default_factory=dict)
    stores: dict[str, Store] = field(default_factory=dict)

MAX_BLIND = 0.7
"""Of the grace: a content that was not looked at for longer is not taken to have lacked holders all the time."""


@dataclass(slots=True)
class _Lack:
    """A content that lacks holders, `since` when, `seen` so last. `failed`: node -> when a copy to it failed; `said`:
    what was noted of it last."""

    since: float
    seen: float
    size: int = 0
    found: Found = field(default_factory=Found)
    failed: dict[str, float] = field(default_factory=dict)
    said: str = ""


class Repair:
    """Embed it in the storage leader, whose directory and calls it uses; it acts only between `begin` and `end`."""

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        rng: random.Random,
        out: Outbox,
        directory: LeaderDirectory,
        calls: RackCalls,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._rng = rng
        self._out = out
        self._directory = directory
        self._calls = calls
        self._wanted = Wanted(out, PREFIX)
        self._active = False
        self._held = False
        self._due: float | None = None
        self._began = 0.0
        self._round: _Round | None = None
        self._stores: dict[str, Store] = {}
        self._lacking: dict[str, _Lack] = {}
        self._queue: deque[str] = deque()
        self._confirming: set[str] = set()
        self._copies = Copies(settings, directory, calls, self._on_ended)
        self._members: frozenset[str] | None = None
        self._images: dict[str, int] = {}
        self._leaders: dict[str, str] = {}
        self._tell_at: float | None = None
        self._told = 0.0

    @property
    def lacking(self) -> int:
        """Contents of the share that lack holders, whether their grace is over or not."""
        return len(self._lacking)

    @property
    def lost(self) -> int:
        """Those of them that nobody holds whole."""
        return sum(not lack.found.holders for lack in self._lacking.values())

    def begin(self, now: float) -> None:
        self._active, self._held = True, False
        self._began = self._told = now - SOON_S
        self._soon(now)

    def end(self) -> None:
        """Copies under way go on at their targets; the next leader finds them there."""
        self._active = False
        self._due = self._round = self._members = self._tell_at = None
        self._stores = {}
        self._lacking.clear()
        self._queue.clear()
        self._confirming.clear()
        self._images.clear()
        self._leaders.clear()
        self._copies.stop()
        self._wanted.stop()

    def hold(self) -> None:
        """Out of touch with ZooKeeper: nothing is begun on what was known before."""
        if not self._active:
            return
        self._held = True
        self._copies.hold()
        self._round = None
        self._queue.clear()
        self._confirming.clear()

    def release(self, now: float) -> None:
        if self._active and self._held:
            self._held = False
            for lack in self._lacking.values():
                lack.since = now
            self._copies.release(now)
            self._soon(now)

    # --- news -----------------------------------------------------------------------------------------------------

    def on_members(self, now: float, nodes: Iterable[str]) -> None:
        """The storage agents of the leader's own rack, as it knows them now."""
        if not self._active:
            return
        members = frozenset(nodes)
        if self._members is not None and members != self._members:
            self._news(now)
        self._members = members
        self._images = {node: images for node, images in self._images.items() if node in members}

    def on_vitals(self, now: float, node: str, vitals: Vitals) -> None:
        before = self._images.get(node, 0)
        if self._active and self._members is not None and node in self._members:
            self._images[node] = vitals.images
            if vitals.images < before:
                self._news(now)

    def on_leaders(self, now: float) -> None:
        """The directory may have changed."""
        if not self._active or not self._directory.complete:
            return  # what is read one after the other is compared once
        leaders = {rack: seen.leader.guid for rack, seen in self._directory.leaders.items()}
        if leaders != self._leaders:
            self._leaders = leaders
            self._soon(now)

    def on_changed(self, now: float) -> None:
        """Another leader has news (`HoldersChanged`)."""
        if self._active:
            self._soon(now)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        return self._wanted.on_tree(now, token, outcome)

    def _news(self, now: float) -> None:
        self._soon(now)
        if self._tell_at is None:
            self._tell_at = max(now, self._told + SOON_S)

    def _tell(self, now: float) -> None:
        self._tell_at, self._told = None, now
        for rack in sorted(self._directory.leaders):
            if rack != self._identity.rack:
                self._out.send(self._directory.leaders[rack].leader.address, HoldersChanged(self._identity.rack))

    def _soon(self, now: float) -> None:
        at = max(now + SOON_S * (0.5 + self._rng.random()), self._began + SOON_S)
        self._due = at if self._due is None else min(self._due, at)

    # --- a round --------------------------------------------------------------------------------------------------

    def _start(self, now: float) -> None:
        self._due, self._began = None, now
        if not self._directory.known:
            self._soon(now)
            return
        self._round = one = _Round()
        self._wanted.refresh(partial(self._on_records, one))

    def _on_records(self, one: _Round, now: float, ok: bool) -> None:
        if one is not self._round:
            return
        racks = self._directory.leaders
        if not ok or self._identity.rack not in racks:
            self._round = None
            self._soon(now)
            return
        one.sizes = self._wanted.contents()
        share = sorted(digest for digest in one.sizes if looks_after(self._identity.rack, digest, racks))
        one.share = frozenset(share)
        one.ahead.extend(tuple(share[at : at + MAX_LISTED]) for at in range(0, len(share), MAX_LISTED))
        self._ask(one, now)

    def _ask(self, one: _Round, now: float) -> None:
        if not one.ahead:
            self._finish(one, now)
            return
        digests = one.ahead.popleft()
        done = partial(self._on_held, one, digests)
        self._calls.gather(now, "", self._settings.command_wait_s, done, everyone=ListHeld(digests))

    def _on_held(self, one: _Round, digests: tuple[str, ...], now: float, gathered: Gathered) -> None:
        if one is not self._round:
            return
        stores, views = survey(digests, gathered)
        one.stores.update(stores)
        for digest, found in views.items():
            size = one.sizes[digest]
            if lacks(found, stores, size, self._settings.redundancy):
                lack = self._lacking.setdefault(digest, _Lack(now, now))
                if now - lack.seen > MAX_BLIND * self._settings.repair_grace_s:
                    lack.since = now  # it may have been well meanwhile: dropped, and just pushed again
                lack.seen, lack.size, lack.found = now, size, found
            else:
                self._lacking.pop(digest, None)
        self._ask(one, now)

    def _finish(self, one: _Round, now: float) -> None:
        self._round = None
        self._stores = one.stores
        self._lacking = {digest: lack for digest, lack in self._lacking.items() if digest in one.share}
        interval_s = self._settings.repair_interval_s * (0.75 + 0.5 * self._rng.random())
        half_s = self._settings.repair_grace_s / 2
        waits = [min(at, now + half_s) for lack in self._lacking.values() if (at := self._ripe_at(lack)) > now]
        self._due = earliest(self._due, now + interval_s, *waits)
        ripe = [digest for digest, lack in self._lacking.items() if self._ripe_at(lack) <= now]
        ripe.sort(key=lambda digest: (len(self._lacking[digest].found.holders), digest))
        self._queue = deque(ripe)
        self._begin_copies(now)

    def _ripe_at(self, lack: _Lack) -> float:
        return lack.since if lack.found.damaged else lack.since + self._settings.repair_grace_s

    # --- copies ---------------------------------------------------------------------------------------------------

    def _begin_copies(self, now: float) -> None:
        """Those that wait, as far as there is a place for them: each is confirmed by a record first."""
        for digest in list(self._queue)[:MAX_LOOK]:
            if len(self._copies) + len(self._confirming) >= self._settings.repair_copies:
                return
            lack = self._lacking.get(digest)
            if lack is not None and digest not in self._copies and digest not in self._confirming:
                if self._must_wait(now, digest, lack):
                    continue
                if self._wanted.confirm(digest, partial(self._on_confirmed, digest)):
                    self._confirming.add(digest)
                else:
                    del self._lacking[digest]
            self._queue.remove(digest)

    def _on_confirmed(self, digest: str, now: float, wanted: bool | None) -> None:
        if self._held or digest not in self._confirming:
            return
        self._confirming.discard(digest)
        lack = self._lacking.get(digest)
        if lack is not None and wanted:
            self._begin_copy(now, digest, lack)
        elif wanted is not None:
            self._lacking.pop(digest, None)
        self._begin_copies(now)

    def _begin_copy(self, now: float, digest: str, lack: _Lack) -> None:
        have = f"image content {digest}: {len(lack.found.holders)} of {self._settings.redundancy} holders"
        if self._must_wait(now, digest, lack):
            self._queue.append(digest)  # its target was just given to another
            return
        target = self._target(now, digest, lack, self._full())
        sources = pick_sources(digest, lack.found, self._stores, target, MAX_SOURCES)
        if not sources:
            parts = f" ({', '.join(sorted(lack.found.damaged))} lost chunks of it)" if lack.found.damaged else ""
            self._say(lack, f"{have}: nobody who is here has it whole{parts}; bring a holder back, or push it again")
        elif target is not None:
            self._out.note("info", f"{have}: copying it to {target.node} (rack {target.rack})")
            self._copies.begin(now, digest, target, sources)
        elif not lack.failed:
            self._say(lack, f"{have}: no other storage agent has room for its {lack.size} bytes; add one, or make room")

    def _say(self, lack: _Lack, text: str) -> None:
        if lack.said != text:
            lack.said = text
            self._out.note("warning", text)

    def _full(self) -> set[str]:
        return self._copies.targets_with(self._settings.repair_copies_a_target)

    def _must_wait(self, now: float, digest: str, lack: _Lack) -> bool:
        """There is a target, but not before a copy to it has ended."""
        full = self._full()
        return (
            bool(full)
            and self._target(now, digest, lack, full) is None
            and self._target(now, digest, lack) is not None
        )

    def _target(self, now: float, digest: str, lack: _Lack, full: Iterable[str] = ()) -> Store | None:
        """Who failed is tried again after a while: there may be nobody else."""
        failed = {node for node, at in lack.failed.items() if now < at + self._settings.repair_interval_s / 2}
        avoid = failed.union(full)
        return pick_target(digest, lack.found, self._stores, lack.size, self._settings.redundancy, avoid)

    def _on_ended(self, now: float, digest: str, target: Store, reason: str) -> None:
        """After a failure another target is picked at once, if there is one; else the next round looks who is here."""
        lack = self._lacking.get(digest)
        if reason:
            self._out.note("warning", f"image content {digest}: the copy to {target.node} failed: {reason}")
            if lack is not None:
                lack.failed[target.node] = now
                self._queue.appendleft(digest)
        else:
            self._out.note("info", f"image content {digest}: {target.node} has a whole copy now")
            if lack is not None:
                lack.found = with_holder(lack.found, target)
                if lacks(lack.found, self._stores, lack.size, self._settings.redundancy):
                    self._queue.append(digest)
                else:
                    del self._lacking[digest]
        self._begin_copies(now)
        if not self._copies and not self._confirming:
            self._soon(now)  # look whether all is well now

    # --- time -----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        if not self._active or self._held:
            return
        if self._tell_at is not None and now >= self._tell_at:
            self._tell(now)
        self._copies.tick(now)
        if self._due is not None and now >= self._due and self._round is None:
            self._start(now)

    @property
    def next_deadline(self) -> float | None:
        if not self._active or self._held:
            return None
        return earliest(self._tell_at, None if self._round is not None else self._due, self._copies.next_deadline)
