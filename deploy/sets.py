"""The exact sets of a rollout: every managent that was targeted is in one of them, by name (pure).

    targeted = active + passive + stopped + refused + failed + unreachable + pending

Passive and stopped managents are so by somebody's order, and as well as they were told to be.

The target is what the description expands to; what came of it is what initiators said, gathered through the tree. Who
answered for whom decides about names that nobody mentioned:

- an initiator on the way to it did not answer, or is not there: unreachable, through the nearest one that did answer;
- that one does not know the next one on the way, or has not deployed it yet: pending. A rollout that ran to its end
  leaves none; one that was stopped between two waves, or is still under way, does.

An initiator of which it is said that it is unreachable, or that says itself why it does not do what was asked, has not
answered for those whom nobody mentioned, even if something of what is below it came.

*Surplus* is what is there and not targeted; it is no part of the partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, fields
from typing import Final

from deploy.identity import TOP, parent_of
from deploy.messages import Counts, Entry

SILENT: Final = "its initiator did not answer ({})"
UNKNOWN: Final = "not deployed yet"


@dataclass(frozen=True, slots=True)
class Unfit:
    """A managent that is not active, and why. `through`: the initiator on whose word this is said, or behind which it
    is unreachable ("" is the top). `stub`: where it is or was to be, "" when nobody said."""

    path: str
    reason: str
    through: str = TOP
    stub: str = ""


@dataclass(frozen=True, slots=True)
class Sets:
    """Each in the order of the target; `surplus` in that of the answers."""

    active: tuple[str, ...] = ()
    passive: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    refused: tuple[Unfit, ...] = ()
    failed: tuple[Unfit, ...] = ()
    unreachable: tuple[Unfit, ...] = ()
    pending: tuple[Unfit, ...] = ()
    surplus: tuple[str, ...] = ()

    @property
    def targeted(self) -> int:
        return sum(len(getattr(self, one.name)) for one in fields(self) if one.name != "surplus")

    @property
    def complete(self) -> bool:
        """All that were targeted are as they were told to be."""
        return not (self.refused or self.failed or self.unreachable or self.pending)

    @property
    def counts(self) -> Counts:
        return Counts(
            targeted=self.targeted,
            active=len(self.active),
            passive=len(self.passive),
            stopped=len(self.stopped),
            pending=len(self.pending),
            refused=len(self.refused),
            failed=len(self.failed),
            unreachable=len(self.unreachable),
        )


def partition(target: Iterable[str], entries: Iterable[Entry], answered: Set[str]) -> Sets:
    """`target`: paths, each once. `entries`: what initiators said, in any order; of two about one managent its own
    parent's counts, and of two of these the later one. `answered`: the initiators that said all they had to say."""
    entries = tuple(entries)
    said = _counting(entries)
    well: dict[str, list[str]] = {"active": [], "passive": [], "stopped": []}
    unfit: dict[str, list[Unfit]] = {"refused": [], "failed": [], "unreachable": [], "pending": []}
    targets = dict.fromkeys(target)
    silent = {one.path: one for one in entries if one.outcome == "unreachable" or one.through == one.path}
    answered = answered - silent.keys()
    for path in targets:
        entry = said.get(path)
        if entry is None:
            kind, one = _unsaid(path, answered, said | silent)
            unfit[kind].append(one)
        elif entry.outcome == "done":
            well[entry.life if entry.life in well else "stopped"].append(path)
        else:
            unfit[entry.outcome].append(Unfit(path, entry.reason or _state(entry), entry.through, entry.stub))
    return Sets(
        **{name: tuple(paths) for name, paths in well.items()},
        refused=tuple(unfit["refused"]),
        failed=tuple(unfit["failed"]),
        unreachable=tuple(unfit["unreachable"]),
        pending=tuple(unfit["pending"]),
        surplus=tuple(
            path for path, one in said.items() if path not in targets and path != TOP and one.env != "non-existent"
        ),
    )


def _counting(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The one entry about each managent that counts."""
    said: dict[str, Entry] = {}
    for entry in entries:
        known = said.get(entry.path)
        if known is None or entry.through == parent_of(entry.path) or known.through != parent_of(known.path):
            said[entry.path] = entry
    return said


def _unsaid(path: str, answered: Set[str], said: Mapping[str, Entry]) -> tuple[str, Unfit]:
    """Of a name that nobody mentioned: what is known of `broken`, the highest initiator on the way to it that did not
    answer, decides."""
    broken, through = path, parent_of(path)
    while through and through not in answered:
        broken, through = through, parent_of(through)
    if through not in answered:
        refused = said.get(TOP)
        return "unreachable", Unfit(path, (refused and refused.reason) or SILENT.format("the top"), TOP)
    known = said.get(broken)
    if known is None or known.outcome == "pending":
        return "pending", Unfit(path, UNKNOWN, through)
    if known.outcome == "done":
        return "unreachable", Unfit(path, SILENT.format(broken), through)
    return "unreachable", Unfit(path, f"its initiator {broken} is {_word(known)}", through)


def _word(entry: Entry) -> str:
    """What is the matter with an initiator. Said by itself, it is what was asked of it that failed, and not it."""
    if entry.through == entry.path:
        return f"there, and did not ask: {entry.reason}"
    return "not active" if entry.outcome == "failed" else entry.outcome


def _state(entry: Entry) -> str:
    """For an outcome without a reason."""
    return f"its environment is {entry.env}, and it is {entry.life}"
