"""How much room there was when a create failed. Pure: samples and the history in, a number out.

A create that fails says that it found no place. That is so where nodes are away, where what is to be deleted has not
ended yet, and where users have the whole fabric: a load that is to fill it gets many such answers. It is no good answer
where there was room. So each sample tells how many more instances of the load's flavor fit on the nodes that could be
asked: those that ZooKeeper counts as present, and that no fault holds, have what their processes leave free.

`with_room` is careful in its favour: it takes the least room of all samples around the request, and less what other
creates and scales that were open meanwhile may have reserved without running yet. What it still finds may have a cause
that is seen in no sample (nodes that are cut off, disks that are full), so it is a figure and no broken promise.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Collection, Sequence

from fabric.chaos.world import Rules, Sample
from fabric.load.history import Asked
from fabric.resources import ZERO, Resources

MAX_ROOMS = 500_000
"""Samples that are kept: a day of five a second; of a longer run, the last."""
GAP_S = 2.0
"""Samples that far from a request say nothing about it."""


class Rooms:
    """How many more instances of the load's flavor fitted, sample by sample; samples of an outage are left out."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._seen: deque[tuple[float, int]] = deque(maxlen=MAX_ROOMS)

    def feed(self, sample: Sample, held: Collection[str]) -> None:
        """`held`: nodes whose agents a fault has killed or stopped."""
        need = self._rules.flavors.get(self._rules.flavor)
        if need is None or sample.members is None:
            return
        used: dict[str, Resources] = {}
        for one in sample.running:
            used[one.node] = used.get(one.node, ZERO) + self._rules.flavors.get(one.flavor, ZERO)
        here = (node for node in sample.members if node not in held)
        places = sum(self._rules.capacity.minus(used.get(node, ZERO)).holds(need) for node in here)
        self._seen.append((sample.at_s, places))

    def seen(self) -> tuple[tuple[float, int], ...]:
        """(when, how many fitted), ascending."""
        return tuple(self._seen)


def with_room(asked: Sequence[Asked], seen: Sequence[tuple[float, int]]) -> int:
    """How many creates failed although all that they asked for fitted, by every sample around them."""
    times = [at_s for at_s, _ in seen]
    changes = [one for one in asked if one.kind != "delete"]
    found = 0
    for one in changes:
        if one.kind != "create" or one.end is None or one.end.state != "failed":
            continue
        first, last = max(0, bisect_left(times, one.sent_s) - 1), bisect_right(times, one.end.at_s)
        around = seen[first : last + 1]
        if not around or around[0][0] < one.sent_s - GAP_S or around[-1][0] > one.end.at_s + GAP_S:
            continue
        from_s, to_s = min(around[0][0], one.sent_s), max(around[-1][0], one.end.at_s)
        others = (other for other in changes if other is not one and _open(other, from_s, to_s))
        taken = sum(other.last.count for other in others)
        found += min(places for _, places in around) - taken >= one.last.count
    return found


def _open(one: Asked, from_s: float, to_s: float) -> bool:
    """In some moment of it."""
    return one.sent_s < to_s and (one.end is None or one.end.at_s > from_s)
