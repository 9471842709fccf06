"""Nodes that vanished: noted, waited for, and given up, by the leaders of compute racks.

        a member is gone for `lost_note_s`  -> note it: /lost/{node}
        it is a member of that rack again   -> delete the note
        noted for `brake_settle_s`          -> so many at once? (`brake`)
                                                 no:  accept: it is replaced (`patrol`)
                                                 yes: wait, and look again every `brake_interval_s`

The leader of a rack sees its members come and go and looks after their notes. Of members that vanished while nobody
led the rack, those that a plan names are found by the patrols. A rack without a leader is looked after by one of the
others (rendezvous hashing). A node that is a member of another rack now has lost the places that plans have for it
in this one: it is replaced there like any other, and the note goes some time later. A note that nothing came of for
`keep_lost_s` goes too; should a plan still name the node, a patrol notes it anew. Two leaders that disagree for a
moment do no harm: a note is there once, and is accepted under its version.
Nothing is noted, accepted or deleted while the session is SUSPENDED.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric.records import Lost, encode
from fabric.roles.brake import Brake, brake
from fabric.roles.census import Census
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Identity, Settings
from zk import paths
from zk.tree import Children, Create, Delete, Existed, Exists, Listed, NodeExists, Outcome, Set

PREFIX = "loss:"
COUNT = "count:"
MAX_PAUSES = 8
"""The brake is looked at this many times more rarely, in the end, while nothing changes."""
MAX_NOTED = 5_000
"""Notes that one leader writes for one event, at most: a rack."""


class Losses:
    """Embed it beside the census; it acts only between `begin` and `end`. `is_member` says whether a node is a member
    of the own rack now; `answers_for` whether this leader looks after a rack."""

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        out: Outbox,
        census: Census,
        is_member: Callable[[str], bool],
        answers_for: Callable[[str], bool],
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._out = out
        self._census = census
        self._is_member = is_member
        self._answers_for = answers_for
        self._active = False
        self._gone: dict[str, float] = {}
        self._first_seen: dict[str, float] = {}
        self._decide_at: float | None = None
        self._pause_s = settings.brake_interval_s
        self._tidy_at: float | None = None
        self._members: dict[str, int] = {}
        self._uncounted: set[str] | None = None
        """Racks whose members are being counted for a decision; None: no count is under way."""
        self.brake: Brake | None = None
        """As of the last decision of this leader."""

    def begin(self, now: float) -> None:
        self._active = True
        self._tidy_at = now + self._settings.patrol_interval_s

    def end(self) -> None:
        self._active = False
        self._gone.clear()
        self._first_seen.clear()
        self._decide_at = self._uncounted = self._tidy_at = self.brake = None

    # --- what is seen --------------------------------------------------------------------------------------------

    def vanished(self, now: float, node: str) -> None:
        """A member of the own rack is gone."""
        if self._active and len(self._gone) < MAX_NOTED:
            self._gone.setdefault(node, now)

    def appeared(self, node: str) -> None:
        """It is a member of the own rack (again)."""
        self._gone.pop(node, None)
        self._forgive(node)

    def note(self, node: str, rack: str) -> None:
        """Found to be gone: write it down, unless it is."""
        if self._active and node not in self._census.lost.entries:
            lost = Lost(node=node, rack=rack, since_ms=self._out.wall_ms)
            self._out.tree(f"{PREFIX}note:{node}", Create(paths.lost(node), encode(lost)))

    def changed(self, now: float) -> None:
        """The census has news."""
        if not self._active or not self._census.lost.complete:
            return
        entries = self._census.lost.entries
        for node in sorted(entries):
            if self._is_member(node):
                self._forgive(node)
        self._pause_s = self._settings.brake_interval_s
        self._first_seen = {node: self._first_seen.get(node, now) for node in sorted(entries)}
        self._plan_decision(now)

    def _forgive(self, node: str) -> None:
        noted = self._census.lost.entries.get(node)
        if noted is not None and self._active and noted.lost.rack == self._identity.rack:
            self._out.note("info", f"node {node} is back")
            self._out.tree(f"{PREFIX}back:{node}", Delete(paths.lost(node), noted.version))

    def _tidy(self, now: float) -> None:
        """Notes that have served: of nodes that are members elsewhere now, and of those that never came back."""
        healed_s = 2 * self._settings.patrol_interval_s
        for node, noted in sorted(self._census.lost.entries.items()):
            moved = self._is_member(node) and noted.lost.rack != self._identity.rack
            served = moved and noted.lost.accepted_ms and now > self._first_seen.get(node, now) + healed_s
            aged = self._out.wall_ms - noted.lost.since_ms > self._settings.keep_lost_s * 1000
            if served or (aged and self._answers_for(noted.lost.rack)):
                self._out.tree(f"{PREFIX}tidy:{node}", Delete(paths.lost(node), noted.version))

    # --- the decision --------------------------------------------------------------------------------------------

    def _open(self) -> list[str]:
        """Notes that this leader is to decide about."""
        return [
            node
            for node, noted in sorted(self._census.lost.entries.items())
            if not noted.lost.accepted_ms and self._answers_for(noted.lost.rack)
        ]

    def _plan_decision(self, now: float) -> None:
        ready = [self._first_seen.get(node, now) + self._settings.brake_settle_s for node in self._open()]
        if not ready:
            self._decide_at = None
            self._set_brake(None)
        elif self._decide_at is None and self._uncounted is None:
            self._decide_at = max(now, min(ready))

    def _count(self) -> None:
        self._members = {}
        self._uncounted = set()
        self._out.tree(f"{PREFIX}racks", Children(f"{paths.MEMBERS}/compute"))

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(PREFIX):
            return False
        if not self._active:
            return True
        what = token[len(PREFIX) :]
        if what == "racks" and isinstance(outcome, Listed) and self._uncounted is not None:
            self._uncounted = set(outcome.names)
            for rack in sorted(self._uncounted):
                self._out.tree(f"{PREFIX}{COUNT}{rack}", Exists(paths.rack_members("compute", rack)))
        elif what.startswith(COUNT) and isinstance(outcome, Existed) and self._uncounted is not None:
            rack = what[len(COUNT) :]
            self._uncounted.discard(rack)
            self._members[rack] = outcome.stat.children if outcome.stat is not None else 0
            if not self._uncounted:
                self._uncounted = None
                self._decide(now)
        elif what == "racks" or what.startswith(COUNT):  # no answer: count again
            self._uncounted = None
            self._decide_at = now + self._settings.brake_interval_s
        elif what.startswith("note:") and isinstance(outcome, NodeExists):
            self._census.lost.doubt(what.partition(":")[2])
        return True

    def _decide(self, now: float) -> None:
        self._decide_at = now + self._pause_s
        # Members that come back change the notes, and so begin with short pauses again; others need no hurry.
        self._pause_s = min(2 * self._pause_s, MAX_PAUSES * self._settings.brake_interval_s)
        entries = self._census.lost.entries
        self._set_brake(
            brake((noted.lost for noted in entries.values()), self._members, self._out.wall_ms, self._settings)
        )
        if self.brake is not None:
            return
        for node in self._open():
            if now < self._first_seen.get(node, now) + self._settings.brake_settle_s:
                continue
            noted = entries[node]
            accepted = Lost(node, noted.lost.rack, noted.lost.since_ms, self._out.wall_ms, self._identity.node)
            self._out.note("warning", f"node {node} of rack {noted.lost.rack} is lost: what ran there is replaced")
            self._out.tree(f"{PREFIX}accept:{node}", Set(paths.lost(node), encode(accepted), noted.version))

    def _set_brake(self, found: Brake | None) -> None:
        if found is not None and self.brake is None:
            self._out.note("warning", found.sentence)
        elif found is None and self.brake is not None:
            self._out.note("warning", "the brake is off: lost nodes are replaced again")
        self.brake = found

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        if not self._active:
            return
        for node in [one for one, at in self._gone.items() if now >= at + self._settings.lost_note_s]:
            del self._gone[node]
            if not self._is_member(node):
                self.note(node, self._identity.rack)
        if self._decide_at is not None and now >= self._decide_at:
            self._decide_at = None
            if self._open():
                self._count()
            else:
                self._set_brake(None)
        if self._tidy_at is not None and now >= self._tidy_at:
            self._tidy_at = now + self._settings.patrol_interval_s
            self._tidy(now)

    @property
    def next_deadline(self) -> float | None:
        if not self._active:
            return None
        noted = min((at + self._settings.lost_note_s for at in self._gone.values()), default=None)
        return earliest(noted, self._decide_at, self._tidy_at)
