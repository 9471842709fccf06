"""One child of an initiator: its row in the table, and what is remembered of it besides.

What stands in the row is what a successor needs; all else can be asked for again. Counting: each child, with the
subtree below it, is a line of counts (`count`), which the initiator keeps added up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deploy.initiator.placement import Place
from deploy.initiator.steps import RUNS, Rework
from deploy.messages import Rollout, SubtreeReport
from deploy.records import Child, Outcome, Prints, StubRef
from deploy.states import EnvState, LifeState

NO_PRINTS = Prints()

Line = tuple[int, int, int, int, int, int, int, int]
"""As in messages.Counts: targeted, active, passive, pending, refused, failed, unreachable, stopped."""
NOTHING: Line = (0, 0, 0, 0, 0, 0, 0, 0)
ACTIVE: Line = (1, 1, 0, 0, 0, 0, 0, 0)
PASSIVE: Line = (1, 0, 1, 0, 0, 0, 0, 0)
PENDING: Line = (1, 0, 0, 1, 0, 0, 0, 0)
REFUSED: Line = (1, 0, 0, 0, 1, 0, 0, 0)
FAILED: Line = (1, 0, 0, 0, 0, 1, 0, 0)
UNREACHABLE: Line = (1, 0, 0, 0, 0, 0, 1, 0)
STOPPED: Line = (1, 0, 0, 0, 0, 0, 0, 1)

_OF_OUTCOME: dict[Outcome, Line] = {
    "pending": PENDING,
    "refused": REFUSED,
    "failed": FAILED,
    "unreachable": UNREACHABLE,
}


@dataclass(slots=True, eq=False)
class Subtree:
    """What is known of a child that is an initiator. `told`: the rollout for it. `report`: its last word on exactly
    that one. `epoch`: of its own table, as far as heard; what an older one reports than that, or than `least`, is an
    old incarnation's. `below`: how many it had below it when it last said so. `cleared`: it was told to remove all of
    them, and did."""

    told: Rollout | None = None
    report: SubtreeReport | None = None
    epoch: int = 0
    least: int = 0
    heard_at: float = 0.0
    repeats: int = 0
    has_charge: bool = False
    below: int = 0
    cleared: bool = False


@dataclass(slots=True, eq=False)
class Kid:
    """`place`: None when the configuration does not describe it any more."""

    name: str
    path: str
    index: int
    place: Place | None
    stub: str
    attempt: int
    env: EnvState = "non-existent"
    life: LifeState = "non-existent"
    want: LifeState = "active"
    outcome: Outcome = "pending"
    reason: str = ""
    prints: Prints = NO_PRINTS
    generation: str = ""
    initiator: bool = False
    steps: tuple[tuple[int, int], ...] = ()
    left: tuple[StubRef, ...] = ()
    tried: str = ""

    found: bool = False
    """Its row was made by a beat alone."""
    covered: bool = False
    """The rollout reaches it."""
    intent: int = 0
    """The table that says on which stub it is, and whether it has a subtree: nothing is deployed or uninstalled before
    that one is saved."""
    sent: bool = False
    """A command has been sent to its stub, by this incarnation or perhaps by an earlier one."""
    deployed: bool = False
    """A deploy of this attempt has been sent by this incarnation."""
    given_up: bool = False
    rework: Rework = ""
    checked: bool = False
    """Inspected in this rollout."""
    unsure: bool = False
    orphans: bool = False
    """It runs as no initiator, but there is a subtree of an earlier deployment of it, which was one."""
    leaf_next: bool = False
    """By an inspection, it will not be an initiator any more."""
    restart: bool = False
    tries: int = 0
    commands: int = 0
    crashes: tuple[float, ...] = ()
    slot: bool = False
    queued: bool = False
    call: str | None = None
    answered_at: float = float("-inf")
    not_before: float = 0.0
    moving: bool = False
    """Its stub is lost, and it will be placed on another one when the lease is over."""
    subtree: Subtree = field(default_factory=Subtree)
    row: Child | None = None
    line: Line = NOTHING
    open: bool = False

    def as_row(self, stub: StubRef) -> Child:
        """Made anew only when something changed (`row = None`)."""
        if self.row is None or self.row.stub is not stub:
            self.row = Child(
                self.name,
                self.index,
                stub,
                self.attempt,
                self.env,
                self.life,
                self.outcome,
                self.reason,
                self.prints,
                self.generation,
                self.initiator and not self.subtree.cleared,
                self.want,
                self.steps,
                self.left,
                self.tried,
            )
        return self.row

    def said_of_itself(self) -> str:
        """Why this initiator cannot have its children, by its own report; "" when it can."""
        report = self.subtree.report
        if report is not None and report.problems and report.problems[0].path == self.path:
            return report.problems[0].reason
        return ""

    def count(self, removing: bool) -> tuple[Line, bool]:
        """(what it and its subtree add to the counts, whether something is open in this rollout). Who is not described
        is not counted, but has to be gone; `removing` everything, what is left is counted."""
        if not self.covered:
            return NOTHING, False
        if self.place is None and not removing:
            return NOTHING, self.outcome == "pending"
        if self.outcome != "done":
            own = _OF_OUTCOME[self.outcome]
            lost = 0 if self.outcome == "pending" else self.subtree.below
            return _with_lost(own, lost), self.outcome == "pending"
        if self.life not in RUNS:
            return _with_lost(STOPPED, self.subtree.below), False
        own = ACTIVE if self.life == "active" else PASSIVE
        if not self.initiator:
            return own, False
        report = self.subtree.report
        if report is None:
            return PENDING, True
        if self.said_of_itself():
            own = FAILED
        return _plus(own, line_of(report)), not report.settled


def line_of(report: SubtreeReport) -> Line:
    one = report.counts
    return (
        one.targeted,
        one.active,
        one.passive,
        one.pending,
        one.refused,
        one.failed,
        one.unreachable,
        one.stopped,
    )


def _plus(one: Line, other: Line) -> Line:
    a, b, c, d, e, f, g, h = one
    i, j, k, l, m, n, o, p = other  # noqa: E741
    return (a + i, b + j, c + k, d + l, e + m, f + n, g + o, h + p)


def _with_lost(own: Line, lost: int) -> Line:
    """Nobody can say how those below it are."""
    return _plus(own, (lost, 0, 0, 0, 0, 0, lost, 0)) if lost else own
