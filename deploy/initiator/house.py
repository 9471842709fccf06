"""What all parts of one initiator share: who it is, its children, its effects, its deadlines, its sums.

The parts (calls, stubs, keeping, bringing, subtrees, reporting, gathering, strays) know the house and few of each
other. What a child adds to the counts is taken out and put back whenever something about it changed (`recount`), so a
report costs nothing per child.
"""

from __future__ import annotations

import heapq

from deploy.hosting import InitiatorCharge
from deploy.initiator.agenda import Agenda
from deploy.initiator.charges import child_charge
from deploy.initiator.effects import Effect, Note, Send
from deploy.initiator.kid import Kid
from deploy.initiator.placement import Place
from deploy.messages import AnyDeployMessage, Charge, Counts, Parent, Problem, Rollout
from deploy.records import StubRef
from deploy.settings import Settings


class House:
    def __init__(self, charge: InitiatorCharge, address: str, guid: str, settings: Settings) -> None:
        self.path = charge.path
        self.charge = charge
        self.address = address
        self.guid = guid
        self.settings = settings
        self.me = Parent(self.path, address)
        self.agenda = Agenda()
        self.kids: dict[str, Kid] = {}
        self.rollout: Rollout | None = None
        self.prunes = False
        """The rollout reaches everything, and removes what is not described."""
        self.epoch = 0
        """Of the table; 0: not claimed yet."""
        self.active = False
        self.attempts = 0
        """The highest that was given to a child."""
        self.last_repository = ""
        """That of an earlier incarnation."""
        self.trouble = ""
        """Why it cannot have the children that its configuration gives it."""
        self.changed = False
        """Something is to be reported."""
        self.open = 0
        self._sums = [0] * 8
        self._bad: set[Kid] = set()
        self._effects: list[Effect] = []
        self._calls = 0

    # --- effects -----------------------------------------------------------------------------------------------------

    def do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def send(self, to: str, message: AnyDeployMessage) -> None:
        self._effects.append(Send(to, message))

    def info(self, text: str) -> None:
        self._effects.append(Note("info", f"initiator {self.path or '(top)'}: {text}"))

    def warn(self, text: str) -> None:
        self._effects.append(Note("warning", f"initiator {self.path or '(top)'}: {text}"))

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # --- names and numbers -------------------------------------------------------------------------------------------

    def call_id(self) -> str:
        """Never used by another incarnation."""
        self._calls += 1
        return f"{self.guid}.{self._calls}"

    def next_attempt(self) -> int:
        self.attempts += 1
        return self.attempts

    def kid_at(self, path: str) -> Kid | None:
        """The child with this path."""
        parent, _, name = path.rpartition("/")
        return self.kids.get(name) if parent == self.path else None

    def charge_of(self, kid: Kid, stub: StubRef) -> Charge:
        """What the child is deployed from and with, as of now."""
        place = kid.place or Place(kid.path, kid.name, kid.index, "stub", stub, (stub,))
        return child_charge(self.path, self.charge.role, self.charge.charge, place)

    @property
    def repository(self) -> str:
        """From which its children are deployed; a top that only asks has none, and leaves the last one's."""
        return self.charge.role.repository or self.charge.charge.repository or self.last_repository

    # --- sums --------------------------------------------------------------------------------------------------------

    def recount(self, kid: Kid) -> None:
        """Call after anything about the child changed that counts, is open, or is to be reported."""
        line, is_open = kid.line, kid.open
        kid.line, kid.open = kid.count(self.rollout is not None and self.rollout.remove_all)
        self.open += kid.open - is_open
        if kid.line != line:
            sums = self._sums
            for at in range(8):
                sums[at] += kid.line[at] - line[at]
        report = kid.subtree.report
        bad = kid.covered and (kid.outcome in ("refused", "failed", "unreachable") or bool(report and report.problems))
        if bad:
            self._bad.add(kid)
        else:
            self._bad.discard(kid)
        self.changed = True

    @property
    def counts(self) -> Counts:
        return Counts(*self._sums)

    def problems(self) -> tuple[Problem, ...]:
        """The first few: its own, then its children's and what they told, by their order."""
        most = self.settings.problems
        found = [Problem(self.path, "failed", self.trouble[:500])] if self.trouble else []
        for kid in heapq.nsmallest(most, self._bad, key=lambda one: (one.index, one.path)):
            if len(found) >= most:
                break
            if kid.outcome in ("refused", "failed", "unreachable"):
                found.append(Problem(kid.path, kid.outcome, kid.reason))
            if kid.subtree.report is not None:
                found.extend(kid.subtree.report.problems)
        return tuple(found[:most])

    @property
    def settled(self) -> bool:
        """Everything that the rollout reaches has its final outcome, here and below."""
        return self.rollout is not None and self.epoch > 0 and not self.open
