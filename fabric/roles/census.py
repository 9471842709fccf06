"""Which compute nodes are lost, and which are to be emptied: two listings that every compute leader follows.

When a node is *replaced* is told here: when that was accepted (`losses`), and `lost_after_s` after this leader saw its
note, by this leader's own clock. Wall clocks of others don't come into it: one that is wrong must not make a node look
lost for longer than it is, since a cut-off node that stops its own instances in time relies on it (`touch`). A new
leader begins to count anew: that is late, and safe.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.records import Drain, Lost
from fabric.roles.listing import Listing
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.plans import Place
from zk import paths
from zk.tree import Outcome, SessionChanged, Stat


@dataclass(frozen=True, slots=True)
class Noted:
    """A note of a lost node, with the version of its znode, and the zxid that tells it from an earlier one."""

    lost: Lost
    version: int
    czxid: int


class Census:
    """Embed it: pass it every SessionChanged, WatchFired and TreeDone."""

    def __init__(self, out: Outbox) -> None:
        self.lost: Listing[Lost, Noted] = Listing(
            paths.LOST, Lost, lambda lost, stat: Noted(lost, stat.version, stat.czxid), "lost:", out
        )
        self.drains: Listing[Drain, Drain] = Listing(paths.DRAINS, Drain, _drain, "drains:", out)
        self._both = (self.lost, self.drains)
        self._seen: dict[str, tuple[int, float]] = {}

    def start(self) -> None:
        for listing in self._both:
            listing.start()

    def stop(self) -> None:
        for listing in self._both:
            listing.stop()
        self._seen.clear()

    @property
    def complete(self) -> bool:
        return self.lost.complete and self.drains.complete

    # --- what coordinators ask ---------------------------------------------------------------------------------------

    def replaced_at(self, place: Place, lost_after_s: float) -> float | None:
        """From when on what ran at `place` is to run elsewhere; None while that is not decided, or it is not lost."""
        node, rack = place
        noted = self.lost.entries.get(node)
        seen = self._seen.get(node)
        if noted is None or seen is None or not noted.lost.accepted_ms or noted.lost.rack != rack:
            return None
        return seen[1] + lost_after_s

    def is_replaced(self, now: float, place: Place, lost_after_s: float) -> bool:
        due = self.replaced_at(place, lost_after_s)
        return due is not None and now >= due

    @property
    def wants(self) -> frozenset[tuple[str, int]]:
        """What coordinators have to act on: another set when there is more, or other, of it."""
        lost = {(node, noted.czxid) for node, noted in self.lost.entries.items() if noted.lost.accepted_ms}
        return frozenset(lost | {(node, drain.deadline_ms) for node, drain in self.drains.entries.items()})

    @property
    def draining(self) -> frozenset[str]:
        """Nodes that are to be emptied, and get nothing new."""
        return frozenset(self.drains.entries)

    def drain_over(self, node: str, wall_ms: int) -> bool:
        """The deadline of its drain has passed: what found no other place is stopped all the same."""
        drain = self.drains.entries.get(node)
        return drain is not None and wall_ms >= drain.deadline_ms

    # --- inputs --------------------------------------------------------------------------------------------------

    def on_session(self, event: SessionChanged) -> None:
        for listing in self._both:
            listing.on_session(event)

    def on_watch(self, path: str) -> None:
        for listing in self._both:
            listing.on_watch(path)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        """True when the token was one of its own: something may have changed."""
        if self.drains.on_tree(now, token, outcome):
            return True
        if not self.lost.on_tree(now, token, outcome):
            return False
        entries = self.lost.entries
        for node, noted in entries.items():
            if self._seen.get(node, (0, 0.0))[0] != noted.czxid:
                self._seen[node] = (noted.czxid, now)
        for node in set(self._seen) - set(entries):
            del self._seen[node]
        return True

    def tick(self, now: float) -> None:
        for listing in self._both:
            listing.tick(now)

    @property
    def next_deadline(self) -> float | None:
        return earliest(*(listing.next_deadline for listing in self._both))


def _drain(drain: Drain, stat: Stat) -> Drain:
    return drain
