"""A description, expanded: every managent that it stands for, by path, before anything is deployed (pure).

Theory of operation. Whether a managent is an initiator, and of which children, is configuration alone (HPL-2001-321,
5.4): so what initiators will do level by level can be foretold from the repository's information and documents, and the
boot stubs that the directory lists, by the same function that they use (deploy.initiator.placement). `expand` walks the
tree depth first, an initiator before its children, children by their index: the order in which a rollout's watermark
moves.

Repositories are given, not asked: `descriptions` holds those that were loaded. When an initiator names another one for
its children (5.6), the expansion goes on without them and names it in `missing`; the caller loads it and expands again
(a handful of times: as often as repositories refer to each other).

What one path gets wrong (no entry matches, a bad document) is that path's `error`, and part of the target: it will
fail, and the others won't. What makes the whole tree unending is `BadTree`: initiators that deploy each other in a
circle, or more managents than MAX_MANAGENTS.

10,000 siblings mostly match the same entries: a `Description` keeps what it made of them by what matched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deploy.configuration import InitiatorRole
from deploy.identity import MAX_DEPTH, TOP, depth, relative
from deploy.initiator.charges import child_charge
from deploy.initiator.placement import BadEnumeration, Place, children_of
from deploy.matching import with_told
from deploy.messages import Charge
from deploy.records import Prints, StubRef

MAX_MANAGENTS = 200_000
MAX_REPOSITORIES = 64
NOTHING = Prints()


class BadTree(ValueError):
    """The description stands for no tree that can be deployed: what was expected, what was found, at which path."""


class Undescribed(ValueError):
    """A description gives no managent for this identifier: why."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The references that match, in order, by kind."""

    code: tuple[str, ...] = ()
    install: tuple[str, ...] = ()
    managent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """What a description gives one managent. The same object for all that match the same entries: `prints` without what
    its initiator tells. `code_known`: the code could be looked at; else its print says nothing."""

    prints: Prints
    role: InitiatorRole | None
    sources: Sources = Sources()
    code_known: bool = True


class Description(Protocol):
    """A repository's information with all the documents that it refers to."""

    @property
    def generation(self) -> str: ...

    def made(self, identifier: str) -> Made:
        """`identifier`: a path, cut by the repository's scope. Raises Undescribed."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Stands for a description that could not be loaded: why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Want:
    """One managent. `error`: why none can be made, or why its children can't be told; "" when all is well."""

    path: str
    prints: Prints = NOTHING
    initiator: bool = False
    sources: Sources = Sources()
    error: str = ""
    code_known: bool = True


@dataclass(frozen=True, slots=True)
class Expansion:
    """`wants`: in the order of the tree. `missing`: repositories to be loaded before this is all."""

    wants: tuple[Want, ...]
    missing: frozenset[str]

    @property
    def target(self) -> tuple[str, ...]:
        return tuple(want.path for want in self.wants)


@dataclass(slots=True)
class _Level:
    """An initiator whose children are being visited."""

    path: str
    role: InitiatorRole
    charge: Charge
    children: Iterator[Place]


@dataclass(slots=True)
class _Walk:
    descriptions: Mapping[str, Description | Unloaded]
    wants: list[Want] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)


def expand(
    top: InitiatorRole, repository: str, descriptions: Mapping[str, Description | Unloaded], stubs: Sequence[StubRef]
) -> Expansion:
    """`top`: the role of whoever starts it all. `repository`: which describes its children; `descriptions` are by URL.
    Raises BadTree."""
    try:
        children = children_of(TOP, top, stubs)
    except BadEnumeration as error:
        raise BadTree(str(error)) from error
    walk = _Walk(descriptions)
    open_levels = [_Level(TOP, top, Charge(repository), iter(children))]
    while open_levels:
        level = open_levels[-1]
        child = next(level.children, None)
        if child is None:
            open_levels.pop()
        elif below := _visit(walk, level, child):
            open_levels.append(below)
    return Expansion(tuple(walk.wants), frozenset(walk.missing))


def _visit(walk: _Walk, level: _Level, child: Place) -> _Level | None:
    """Note the child; returns its own children to be visited, if it is an initiator."""
    path = child.path
    if len(walk.wants) >= MAX_MANAGENTS:
        raise BadTree(
            f"the description stands for more than {MAX_MANAGENTS} managents (at {path}, level {depth(path)}): "
            "expected fewer; do initiators deploy each other in a circle?"
        )
    charge = child_charge(level.path, level.role, level.charge, child)
    description = walk.descriptions.get(charge.repository)
    if description is None:
        walk.missing.add(charge.repository)
        return None
    if isinstance(description, Unloaded):
        walk.wants.append(Want(path, error=f"repository {charge.repository}: {description.reason}"))
        return None
    try:
        made = description.made(relative(path, charge.scope))
    except Undescribed as error:
        walk.wants.append(Want(path, error=str(error)))
        return None
    role, prints = made.role, with_told(made.prints, charge.start, charge.lease_s)
    if role is None:
        walk.wants.append(Want(path, prints, sources=made.sources, code_known=made.code_known))
        return None
    try:
        children = children_of(path, role, child.slice)
    except BadEnumeration as error:
        if depth(path) >= MAX_DEPTH:
            raise BadTree(str(error)) from error
        walk.wants.append(Want(path, prints, True, made.sources, f"its children: {error}"))
        return None
    walk.wants.append(Want(path, prints, True, made.sources, code_known=made.code_known))
    return _Level(path, role, charge, iter(children))
