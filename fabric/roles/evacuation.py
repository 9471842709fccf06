"""What of one deployment is to leave drained nodes, and what can't: the coordinator's memory of it, one run long.

An ordinal that leaves is at two places in the record: in `plan` where it is going to run, in `leaving` where it still
does. It leaves when it runs at the other; it stays (`kept_back`) when it loses the other before.
"""

from __future__ import annotations

from collections.abc import Mapping

from fabric.records import Deployment
from fabric.roles.census import Census
from fabric.roles.plans import Place, places_of


class Evacuation:
    """`unmovable`: for these there was no other place. `let_go`: what the record has as leaving has left."""

    def __init__(self, census: Census) -> None:
        self._census = census
        self.unmovable: set[int] = set()
        self.let_go = False

    def leaving(self, record: Deployment) -> dict[int, Place]:
        """Ordinal -> the old place, where it runs until it runs at the new one."""
        return {} if self.let_go else places_of(record.leaving)

    def kept_back(
        self, record: Deployment, where: Mapping[int, Place]
    ) -> tuple[dict[int, Place], dict[int, Place]]:
        """(what was leaving and has no place in `where`: it stays and can't be moved now, what leaves all the same)."""
        leaving = self.leaving(record)
        back = {ordinal: place for ordinal, place in leaving.items() if ordinal not in where}
        self.unmovable |= set(back)
        return back, {ordinal: place for ordinal, place in leaving.items() if ordinal not in back}

    def of(self, record: Deployment, wall_ms: int) -> tuple[tuple[int, ...], set[int], set[int]]:
        """Of the ordinals that the plan has on nodes which are drained: those to look for another place for; those for
        which there was none; and those of these whose node must be empty by now.

        With `max_per_rack` those to look for are of one rack: each that moves makes room for one in the rack it leaves,
        which those that stay in another rack after all would not."""
        draining = self._census.draining
        places = places_of(record.plan)
        doomed = {ordinal: node for ordinal, (node, _) in places.items() if node in draining}
        movable = tuple(sorted(set(doomed) - self.unmovable))
        if record.max_per_rack and movable:
            movable = tuple(ordinal for ordinal in movable if places[ordinal][1] == places[movable[0]][1])
        stuck = set(doomed) & self.unmovable
        return movable, stuck, {ordinal for ordinal in stuck if self._census.drain_over(doomed[ordinal], wall_ms)}
