"""In touch with ZooKeeper, and out of it: what that means for the instances of a node.

Out of touch, a node can't know whether it is cut off alone, and its ordinals start elsewhere, or whether nobody has a
quorum. So its instances run on, unless their deployment says `stop_after_s`: then the node stops them that long after
it lost touch (or started without it), but keeps their place. For users this is a trade: with it, an ordinal is in two
places at no time, not even across a partition, if the node stops them before the others give it up (`lost_after_s`);
without it, instances outlast any outage of ZooKeeper.

Connected again is not in touch again: in a new session the node first comes home (`verify`) and registers.
"""

from __future__ import annotations

from fabric.roles.instances import Instances
from fabric.roles.outbox import Outbox

_PARKABLE = frozenset({"assigned", "fetching", "starting", "running", "backoff"})


class Touch:
    """Embed it in the compute role. An agent begins out of touch."""

    def __init__(self, instances: Instances, out: Outbox) -> None:
        self._instances = instances
        self._out = out
        self._since: float | None = None

    def lost(self, now: float) -> None:
        """No connection. Only the first time counts."""
        if self._since is None:
            self._since = now

    def found(self) -> None:
        """Counted as present: to be connected is not enough, as what ran here may be starting elsewhere."""
        self._since = None

    def is_over(self, now: float, stop_after_s: int) -> bool:
        """Out of touch for so long that nothing with this limit may run here."""
        return self._since is not None and stop_after_s > 0 and now >= self._since + stop_after_s

    def resume(self, now: float) -> None:
        """This node is counted as present, with all that it has: what waited for that starts."""
        for _, work in sorted(self._instances.works.items()):
            waiting = [entry for entry in work.entries.values() if entry.state in ("recovering", "parked")]
            for entry in waiting:
                entry.state = "assigned"
            if waiting:
                self._instances.begin(now, work)

    def tick(self, now: float) -> None:
        if self._since is None:
            return
        for _, work in sorted(self._instances.works.items()):
            after_s = work.spec.stop_after_s
            if not self.is_over(now, after_s):
                continue
            for ordinal, entry in sorted(work.entries.items()):
                if entry.state in _PARKABLE:
                    what = f"{work.deployment}: stopping ordinal {ordinal}"
                    self._out.note("warning", f"{what}: out of touch with ZooKeeper for {after_s} s")
                    self._instances.park(work, entry)

    @property
    def next_deadline(self) -> float | None:
        since = self._since
        if since is None:
            return None
        return min(
            (
                since + work.spec.stop_after_s
                for work in self._instances.works.values()
                if work.spec.stop_after_s and any(entry.state in _PARKABLE for entry in work.entries.values())
            ),
            default=None,
        )
