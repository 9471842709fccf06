"""Which children an initiator has, on which boot stub each runs, and on which ones it may deploy in turn. Pure.

The initiator at a path and the planner, who expands a whole tree before anything is done, must find the same children:
both call `children_of`, and it knows nothing but its arguments.

**Slices.** An initiator has a domain: the boot stubs that its parent gave it. Each child gets a slice of it, which is
its own domain if it turns out to be an initiator too (that is known only when its boot stub has merged its
configuration). The children by count and by name divide the domain in even, contiguous slices in their order; with
fewer stubs than children each child gets one stub, in turn. A child of a stub gets that stub, a child of a domain the
stubs registered there. So all slices of an initiator together are about as long as its domain or its list of children,
whichever is longer, and a message to a leaf does not carry a thousand stubs.

**Spares.** A slice of one stub leaves nothing to fail over to. Where the role says failover="domain", children by count
and by name with short slices get a few stubs more, which are used when those of the slice are dead. Spares do not count
for enumeration: otherwise a dead stub would change who is described.

**Where it runs.** On one stub of its slice, picked by a hash of its path: the first of the slice would be picked again
by the next level, and the next, until one machine had an initiator of every level. This is for who is deployed for the
first time: what runs already stays where its initiator's table says, even when slices have moved since. Adding a stub
to a domain moves nobody.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from deploy.configuration import Children, Enumeration, InitiatorRole
from deploy.identity import MAX_DEPTH, BadIdentity, check_part, check_path, depth
from deploy.records import MAX_CHILDREN, MAX_STUBS_IN_DOMAIN, StubRef

MIN_CANDIDATES = 3
"""Stubs, of slice and spares together, that a child may run and deploy on, where there are as many."""


class BadEnumeration(ValueError):
    """An initiator cannot have these children: whose they are, what was expected, what was found."""


@dataclass(frozen=True, slots=True)
class Place:
    """One child. `index`: its place among its siblings, from 0; that is the order of rollouts. `stub`: where it runs.
    `slice`, `spare`: see above."""

    path: str
    name: str
    index: int
    by: Enumeration
    stub: StubRef
    slice: tuple[StubRef, ...]
    spare: tuple[StubRef, ...] = ()


def children_of(
    path: str,
    role: InitiatorRole,
    domain: Sequence[StubRef],
    spare: Sequence[StubRef] = (),
) -> tuple[Place, ...]:
    """The children of the initiator at `path` ("" for the top), in order. Raises BadEnumeration."""
    who = f"initiator {path or '(top)'}"
    if role.children and depth(path) >= MAX_DEPTH:
        raise BadEnumeration(
            f"{who}: expected at most {MAX_DEPTH} levels, found children one level further down; "
            "do initiators deploy each other in a circle?"
        )
    listed = [one for children in role.children for one in _named(path, children, domain)]
    if len(listed) > MAX_CHILDREN:
        raise BadEnumeration(f"{who}: expected at most {MAX_CHILDREN} children, found {len(listed)}")
    if role.children and not domain:
        raise BadEnumeration(
            f"{who}: expected boot stubs in its domain to deploy children on, found none; are they in the directory?"
        )
    dealt = _deal(domain, sum(own is None for _, _, own in listed))
    spares = _Spares(domain, spare) if role.failover == "domain" else None
    places, seen = [], set[str]()
    for index, (name, by, own) in enumerate(listed):
        if name in seen:
            raise BadEnumeration(f"{who}: expected different names for its children, {name} twice")
        seen.add(name)
        part = next(dealt) if own is None else own
        child = f"{path}/{name}"
        if len(part) > MAX_STUBS_IN_DOMAIN:
            raise BadEnumeration(
                f"{who}: expected at most {MAX_STUBS_IN_DOMAIN} boot stubs for one child to deploy on, found "
                f"{len(part)} for {name}: let there be more children on its level, or domains"
            )
        more = spares.of(part) if spares and own is None else ()
        stub = part[zlib.crc32(child.encode()) % len(part)]
        places.append(Place(child, name, index, by, stub, part, more))
    if places:
        try:
            check_path(max((place.path for place in places), key=len))
        except BadIdentity as error:
            raise BadEnumeration(f"{who}: {error}") from error
    return tuple(places)


def candidates(place: Place, domain: Sequence[StubRef], spare: Sequence[StubRef] = ()) -> list[StubRef]:
    """Where the child may be placed when its stub is dead, the preferred first: its slice; a child by count or by name
    also elsewhere in the initiator's domain, and on the initiator's own spares. None for a child that stands for a
    stub."""
    if place.by == "stub":
        return []
    if place.by == "domain":
        return list(place.slice)
    return list({stub.name: stub for part in (place.slice, place.spare, domain, spare) for stub in part}.values())


_Listed = tuple[str, Enumeration, tuple[StubRef, ...] | None]
"""(name, by, its slice, None for an even part of the domain)."""


def _named(path: str, children: Children, domain: Sequence[StubRef]) -> Iterable[_Listed]:
    if children.by == "stub":
        return [(stub.name, "stub", (stub,)) for stub in sorted(domain, key=lambda one: natural(one.name))]
    if children.by == "domain":
        return _by_domain(path, domain)
    if children.by == "names":
        names: Iterable[str] = children.names
    elif children.count > MAX_CHILDREN:
        raise BadEnumeration(
            f"initiator {path or '(top)'}: expected at most {MAX_CHILDREN} children, found {children.count}"
        )
    else:
        names = (f"{children.prefix}{number}" for number in range(children.first, children.first + children.count))
    try:
        return [(check_part(name), children.by, None) for name in names]
    except BadIdentity as error:
        raise BadEnumeration(f"initiator {path or '(top)'}: {error}") from error


def _by_domain(path: str, domain: Sequence[StubRef]) -> list[_Listed]:
    below: dict[str, list[StubRef]] = {}
    for stub in domain:
        if stub.domain.startswith(f"{path}/"):
            below.setdefault(stub.domain[len(path) + 1 :].partition("/")[0], []).append(stub)
    if not below:
        raise BadEnumeration(
            f"initiator {path or '(top)'}: expected boot stubs in domains directly below {path or 'the top'}, one "
            f"child for each; found none among the {len(domain)} stubs that it may deploy on"
        )
    return [(name, "domain", tuple(below[name])) for name in sorted(below, key=natural)]


def _deal(domain: Sequence[StubRef], count: int) -> Iterator[tuple[StubRef, ...]]:
    """`count` slices."""
    size = len(domain)
    if size >= count:
        return iter([tuple(domain[i * size // count : (i + 1) * size // count]) for i in range(count)])
    return iter([(domain[i % size],) for i in range(count)])


class _Spares:
    def __init__(self, domain: Sequence[StubRef], spare: Sequence[StubRef]) -> None:
        self._domain = domain
        self._spare = spare
        self._at = {stub.name: at for at, stub in enumerate(domain)}

    def of(self, part: tuple[StubRef, ...]) -> tuple[StubRef, ...]:
        """The stubs that follow this slice in the domain, then the initiator's own spares, up to MIN_CANDIDATES."""
        if len(part) >= MIN_CANDIDATES:
            return ()
        size, last = len(self._domain), self._at[part[-1].name]
        after = (self._domain[(last + step) % size] for step in range(1, min(size, MIN_CANDIDATES + 1)))
        found = {stub.name: stub for stub in (*after, *self._spare)}
        for stub in part:
            found.pop(stub.name, None)
        return tuple(found.values())[: MIN_CANDIDATES - len(part)]


_DIGITS = re.compile(r"(\d+)", re.ASCII)


def natural(name: str) -> list[str | int]:
    """A sort key by which rack2 comes before rack10."""
    return [int(part) if at % 2 else part for at, part in enumerate(_DIGITS.split(name))]
