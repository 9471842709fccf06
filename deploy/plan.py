"""What a description would change: what it expands to, against what the directory's tables say is there (pure).

    add            not there
    reinstall      there, made from other code or another installation configuration: uninstall, deploy
    reconfigure    there, with another configuration of its own: shut down, configure, start
    start          there, and shut down by an order: a rollout starts it again
    mend           there with the right prints, and not well
    retry          refused or failed with this very description: only an apply with `resume` tries it again
    remove         there, and not described
    invalid        described wrongly: no managent can be made from that; what is there stays

Whatever is none of these is unchanged: a second apply of the same description has nothing to do. Every change has its
reason: which kind of document differs, and which references give it now. The rows are initiators' own words, written
before and after each command: what happened to a managent behind its initiator's back shows in `status`, and an apply
with `recheck` looks at it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from deploy.expansion import Want
from deploy.identity import TOP, join, parent_of
from deploy.records import Child, Prints, Table

Kind = Literal["add", "reinstall", "reconfigure", "start", "mend", "retry", "remove", "invalid"]
KINDS: tuple[Kind, ...] = ("add", "reinstall", "reconfigure", "start", "mend", "retry", "remove", "invalid")
OWN = "managent configuration"
PRINT_CHARS = 8
"""Of a fingerprint in a reason: enough to tell two apart."""


@dataclass(frozen=True, slots=True)
class Change:
    path: str
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`repository`: where it is described. `roots`: the paths of the first level. `generation`: of the description.
    `target`: every path that it expands to, in the order of the tree. `changes`: in the same order; what is to be
    removed comes last, each initiator before its children. `warnings`: of the repositories."""

    repository: str
    roots: tuple[str, ...]
    generation: str
    target: tuple[str, ...]
    changes: tuple[Change, ...]
    unchanged: int
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[Kind, int]:
        """By kind, those that occur."""
        found = Counter(change.kind for change in self.changes)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def empty(self) -> bool:
        """Nothing to do."""
        return not self.changes

    def ordered(self, retry: bool) -> tuple[str, ...]:
        """What waves are cut by: changes with a place in the order of the tree. Without `retry`, what failed before is
        left as it is."""
        kinds = ("add", "reinstall", "reconfigure", "start", "mend", *(("retry",) if retry else ()))
        return tuple(change.path for change in self.changes if change.kind in kinds)

    def removed(self) -> tuple[str, ...]:
        return tuple(change.path for change in self.changes if change.kind == "remove")


def rows(tables: Mapping[str, Table]) -> dict[str, Child]:
    """Every managent that the tables know, by path, in the order of the tree. `tables`: by the initiator's path."""
    return dict(_rows(tables))


def _rows(tables: Mapping[str, Table]) -> Iterator[tuple[str, Child]]:
    open_paths = [iter(_children(tables, TOP))]
    while open_paths:
        found = next(open_paths[-1], None)
        if found is None:
            open_paths.pop()
            continue
        path, child = found
        yield path, child
        if path in tables:
            open_paths.append(iter(_children(tables, path)))


def _children(tables: Mapping[str, Table], path: str) -> list[tuple[str, Child]]:
    table = tables.get(path)
    if table is None:
        return []
    return [(join(path, child.name), child) for child in sorted(table.children, key=lambda child: child.index)]


def left_behind(there: Mapping[str, Child], asked: Callable[[str], bool]) -> dict[str, int]:
    """Initiators that are asked to go and do not run -> how many managents are left below each. Nobody but they could
    remove these. `there`: from `rows`."""
    found: dict[str, int] = {}
    for path, row in there.items():
        if _absent(row):
            continue
        above = parent_of(path)
        while above:
            if asked(above) and above in there and there[above].life not in ("active", "passive"):
                found[above] = found.get(above, 0) + 1
            above = parent_of(above)
    return {path: found[path] for path in there if path in found}


def make_plan(
    repository: str,
    roots: tuple[str, ...],
    generation: str,
    wants: Iterable[Want],
    there: Mapping[str, Child],
    warnings: tuple[str, ...] = (),
) -> Plan:
    """`there`: from `rows`."""
    changes: list[Change] = []
    target: dict[str, None] = {}
    for want in wants:
        target[want.path] = None
        if change := _change(want, there.get(want.path), generation):
            changes.append(change)
    unchanged = len(target) - len(changes)
    changes += [
        Change(path, "remove", f"not described; on stub {row.stub.name}")
        for path, row in there.items()
        if path not in target and not _absent(row)
    ]
    return Plan(repository, roots, generation, tuple(target), tuple(changes), unchanged, warnings)


def _absent(row: Child) -> bool:
    return row.env == "non-existent" and row.life == "non-existent"


def _change(want: Want, row: Child | None, generation: str) -> Change | None:
    if want.error:
        return Change(want.path, "invalid", want.error)
    if row is None:
        return Change(want.path, "add", "not there")
    if row.outcome in ("refused", "failed") and row.tried == generation:
        return Change(want.path, "retry", _trouble(row))
    if _absent(row):
        return Change(want.path, "add", _trouble(row) if row.outcome not in ("done", "pending") else _gone(row))
    if reasons := differences(row.prints, want):
        other = any(not reason.startswith(OWN) for reason in reasons)
        return Change(want.path, "reinstall" if other else "reconfigure", "; ".join(reasons))
    if row.outcome == "done" and row.life in ("active", "passive"):
        return None
    if row.outcome == "done" and row.want not in ("active", "passive"):
        return Change(want.path, "start", f"shut down by an order, on stub {row.stub.name}")
    return Change(want.path, "mend", _trouble(row))


def _gone(row: Child) -> str:
    return "uninstalled by an order" if row.want == "non-existent" else "not there"


def _trouble(row: Child) -> str:
    if row.outcome == "done":
        return f"it is {row.life}, on stub {row.stub.name}"
    said = f": {row.reason}" if row.reason else ""
    return f"{row.outcome} on stub {row.stub.name}{said}"


def differences(have: Prints, want: Want) -> list[str]:
    """Which kinds of documents differ, and from where the new ones come."""
    kinds = (
        ("code", have.code if want.code_known else want.prints.code, want.prints.code, want.sources.code),
        ("installation configuration", have.install, want.prints.install, want.sources.install),
        (OWN, have.managent, want.prints.managent, want.sources.managent),
    )
    return [
        f"{kind} {_short(was)} -> {_short(now)}" + (f" ({', '.join(sources)})" if sources else "")
        for kind, was, now, sources in kinds
        if was != now
    ]


def _short(print_: str) -> str:
    return print_[:PRINT_CHARS] or "none"
