"""The matrix as data: which cells there are, what became of each, and how that is told. Pure.

A *cell* is one step of the flow (`fabric.steps`): a request is made, whoever comes to that step first dies there (or is
stopped for longer than a session), and the request must end all the same. What a cell says:

    step, victim                     who it was that came there first; "" if nobody did, which is a fault of the matrix
    state, reason, ended_ms          how the request ended, so long after the fault
    whole_ms                         from the victim's return until all was as it should be
    troubles                         what was wrong at the bound, or was seen to be wrong meanwhile: promise and text
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

import msgspec

from fabric.steps import BY_NAME, ROLES, STEPS, RoleName, Step

NEVER = -1
FINAL_GOOD = frozenset({"running", "deleted"})


class BadChoice(Exception):
    """Roles or steps that there are not: what was expected, what was found."""


class Cell(msgspec.Struct, frozen=True):
    """What became of one. `ended_ms`, `whole_ms`: NEVER when not within the bound."""

    step: str
    victim: str = ""
    state: str = ""
    reason: str = ""
    ended_ms: int = NEVER
    whole_ms: int = NEVER
    troubles: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """A final state, with a reason if it is not the one that was wanted, and every promise kept."""
        ended = self.state in FINAL_GOOD or (self.state == "failed" and bool(self.reason))
        return bool(self.victim) and ended and NEVER not in (self.ended_ms, self.whole_ms) and not self.troubles

    @property
    def told(self) -> str:
        """In a few words."""
        if self.holds:
            return self.state
        return self.troubles[0] if self.troubles else f"{self.state or 'no final state'}: {self.reason}"


class Row(msgspec.Struct, frozen=True):
    """A role: its cells, how many hold, and the longest times of those that do."""

    role: RoleName
    cells: int
    hold: int
    ended_most_ms: int
    whole_most_ms: int


class Told(msgspec.Struct, frozen=True):
    """A whole matrix. `action`: what was done to the victims. `back`: when they came back."""

    action: str
    back: str
    session_s: float
    took_s: float
    cells: tuple[Cell, ...]

    @property
    def holds(self) -> bool:
        return all(cell.holds for cell in self.cells)


def choose(roles: Sequence[str] = (), steps: Sequence[str] = ()) -> tuple[Step, ...]:
    """In the order of the flow. `steps`: names, or patterns such as "coordinator.*"; nothing given means all. Raises
    BadChoice."""
    for role in roles:
        if role not in ROLES:
            raise BadChoice(f"expected roles among {', '.join(ROLES)}, found {role!r}")
    for pattern in steps:
        if not fnmatch.filter(BY_NAME, pattern):
            close = difflib.get_close_matches(pattern, BY_NAME, 1)
            raise BadChoice(f"expected a step, found {pattern!r}" + (f"; did you mean {close[0]}?" if close else ""))
    return tuple(
        step
        for step in STEPS
        if (not roles or step.role in roles)
        and (not steps or any(fnmatch.fnmatchcase(step.name, pattern) for pattern in steps))
    )


def rows(cells: Iterable[Cell]) -> tuple[Row, ...]:
    """One for each role that has cells."""
    found = []
    every = tuple(cells)
    for role in ROLES:
        these = [cell for cell in every if BY_NAME[cell.step].role == role]
        if these:
            hold = [cell for cell in these if cell.holds]
            ended = max((cell.ended_ms for cell in hold), default=NEVER)
            found.append(Row(role, len(these), len(hold), ended, max((c.whole_ms for c in hold), default=NEVER)))
    return tuple(found)
