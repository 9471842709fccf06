"""Children that are initiators: what they are told, and what they report.

A child is told a rollout when it is up, again and again until it reports on exactly that one (its id and seq). A new
`seq` is told only if something changed for this child: a wave that moves on elsewhere costs it nothing. What a child
reported on an earlier one does not count any more, from the moment at which it is to be told another.

A child that does not report although its boot stub lives is started anew. A new incarnation has a higher epoch, by
which late reports of the old one are told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from deploy.identity import name_of
from deploy.initiator.house import House
from deploy.initiator.kid import Kid
from deploy.initiator.steps import RUNS
from deploy.initiator.stubs import Stubs
from deploy.initiator.watermark import child_until
from deploy.messages import Rollout, RolloutCall, SubtreeReport
from deploy.records import Outcome


class Parenting(Protocol):
    """What has to be done about a child."""

    def consider(self, now: float, kid: Kid) -> None: ...

    def is_initiator(self, now: float, kid: Kid, yes: bool) -> None: ...

    def give_up(self, now: float, kid: Kid, outcome: Outcome, reason: str) -> None: ...


def answers(report: SubtreeReport, told: Rollout) -> bool:
    """It is about exactly this rollout."""
    return (report.rollout, report.seq) == (told.id, told.seq)


class Subtrees:
    def __init__(self, house: House, stubs: Stubs, on_silent: Callable[[float, Kid, str], None]) -> None:
        self._house = house
        self._stubs = stubs
        self._on_silent = on_silent
        self.parenting: Parenting

    # --- telling -----------------------------------------------------------------------------------------------------

    def tell(self, now: float, kid: Kid) -> None:
        """The child is up, and the rollout reaches it."""
        rollout = self._house.rollout
        assert rollout is not None
        until = child_until(self._house.path, kid.name, rollout.until)
        self._want(now, kid, msgspec.structs.replace(rollout, until=until))

    def clear(self, now: float, kid: Kid) -> None:
        """Have it remove everything below it. Ends in `cleared`, or in that it is given up."""
        rollout = self._house.rollout
        assert rollout is not None
        self._want(now, kid, msgspec.structs.replace(rollout, until="", remove_all=True, prune=True))

    def _want(self, now: float, kid: Kid, rollout: Rollout) -> None:
        subtree = kid.subtree
        told = subtree.told
        if told is None or msgspec.structs.replace(told, seq=rollout.seq) != rollout:
            subtree.has_charge = subtree.has_charge and told is None
            subtree.told, subtree.report, subtree.repeats = rollout, None, 0
            subtree.cleared = False
            self._house.recount(kid)
        self._watch(now, kid)
        if subtree.report is None and ("tell", kid.name) not in self._house.agenda:
            self._send(now, kid)

    def _send(self, now: float, kid: Kid) -> None:
        house, subtree, settings = self._house, kid.subtree, self._house.settings
        if subtree.told is None:
            return
        wait_s = min(settings.call_repeat_s * 2**subtree.repeats, settings.call_repeat_max_s)
        subtree.repeats = min(subtree.repeats + 1, 10)
        if self._stubs.is_ready(kid.stub) and kid.call is None and kid.life in RUNS:
            ref = self._stubs.where(kid.stub)
            charge = None if subtree.has_charge else house.charge_of(kid, ref)
            call = RolloutCall(kid.path, house.me, house.epoch, kid.attempt, charge, subtree.told)
            house.send(ref.address, call)
        house.agenda.set(("tell", kid.name), now + wait_s)

    def on_tell_time(self, now: float, name: str) -> None:
        kid = self._house.kids[name]
        if kid.subtree.told is not None and kid.subtree.report is None and kid.initiator:
            self._send(now, kid)

    # --- hearing -----------------------------------------------------------------------------------------------------

    def on_report(self, now: float, report: SubtreeReport) -> None:
        kid = self._house.kids.get(name_of(report.path))
        if kid is None or kid.path != report.path:
            return
        subtree, told = kid.subtree, kid.subtree.told
        if not report.epoch:
            subtree.heard_at = now
        if report.epoch < max(subtree.epoch, subtree.least, 1):
            return
        subtree.heard_at = now
        self.parenting.is_initiator(now, kid, True)
        another, subtree.epoch = report.epoch > subtree.epoch > 0, report.epoch
        if told is None or not answers(report, told):
            if another:  # a new incarnation, that was not told yet
                subtree.report, subtree.has_charge, subtree.repeats = None, False, 0
                self._house.recount(kid)
                self._send(now, kid)
            return
        subtree.has_charge = True
        said = subtree.report
        if said is not None and (said.counts, said.settled, said.problems) == (
            report.counts,
            report.settled,
            report.problems,
        ):
            return
        subtree.report = report
        subtree.below = report.counts.targeted
        self._house.agenda.drop(("tell", kid.name))
        self._house.recount(kid)
        if told.remove_all and report.settled:
            self._cleared(now, kid, report)

    def _cleared(self, now: float, kid: Kid, report: SubtreeReport) -> None:
        if report.counts.targeted == 0 and not report.problems:
            kid.subtree.cleared, kid.given_up, kid.row = True, False, None
            self.parenting.consider(now, kid)
            return
        first = report.problems[0] if report.problems else None
        found = f": {first.path}: {first.reason}" if first else ""
        self.parenting.give_up(
            now, kid, "failed", f"expected nothing left below it, found {report.counts.targeted} managents{found}"
        )

    # --- whether they live -------------------------------------------------------------------------------------------

    def new_incarnation(self, kid: Kid, after: int) -> None:
        """It was started; before that its epoch was `after`. What the old incarnation says does not count."""
        subtree = kid.subtree
        subtree.least = max(subtree.least, after + 1)
        if subtree.epoch < subtree.least:
            subtree.report = None
        subtree.repeats, subtree.has_charge = 0, False
        self._house.agenda.drop(("watch", kid.name))
        self._house.agenda.drop(("tell", kid.name))
        self._house.recount(kid)

    def _watch(self, now: float, kid: Kid) -> None:
        if ("watch", kid.name) not in self._house.agenda:
            kid.subtree.heard_at = now
            self._house.agenda.set(("watch", kid.name), now + self._house.settings.lost_s)

    def on_watch_time(self, now: float, name: str) -> None:
        kid = self._house.kids[name]
        settings = self._house.settings
        if not kid.initiator or kid.life not in RUNS or kid.given_up or kid.call is not None:
            return
        if not self._stubs.is_ready(kid.stub):
            kid.subtree.heard_at = now  # that its boot stub is silent is another matter
        silent_at = kid.subtree.heard_at + settings.lost_s
        if now < silent_at:
            self._house.agenda.set(("watch", name), silent_at)
        else:
            self._on_silent(now, kid, f"its initiator has not reported for {now - kid.subtree.heard_at:.0f} s")
