"""The patrol: each compute leader reads its share of the deployments' records, and opens those that need a coordinator.

Theory of operation. A deployment at rest has nobody who looks after it. What may have happened to it is told by events:
a node was lost or is to be emptied (the census), a rack got another leader. At each, and every `patrol_interval_s` for
what no event told, a leader walks over all deployments of its share (rendezvous hashing), a few reads in flight:

        for each record at rest, running:
            a node of its plan is lost, and is to be replaced by now     -> open it: reconcile heals it
            a node of its plan is to be emptied                          -> open it
            it lacks ordinals that were lost and found no place          -> open it, once a round
        after a walk that no note or drain was the reason of, for the racks that came up: who is there?
            a node of a plan that is not, and is not noted               -> note it (`losses`)
        for each record that is over: prune it when it is old, or one too many

To open means, in one transaction: a new generation (under the version that was read, so a user's change in between
wins) and the open marker. The leader then takes it in charge itself; should it die, the sweeps find the marker.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from fabric.ordinals import MAX_COUNT
from fabric.records import BadRecord, Deployment, decode, encode
from fabric.roles.census import Census
from fabric.roles.losses import Losses
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.plans import Place
from fabric.roles.settings import Settings
from zk import paths
from zk.tree import Children, Create, Delete, Done, Get, Got, Listed, Multi, NoNode, Outcome, Set

PREFIX = "patrol:"
IN_FLIGHT = 32
"""Records being read at a time."""
MAX_OPENED = 64
"""Deployments opened in one walk; the next walk, a moment later, goes on."""
MAX_TRIED = MAX_COUNT
SOON_S = 0.05
"""Events that come together lead to one walk."""
GO_ON_S = 2.0


class Patrol:
    """Embed it; it acts only between `begin` and `end`. `is_mine`: by deployment id; `leaders`: how many there are;
    `free`: whether this leader does not coordinate the deployment already; `take`: coordinate it."""

    def __init__(
        self,
        settings: Settings,
        rng: random.Random,
        out: Outbox,
        census: Census,
        losses: Losses,
        is_mine: Callable[[str], bool],
        leaders: Callable[[], int],
        free: Callable[[str], bool],
        take: Callable[[float, str], None],
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._out = out
        self._census = census
        self._losses = losses
        self._is_mine = is_mine
        self._leaders = leaders
        self._free = free
        self._take = take
        self._active = False
        self._walk_at: float | None = None
        self._periodic = 0.0
        """When it is time for a walk without an event."""
        self._walking = False
        self._whole = True
        """The next walk is over all, not only those that were busy."""
        self._again = False
        self._around = False
        """Look who is there at the end of the next walk."""
        self._failed = False
        self._busy: set[str] = set()
        """Deployments that need it, but are being coordinated: they alone are looked at again soon."""
        self._left: list[str] = []
        self._reading: set[str] = set()
        self._opened = 0
        self._due: float | None = None
        """When the next node of a plan that was read is to be replaced, or must be empty."""
        self._places: set[Place] = set()
        self._racks: list[str] = []
        self._asking: set[str] = set()
        self._tried: dict[str, float] = {}
        """Deployments opened for what may not be to be had -> when they may be again."""
        self._finals = 0
        self._beyond = 0

    def begin(self, now: float) -> None:
        self._active = self._around = True
        self._walk_at = now + self._settings.lost_note_s + self._rng.random()

    def end(self) -> None:
        self._active = self._walking = self._again = self._around = False
        self._walk_at = None
        self._tried.clear()
        self._reading.clear()
        self._asking.clear()
        self._busy.clear()
        self._whole = True
        self._finals = self._beyond = 0

    def soon(self, now: float, after_s: float = SOON_S, around: bool = False) -> None:
        """Something happened that may concern deployments at rest. `around`: members may have gone unseen."""
        if not self._active:
            return
        self._around = self._around or around
        self._whole = True
        if self._walking:
            self._again = True
        else:
            self._walk_at = min(self._walk_at or now + after_s, now + after_s)

    # --- the walk ------------------------------------------------------------------------------------------------

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(PREFIX):
            return False
        if not self._active:
            return True
        kind, _, name = token[len(PREFIX) :].partition(":")
        if kind == "list" and self._walking:
            names = outcome.names if isinstance(outcome, Listed) else ()
            self._failed = not isinstance(outcome, Listed)
            self._left = [one for one in reversed(names) if self._is_mine(one)]
            self._go_on(now)
        elif kind == "record" and name in self._reading:
            self._reading.discard(name)
            if isinstance(outcome, Got):
                self._judge(now, name, outcome)
            self._failed = self._failed or not isinstance(outcome, Got | NoNode)
            self._go_on(now)
        elif kind == "rack" and name in self._asking:
            self._asking.discard(name)
            if isinstance(outcome, Listed | NoNode):
                self._compare(name, frozenset(outcome.names if isinstance(outcome, Listed) else ()))
            else:
                self._failed = self._around = True
            self._look_around(now)
        elif kind == "open" and isinstance(outcome, Done) and self._free(name):
            self._out.note("info", f"{name}: opened for reconciliation")
            self._take(now, name)
        return True

    def _go_on(self, now: float) -> None:
        while self._left and len(self._reading) < IN_FLIGHT:
            name = self._left.pop()
            self._reading.add(name)
            self._out.tree(f"{PREFIX}record:{name}", Get(paths.deployment(name)))
        if self._left or self._reading or not self._walking:
            return
        if self._around:
            self._around = False
            self._racks = sorted({rack for _node, rack in self._places}, reverse=True)
        self._look_around(now)

    def _look_around(self, now: float) -> None:
        while self._racks and len(self._asking) < IN_FLIGHT:
            rack = self._racks.pop()
            self._asking.add(rack)
            self._out.tree(f"{PREFIX}rack:{rack}", Children(paths.rack_members("compute", rack)))
        if not self._asking:
            self._end(now)

    def _compare(self, rack: str, present: frozenset[str]) -> None:
        for node, where in sorted(self._places):
            if where == rack and node not in present:
                self._losses.note(node, rack)

    def _end(self, now: float) -> None:
        self._walking = False
        self._places.clear()
        self._tried = {one: until for one, until in self._tried.items() if until > now}
        if self._whole:
            self._beyond = max(0, self._finals - self._settings.keep_final // max(1, self._leaders()))
            self._finals = 0
        if self._periodic <= now:
            self._periodic = now + self._settings.patrol_interval_s * (0.75 + 0.5 * self._rng.random())
        whole_at = earliest(
            self._periodic,
            None if self._due is None else max(self._due, now + SOON_S),
            now + GO_ON_S if self._failed else None,
            now + SOON_S if self._again else None,
        )
        assert whole_at is not None
        self._again = False
        self._whole = not self._busy or whole_at <= now + GO_ON_S
        self._walk_at = whole_at if self._whole else now + GO_ON_S

    # --- a record ------------------------------------------------------------------------------------------------

    def _judge(self, now: float, name: str, found: Got) -> None:
        path = paths.deployment(name)
        try:
            record = decode(found.data, Deployment, path)
        except BadRecord as error:
            self._out.note("warning", f"{error}; it is left as it is")
            return
        if not record.final:
            if self._reason(now, record) == "need":
                self._busy.add(name)  # who coordinates it may have looked before that was so
            return
        if record.state != "running":
            self._prune(record, path, found.stat.version)
            return
        self._places.update((share.node, share.rack) for share in (*record.plan, *record.stopping))
        why = self._reason(now, record)
        if why and (self._opened >= MAX_OPENED or not self._free(name)):
            self._failed = True  # another time, soon
        elif why:
            self._opened += 1
            if why == "wish":
                self._tried[name] = now + self._settings.patrol_interval_s * 0.7
            again = msgspec.structs.replace(
                record, generation=record.generation + 1, updated_ms=self._out.wall_ms
            )
            opening = Multi((Set(path, encode(again), found.stat.version), Create(paths.open_marker(name))))
            self._out.tree(f"{PREFIX}open:{name}", opening)

    def _reason(self, now: float, record: Deployment) -> str:
        """Why it is to be opened: "need"; "wish" (what there may be no room for: once a round); or not at all."""
        needs = wish = False
        for share in record.plan:
            lost_at = self._census.replaced_at((share.node, share.rack), record.lost_after_s)
            if lost_at is not None:
                needs = needs or lost_at <= now
                self._wake_at(lost_at, now)
            drain = self._census.drains.entries.get(share.node)
            if drain is not None:
                wish = True
                over_in_s = (drain.deadline_ms - self._out.wall_ms) / 1000
                needs = needs or over_in_s <= 0
                self._wake_at(now + over_in_s, now)
        wish = wish or record.lacking > 0
        if needs:
            return "need"
        return "wish" if wish and now >= self._tried.get(record.id, now) and len(self._tried) < MAX_TRIED else ""

    def _wake_at(self, due: float, now: float) -> None:
        if due > now:
            self._due = due if self._due is None else min(self._due, due)

    def _prune(self, record: Deployment, path: str, version: int) -> None:
        self._finals += 1
        aged = self._out.wall_ms - record.updated_ms > self._settings.keep_final_s * 1000
        if aged or self._beyond > 0:
            self._beyond -= 1
            self._finals -= 1
            keys = (Delete(paths.key(record.key)),) if record.key else ()
            gone = Multi((Delete(paths.trace(record.id)), Delete(path, version), *keys))
            self._out.tree(f"{PREFIX}gone:{record.id}", gone)

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float, held: bool) -> None:
        """`held`: the session is SUSPENDED: nothing is begun."""
        if not self._active or self._walk_at is None or now < self._walk_at or held:
            return
        if self._periodic <= now:
            self._around = True
        self._walk_at = None
        if not self._census.complete:
            self._walk_at = now + GO_ON_S
            return
        self._walking = True
        self._failed = False
        self._opened = 0
        self._places.clear()
        busy, self._busy = self._busy, set()
        if self._whole or self._around:
            self._whole = True
            self._due = None
            self._out.tree(f"{PREFIX}list", Children(paths.DEPLOYMENTS))
        else:
            self._left = sorted(busy, reverse=True)
            self._go_on(now)

    @property
    def next_deadline(self) -> float | None:
        return earliest(self._walk_at) if self._active else None
