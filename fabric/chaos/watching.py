"""Judging what is only wrong for a while, sample by sample. Pure: samples in, findings kept.

Theory of operation. A sample is a look at all processes between two looks at ZooKeeper's members, some times a second.
Between two samples anything may have happened, so only what is *seen* is judged; and as a look takes some milliseconds,
in which one instance may end and another begin in its place, what may not be there at once counts when the same
processes are seen in two samples in a row: then they all were there at the end of the first.

- **exactly**: an ordinal with processes on two nodes, both of them present by ZooKeeper in both samples. A deployment
  with `stop_after_s` may not run twice even where a node is away; nodes that a fault holds (`held`: dead or stopped
  agents) can't have stopped anything and are excused.
- **capacity**: the flavors of what runs on a node in both samples, summed up, against what it has.
- **outage**: from OUTAGE_MARGIN_S after ZooKeeper went until it is back, what runs keeps running where it is. Excused
  is what a request that was under way may still stop, what nobody wanted any more before (a node that was away ends it
  when it hears of that, in its own time), a second copy, what a fault of the scenario killed (`struck`), and
  deployments with `stop_after_s`, which asked for it.

Memory is bounded: the last sample, the findings, of each thing one, and the room that there was (room.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from fabric.chaos.room import Rooms
from fabric.chaos.verdict import Finding, Promise
from fabric.chaos.world import Outage, Rules, Running, Sample
from fabric.resources import ZERO

OUTAGE_MARGIN_S = 1.0
"""Orders that were on their way when ZooKeeper went are carried out."""
MAX_FINDINGS = 1000
Slot = tuple[str, int]


class Watching:
    """`stop_after_s(deployment)`: as it was asked for, 0: never, or not known. `wanted(deployment, ordinal)`: as far as
    users know. `held`, `struck`, `outage`: what the
    runner's faults are doing now; it changes them as they happen."""

    def __init__(
        self,
        rules: Rules,
        stop_after_s: Callable[[str], int] = lambda deployment: 0,
        wanted: Callable[[str, int], bool] = lambda deployment, ordinal: True,
    ) -> None:
        self.rules = rules
        self.held: Mapping[str, float] = {}
        """Node -> since when its agent is dead or stopped by a fault."""
        self.struck: set[tuple[int, int]] = set()
        """(pid, started) of instances' processes that a fault signalled."""
        self.outage: Outage | None = None
        self.findings: list[Finding] = []
        self.rooms = Rooms(rules)
        self.samples = 0
        self.most_running = 0
        self.seen: set[tuple[str, int, str, int, int]] = set()
        """Every instance that was ever seen: how many were started."""
        self.under_redundant_s: dict[str, float] = {}
        """Digest -> the longest time for which it had less than two holders in a row."""
        self._stop_after_s, self._wanted = stop_after_s, wanted
        self._doubles: dict[Slot, frozenset[Running]] = {}
        self._known: set[tuple[Promise, str]] = set()
        self._before: Sample | None = None
        self._outage_base: dict[tuple[Slot, str], Running] = {}
        self._outage_busy: frozenset[str] = frozenset()
        self._outage_of: Outage | None = None
        self._short_since: dict[str, float] = {}

    def feed(self, sample: Sample) -> None:
        self.samples += 1
        self.most_running = max(self.most_running, len(sample.running))
        self.seen.update((one.deployment, one.ordinal, one.node, one.pid, one.started) for one in sample.running)
        self._exactly(sample)
        self._capacity(sample)
        self._during_outage(sample)
        self._redundancy(sample)
        self.rooms.feed(sample, self.held)
        self._before = sample

    # --- the promises ------------------------------------------------------------------------------------------------

    def _exactly(self, sample: Sample) -> None:
        places: dict[Slot, set[Running]] = {}
        for one in sample.running:
            places.setdefault((one.deployment, one.ordinal), set()).add(one)
        doubles: dict[Slot, frozenset[Running]] = {}
        for slot, here in places.items():
            if len({one.node for one in here}) < 2:
                continue
            counted = frozenset(one for one in here if self._counts(one, sample))
            if len({one.node for one in counted}) < 2:
                continue
            doubles[slot] = counted
            stay = counted & self._doubles.get(slot, frozenset())
            nodes = sorted({one.node for one in stay})
            if len(nodes) > 1:
                self._found("exactly", sample.at_s, f"{slot[0]}.{slot[1]} runs on {', '.join(nodes)} at once")
        self._doubles = doubles

    def _counts(self, one: Running, sample: Sample) -> bool:
        if self._stop_after_s(one.deployment):
            return one.node not in self.held
        return sample.members is not None and one.node in sample.members

    def _capacity(self, sample: Sample) -> None:
        here: dict[str, list[Running]] = {}
        for one in sample.running & self._before.running if self._before is not None else ():
            here.setdefault(one.node, []).append(one)
        for node, these in here.items():
            taken = sum((self.rules.flavors.get(one.flavor, ZERO) for one in these), ZERO)
            if taken.minus(self.rules.capacity) != ZERO:
                names = ", ".join(sorted(one.name for one in these))
                text = f"{node} has {self.rules.capacity} and runs {taken}: {names}"
                self._found("capacity", sample.at_s, text, node)

    def _during_outage(self, sample: Sample) -> None:
        outage = self.outage
        if outage is None or not outage.from_s + OUTAGE_MARGIN_S <= sample.at_s < outage.to_s:
            self._outage_of = None
            return
        running = {((one.deployment, one.ordinal), one.node): one for one in sample.running}
        if self._outage_of is None:
            self._outage_of, self._outage_busy = outage, sample.busy
            times = Counter(slot for slot, _ in running)
            self._outage_base = {
                (slot, node): one
                for (slot, node), one in running.items()
                if times[slot] == 1 and self._wanted(*slot)
            }
            return
        for (slot, node), one in self._outage_base.items():
            if (slot, node) in running or not self._steady(one):
                continue
            self._found("outage", sample.at_s, f"{one.name} on {node} ended while ZooKeeper had no quorum")
        places = {slot for slot, _ in self._outage_base}
        for (slot, node), one in running.items():
            if (slot, node) not in self._outage_base and slot in places and self._steady(one):
                self._found("outage", sample.at_s, f"{one.name} began on {node} while ZooKeeper had no quorum")

    def _steady(self, one: Running) -> bool:
        """Nothing but a guess could end it, or begin it elsewhere."""
        if one.deployment in self._outage_busy or self._stop_after_s(one.deployment):
            return False
        return (one.pid, one.started) not in self.struck

    def _redundancy(self, sample: Sample) -> None:
        """Only measured: for how long an image has too few holders is a figure, and judged in the end."""
        for digest, nodes in sample.holders.items():
            if len(nodes) >= self.rules.redundancy:
                self._short_since.pop(digest, None)
                continue
            since = self._short_since.setdefault(digest, sample.at_s)
            short_s = sample.at_s - since
            self.under_redundant_s[digest] = max(short_s, self.under_redundant_s.get(digest, 0.0))

    def _found(self, promise: Promise, at_s: float, text: str, what: str = "") -> None:
        """Once for each thing, `what` or the text: it is seen again in every sample."""
        if (promise, what or text) in self._known or len(self.findings) >= MAX_FINDINGS:
            return
        self._known.add((promise, what or text))
        self.findings.append(Finding(promise, at_s, text))


def watched(rules: Rules, samples: Iterable[Sample], outage: Outage | None = None) -> list[Finding]:
    """The findings in these samples."""
    watching = Watching(rules)
    watching.outage = outage
    for sample in samples:
        watching.feed(sample)
    return watching.findings
