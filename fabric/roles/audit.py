"""The audit: facts in, findings out. Compares what is written, what nodes have, what is reserved, and who holds images.

Theory of operation. `Facts` are one look at the whole fabric; `compare` is a pure function of them. A look takes a
while, and the fabric goes on meanwhile: a deployment is placed between the reading of its record and the answer of a
node. So one look proves nothing. A finding counts if it is there in two looks (`confirmed`), and with the same version
of the record or znode that it was compared with; a deployment that is not at rest is not compared at all, since its
coordinator is at it. Between the looks lies at least as long as what was found may take to go away by itself
(`settle_s`): a reservation its time to live, a stopping instance its grace, a lost node the notice of its leader.

Kinds:

    orphan           an instance that no plan puts on its node, or whose deployment is gone
    double           an ordinal on a second node, beyond those that are leaving one
    missing          a plan puts an ordinal on a node that is here and does not have it
    lost             a plan puts ordinals on a node that is gone, and nobody replaces it though it is time
    leak             reservations, markers, keys and notes that belong to nothing any more
    under-redundant  fewer holders of an image than there should be, or all of them in one rack
    unreadable       a znode that is not what it should be
    unreachable      a node or rack that did not answer: what is there was not compared

Each finding names its remedy; carrying it out is the API's. All remedies are safe whatever has happened since the look:
agents ask the record themselves, records are changed by version, znodes are deleted by version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fabric.commands import Held, InstanceView
from fabric.ordinals import format_ordinals
from fabric.records import Deployment, Drain, Lost, Share
from fabric.roles.brake import Brake, brake
from fabric.roles.settings import Settings
from zk import paths

Kind = Literal["orphan", "double", "missing", "lost", "leak", "under-redundant", "unreadable", "unreachable"]
Remedy = Literal["none", "verify", "reconcile", "cancel", "delete", "mark", "unmark", "cordon", "copies"]
Place = tuple[str, str]
"""(rack, node)."""

REMEDIES: Mapping[Remedy, str] = {
    "none": "",
    "verify": "the node is told to look at the record and to stop what is not its own",
    "reconcile": "the deployment is reconciled anew",
    "cancel": "the reservations are given back",
    "delete": "the znode is deleted",
    "mark": "the deployment is marked as open, so that a leader takes it",
    "unmark": "the marker is deleted",
    "cordon": "the node is cordoned again",
    "copies": "the storage leaders copy it to another node",
}
STOP_MARGIN_S = 2.0
LATE_S = 10.0
"""Beyond what leaders' own limits say, before it counts as not done."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one node said that it has."""

    instances: tuple[InstanceView, ...] = ()
    reserved: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of the images `names`, and who holds them."""

    digest: str
    names: tuple[str, ...]
    holders: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """One look. Records and znodes come with their versions. `members`, `storage`: the compute and storage nodes that
    are registered -> their racks; `told`: the compute nodes that answered; `silent`: storage nodes that did not."""

    now_ms: int
    records: Mapping[str, tuple[Deployment, int]]
    unreadable: Mapping[str, str]
    marked: frozenset[str]
    keys: Mapping[str, tuple[str, int]]
    lost: Mapping[str, tuple[Lost, int]]
    drains: Mapping[str, tuple[Drain, int]]
    cordons: frozenset[str]
    members: Mapping[str, str]
    told: Mapping[Place, Told]
    contents: tuple[Content, ...]
    storage: Mapping[str, str]
    silent: frozenset[str]


@dataclass(frozen=True, slots=True)
class Finding:
    """`subject`: what it is about; `where`: rack/node, a znode's path, or a digest. `version`: of what it was compared
    with; -1: of nothing. `deployment`, `ordinal`, `place`, `path`: for the remedy, as far as it needs them."""

    kind: Kind
    subject: str
    where: str
    detail: str
    remedy: Remedy = "none"
    version: int = -1
    settle_s: float = 0.0
    deployment: str = ""
    ordinal: int = -1
    place: Place = ("", "")
    path: str = ""

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.kind, self.subject, self.where


def compare(facts: Facts, settings: Settings) -> tuple[Finding, ...]:
    """What does not fit in this look, by kind and subject."""
    found = [
        *_instances(facts, settings),
        *_plans(facts, settings),
        *_reservations(facts),
        *_markers(facts),
        *_notes(facts, settings),
        *_images(facts, settings),
        *(Finding("unreadable", path, path, why) for path, why in facts.unreadable.items()),
        *_unreachable(facts),
    ]
    return tuple(sorted(found, key=lambda one: (one.kind, one.deployment, one.ordinal, one.subject, one.where)))


def confirmed(first: Iterable[Finding], second: Iterable[Finding]) -> tuple[Finding, ...]:
    """What was found in both looks, as it is in the second."""
    before = {(*one.identity, one.version) for one in first}
    return tuple(one for one in second if (*one.identity, one.version) in before)


def settle_s(found: Iterable[Finding]) -> float:
    """How long to wait before the second look, as far as whoever looks has the patience."""
    return max((one.settle_s for one in found), default=0.0)


def grouped(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """For people: ordinals of one deployment with the same trouble on the same node are one line."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for one in found:
        subject = one.deployment if one.ordinal >= 0 else one.subject
        groups.setdefault((one.kind, subject, one.where, one.detail), []).append(one)
    return tuple(
        replace(many[0], subject=f"{subject} ordinals {format_ordinals(one.ordinal for one in many)}")
        if len(many) > 1
        else many[0]
        for (_, subject, _, _), many in groups.items()
    )


# --- instances and plans ---------------------------------------------------------------------------------------------


def _instances(facts: Facts, settings: Settings) -> Iterator[Finding]:
    """Orphans and doubles: each instance against its record."""
    have: dict[tuple[str, int], dict[Place, InstanceView]] = {}
    for place, told in facts.told.items():
        for view in told.instances:
            have.setdefault((view.deployment, view.ordinal), {})[place] = view
    expected = {
        name: (_where(record.plan), _where(record.leaving), record, version)
        for name, (record, version) in facts.records.items()
    }
    for (deployment, ordinal), views in have.items():
        if paths.deployment(deployment) in facts.unreadable:
            continue
        if deployment not in expected:
            yield from _extra(views, "orphan", f"there is no deployment {deployment}", -1, settings)
            continue
        plan, leaving, record, version = expected[deployment]
        if not record.final:
            continue
        meant, left = plan.get(ordinal), leaving.get(ordinal)
        extra = {place: view for place, view in views.items() if place not in (meant, left)}
        if meant is not None and meant in views:
            where = f"{meant[0]}/{meant[1]}"
            yield from _extra(extra, "double", f"it runs on {where}, where the plan puts it", version, settings)
            if record.exclusive and left in views and left != meant:
                why = f"the deployment is exclusive, and it runs on {where} already"
                for one in _extra({left: views[left]}, "double", why, version, settings):
                    yield replace(one, remedy="reconcile")  # its node takes it for its own, by the record
        elif meant is not None:
            yield from _extra(extra, "orphan", f"the plan puts it on {meant[0]}/{meant[1]}", version, settings)
        else:
            why = f"the deployment is {record.state} and has no such ordinal in its plan"
            yield from _extra(extra, "orphan", why, version, settings)


def _extra(
    views: Mapping[Place, InstanceView], kind: Kind, why: str, version: int, settings: Settings
) -> Iterator[Finding]:
    for place, view in views.items():
        stopping = settings.stop_grace_s + STOP_MARGIN_S if view.state == "stopping" else 0.0
        yield Finding(
            kind,
            f"{view.deployment}.{view.ordinal}",
            "/".join(place),
            why,
            "verify",
            version,
            stopping,
            view.deployment,
            view.ordinal,
            place,
        )


def _plans(facts: Facts, settings: Settings) -> Iterator[Finding]:
    """Missing and lost: each share of a settled plan against its node."""
    held = braked(facts, settings) is not None
    for deployment, (record, version) in facts.records.items():
        if not record.final or record.state != "running":
            continue
        for share in record.plan:
            place = (share.rack, share.node)
            told = facts.told.get(place)
            if told is not None:
                states = {view.ordinal: view.state for view in told.instances if view.deployment == deployment}
                why, wait_s = "its node does not have it", 0.0
                lacking = [ordinal for ordinal in share.numbers() if states.get(ordinal, "stopping") == "stopping"]
                if any(ordinal in states for ordinal in lacking):
                    wait_s = settings.stop_grace_s + STOP_MARGIN_S
                kind: Kind = "missing"
            elif facts.members.get(share.node) != share.rack:
                late = _late(facts, record, share.node, held, settings)
                if late is None:
                    continue
                (why, wait_s), lacking, kind = late, list(share.numbers()), "lost"
            else:
                continue  # it did not answer
            for ordinal in lacking:
                yield Finding(
                    kind,
                    f"{deployment}.{ordinal}",
                    "/".join(place),
                    why,
                    "reconcile",
                    version,
                    wait_s,
                    deployment,
                    ordinal,
                    place,
                )


def braked(facts: Facts, settings: Settings) -> Brake | None:
    """Whether lost nodes are waited for: then what they ran is not found as lost."""
    gone = [lost for node, (lost, _) in facts.lost.items() if node not in facts.members]
    return brake(gone, Counter(facts.members.values()), facts.now_ms, settings)


def _late(facts: Facts, record: Deployment, node: str, held: bool, settings: Settings) -> tuple[str, float] | None:
    """Why a node that is gone should have been replaced by now, and how long that may be a matter of moments; None
    while it is waited for."""
    notice_s = settings.lost_note_s + settings.brake_settle_s
    note = facts.lost.get(node)
    if note is None:
        return "its node is gone, and no leader has noted that", notice_s + settings.orphan_after_s + LATE_S
    lost, _ = note
    if held and not lost.accepted_ms:
        return None
    due_ms = lost.since_ms + (max(record.lost_after_s, notice_s) + settings.patrol_interval_s + LATE_S) * 1000
    due_ms = max(due_ms, lost.accepted_ms + (settings.patrol_interval_s + LATE_S) * 1000)
    if facts.now_ms < due_ms:
        return None
    return "its node is lost, and it is time to run it elsewhere", 0.0


def _where(shares: Iterable[Share]) -> dict[int, Place]:
    """Ordinal -> place."""
    return {ordinal: (share.rack, share.node) for share in shares for ordinal in share.numbers()}


# --- what belongs to nothing -----------------------------------------------------------------------------------------


def _reservations(facts: Facts) -> Iterator[Finding]:
    """Of deployments that nobody coordinates. They end by themselves; found is what outlives its time."""
    for place, told in facts.told.items():
        for held in told.reserved:
            record, version = facts.records.get(held.deployment, (None, -1))
            if paths.deployment(held.deployment) in facts.unreadable:
                continue
            if record is not None and (not record.final or held.deployment in facts.marked):
                continue
            why = "nobody coordinates it" if record is not None else "there is no such deployment"
            yield Finding(
                "leak",
                f"{held.deployment} reservations",
                "/".join(place),
                f"ordinals {held.ordinals} are reserved beyond their time: {why}",
                "cancel",
                version,
                max(0, held.left_ms) / 1000 + STOP_MARGIN_S,
                held.deployment,
                place=place,
            )


def _markers(facts: Facts) -> Iterator[Finding]:
    for deployment in facts.marked:
        path = paths.open_marker(deployment)
        record, version = facts.records.get(deployment, (None, -1))
        if record is None and paths.deployment(deployment) not in facts.unreadable:
            why = "marked as open, and there is no such deployment"
            yield Finding("leak", deployment, path, why, "delete", 0, deployment=deployment, path=path)
        elif record is not None and record.final:
            why = "marked as open, and it is at rest"
            yield Finding("leak", deployment, path, why, "unmark", version, deployment=deployment)
    for deployment, (record, version) in facts.records.items():
        if not record.final and deployment not in facts.marked:
            why = f"{record.state}, not at rest, and not marked as open: no leader will find it"
            where = paths.deployment(deployment)
            yield Finding("leak", deployment, where, why, "mark", version, deployment=deployment)
    for digest, (deployment, version) in facts.keys.items():
        if deployment not in facts.records and paths.deployment(deployment) not in facts.unreadable:
            path = paths.key(digest)
            why = f"the idempotency key of {deployment}, which is gone"
            yield Finding("leak", f"key {digest[:12]}", path, why, "delete", version, path=path)


def _notes(facts: Facts, settings: Settings) -> Iterator[Finding]:
    planned = {share.node for record, _ in facts.records.values() for share in (*record.plan, *record.leaving)}
    for node, (lost, version) in facts.lost.items():
        path = paths.lost(node)
        ago_s = (facts.now_ms - lost.since_ms) / 1000
        if node in facts.members:
            yield Finding("leak", node, path, "noted as lost, and it is here", "delete", version, path=path)
        elif lost.accepted_ms and node not in planned and ago_s > settings.keep_final_s and not facts.unreadable:
            why = f"lost for {ago_s / 86_400:.0f} days, and nothing is planned there: it is not awaited any more"
            yield Finding("leak", node, path, why, "delete", version, path=path)
    for node, (_, version) in facts.drains.items():
        if node not in facts.cordons:
            path = paths.drain(node)
            why = "drained, and not cordoned: it gets new instances all the time"
            yield Finding("leak", node, path, why, "cordon", version)


# --- images, and who did not answer ----------------------------------------------------------------------------------


def _images(facts: Facts, settings: Settings) -> Iterator[Finding]:
    """Nothing is said of an image while a storage node that may hold it does not answer."""
    if facts.silent:
        return
    racks = len(set(facts.storage.values()))
    for content in facts.contents:
        who = ", ".join("/".join(place) for place in sorted(content.holders)) or "nobody"
        subject = f"image {', '.join(content.names)}"
        if len(content.holders) < settings.redundancy:
            why = f"{who} holds it, expected {settings.redundancy} nodes"
            yield Finding("under-redundant", subject, content.digest, why, "copies")
        elif racks > 1 and len({rack for rack, _ in content.holders}) < 2:
            why = f"{who} hold it, expected nodes of two racks"
            yield Finding("under-redundant", subject, content.digest, why, "copies")


def _unreachable(facts: Facts) -> Iterator[Finding]:
    racks: dict[str, list[str]] = {}
    for node, rack in facts.members.items():
        if (rack, node) not in facts.told:
            racks.setdefault(rack, []).append(node)
    for rack, nodes in racks.items():
        of = sum(one == rack for one in facts.members.values())
        if len(nodes) == of and of > 1:
            yield Finding("unreachable", f"rack {rack}", rack, f"none of its {of} compute nodes answered")
        else:
            for node in nodes:
                yield Finding("unreachable", node, f"{rack}/{node}", "the compute node did not answer")
    for node in facts.silent:
        yield Finding("unreachable", node, f"{facts.storage[node]}/{node}", "the storage node did not answer")
