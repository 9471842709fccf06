"""What people and programs see of plans and of what came of them.

Tables are cut for people, never for programs: `--format json` has all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from urllib.parse import urljoin

import msgspec
from msgspec.structs import asdict

from deploy.messages import Counts, Entry
from deploy.plan import Change, Kind, Plan
from deploy.repository.resolver import repository_url
from deploy.sets import Sets, Unfit
from deploy.top import Answer, Result
from fabric.cli import output

ROWS = 40
"""Of a table for people."""
STYLES: dict[Kind, str] = {
    "add": "green",
    "reinstall": "yellow",
    "reconfigure": "yellow",
    "start": "green",
    "mend": "yellow",
    "retry": "yellow",
    "remove": "red",
    "invalid": "red",
}
WORDS: dict[Kind, str] = {
    "add": "to add",
    "reinstall": "to reinstall",
    "reconfigure": "to reconfigure",
    "start": "to start",
    "mend": "to mend",
    "retry": "failed before (apply --resume tries again)",
    "remove": "to remove",
    "invalid": "described wrongly",
}


def emit(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


class PlanView(msgspec.Struct, frozen=True):
    """A plan for programs."""

    repository: str
    generation: str
    targeted: int
    unchanged: int
    counts: dict[Kind, int]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]


class SetsView(msgspec.Struct, frozen=True):
    """The sets for programs."""

    counts: dict[str, int]
    active: tuple[str, ...]
    passive: tuple[str, ...]
    stopped: tuple[str, ...]
    refused: tuple[Unfit, ...]
    failed: tuple[Unfit, ...]
    unreachable: tuple[Unfit, ...]
    pending: tuple[Unfit, ...]
    surplus: tuple[str, ...]


class EntryView(msgspec.Struct, frozen=True):
    """What was said of one managent, for programs."""

    path: str
    stub: str
    env: str
    life: str
    outcome: str
    reason: str
    through: str
    generation: str
    prints: dict[str, str]


class AnswerView(msgspec.Struct, frozen=True):
    """What came of a command, or `status`, for programs."""

    entries: tuple[EntryView, ...]
    sets: SetsView


class AppliedView(msgspec.Struct, frozen=True):
    """`sets`: None when there was nothing to do."""

    plan: PlanView
    took_s: float
    wave: int = 0
    of: int = 0
    halted: str = ""
    sets: SetsView | None = None


def plan_view(plan: Plan) -> PlanView:
    return PlanView(
        plan.repository, plan.generation, len(plan.target), plan.unchanged, plan.counts, plan.changes, plan.warnings
    )


def show_plan(plan: Plan) -> None:
    for warning in plan.warnings:
        output.remark(warning)
    if plan.changes:
        output.table(
            ("CHANGE", "MANAGENT", "REASON"),
            [
                (output.Styled(one.kind, STYLES[one.kind]), one.path, shortened(one.reason, plan.repository))
                for one in plan.changes[:ROWS]
            ],
        )
        _cut(len(plan.changes))
    output.line(summary(plan))


def shortened(text: str, repository: str) -> str:
    """`text` with what lies in the repository called as it is called there."""
    return text.replace(urljoin(repository_url(repository), "."), "")


def summary(plan: Plan) -> str:
    """40 managents: 38 to add, 2 unchanged."""
    parts = [f"{number} {WORDS[kind]}" for kind, number in plan.counts.items()]
    parts += [f"{plan.unchanged} unchanged"] if plan.unchanged else []
    whole = output.counted(len(plan.target), "managent")
    return f"{whole}: {', '.join(parts) or 'none'}" + ("; nothing to do" if plan.empty else "")


def show_sets(sets: Sets, halted: str = "", listed: bool = False) -> None:
    """Who is not active, and why; then the sum. `listed`: each that was asked and answered is shown already."""
    rows = [
        (output.Styled(kind, style), one.path, one.stub, one.through or "the top", one.reason)
        for kind, style, unfit in (
            ("refused", "red", sets.refused),
            ("failed", "red", sets.failed),
            ("unreachable", "yellow", sets.unreachable),
            ("pending", "dim", sets.pending),
        )
        for one in unfit
        if not (listed and one.stub)
    ]
    if rows:
        output.table(("OUTCOME", "MANAGENT", "STUB", "THROUGH", "REASON"), rows[:ROWS], ("THROUGH",))
        _cut(len(rows))
    if sets.surplus:
        output.line(f"there, and not described: {_some(sets.surplus)}")
    if halted:
        output.line(f"halted: {halted}", "red")
    output.line(sum_of(sets.counts), "" if sets.complete else "yellow")


def sum_of(counts: Counts) -> str:
    """11 targeted = 8 active + 1 refused + 2 unreachable."""
    parts = [
        f"{number} {name}"
        for name, number in (
            ("active", counts.active),
            ("passive", counts.passive),
            ("stopped", counts.stopped),
            ("refused", counts.refused),
            ("failed", counts.failed),
            ("unreachable", counts.unreachable),
            ("pending", counts.pending),
        )
        if number or name == "active"
    ]
    return f"{counts.targeted} targeted = {' + '.join(parts)}"


def show_entries(entries: Sequence[Entry]) -> None:
    """Of `status`: one line each."""
    output.table(
        ("MANAGENT", "STATE", "STUB", "REASON"),
        [(one.path, _state(one), one.stub, one.reason) for one in entries[:ROWS]],
    )
    _cut(len(entries))


def _state(entry: Entry) -> output.Styled:
    if entry.outcome == "done":
        return output.Styled(entry.life, {"active": "green", "passive": "cyan"}.get(entry.life, "yellow"))
    return output.Styled(entry.outcome, "red" if entry.outcome in ("failed", "refused") else "yellow")


def _cut(count: int) -> None:
    if count > ROWS:
        output.line(f"... and {count - ROWS} more (all: --format json)", "dim")


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def sets_view(sets: Sets) -> SetsView:
    return SetsView(counts=asdict(sets.counts), **{one.name: getattr(sets, one.name) for one in fields(sets)})


def answer_view(answer: Answer) -> AnswerView:
    return AnswerView(tuple(map(_entry_view, answer.entries)), sets_view(answer.sets))


def _entry_view(entry: Entry) -> EntryView:
    return EntryView(
        entry.path,
        entry.stub,
        entry.env,
        entry.life,
        entry.outcome,
        entry.reason,
        entry.through,
        entry.generation,
        asdict(entry.prints),
    )


def applied_view(plan: Plan, result: Result | None, took_s: float) -> AppliedView:
    if result is None:
        return AppliedView(plan_view(plan), took_s)
    return AppliedView(plan_view(plan), took_s, result.wave, result.of, result.halted, sets_view(result.sets))
