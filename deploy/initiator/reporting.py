"""What goes upward: a `SubtreeReport` to the parent; `Progress` and `Settled` to the owner of the top.

Changes are held back for up to `report_s`, so that a subtree of 10,000 does not make its parent hear each of them; that
everything is settled is said at once. A parent that is told nothing new hears the same again every `beat_s`: reports
may be lost, and it wants to know who lives.
"""

from __future__ import annotations

from deploy.initiator.effects import Progress, Settled
from deploy.initiator.house import House
from deploy.messages import SubtreeReport


class Reporting:
    def __init__(self, house: House) -> None:
        self._house = house
        self._said_at = float("-inf")
        self._settled: tuple[str, int] | None = None
        self.now = False
        """The next flush tells, whatever was said before: the parent is another, or asks."""

    def flush(self, now: float, settled: bool) -> None:
        """At the end of an input. `settled`: and everything is written that has to be."""
        house = self._house
        rollout = house.rollout
        state = (rollout.id, rollout.seq) if settled and rollout is not None else None
        news = state is not None and state != self._settled
        if news or self.now or (house.changed and now >= self._said_at + house.settings.report_s):
            self._tell(now, state)
        elif house.changed:
            house.agenda.by(("report", ""), self._said_at + house.settings.report_s)

    def on_time(self) -> None:
        self.now = True

    def _tell(self, now: float, state: tuple[str, int] | None) -> None:
        house = self._house
        rollout = house.rollout
        again = state is None or state == self._settled
        self._said_at, self._settled = now, state
        changed, house.changed, self.now = house.changed, False, False
        house.agenda.set(("report", ""), now + house.settings.beat_s)
        named = (rollout.id, rollout.seq) if rollout is not None else ("", 0)
        if house.path:
            if house.charge.parent.address:
                house.send(house.charge.parent.address, self._report(*named, settled=state is not None))
        elif rollout is not None and not again:
            house.do(Settled(*named, house.counts, house.problems()))
        elif rollout is not None and changed:
            house.do(Progress(*named, house.counts, house.problems()))

    def _report(self, rollout: str, seq: int, settled: bool) -> SubtreeReport:
        house = self._house
        return SubtreeReport(
            house.charge.parent.path,
            house.path,
            house.address,
            house.epoch,
            rollout,
            seq,
            settled,
            house.counts,
            house.problems(),
        )
