"""Records and messages as what users see: the one place where internal names meet those of `schemas`."""

from __future__ import annotations

from datetime import UTC, datetime

from fabric.api.schemas import (
    AdviceView,
    DeploymentView,
    FlavorView,
    ImageView,
    InstanceItem,
    InstanceState,
    LeaderView,
    NodeView,
    RackView,
    ResourcesView,
    ShareView,
)
from fabric.api.store import Versioned
from fabric.commands import InstanceView
from fabric.flavors import Flavor
from fabric.images.push import REDUNDANCY
from fabric.messages import Holders, NodeStatus, RackStatus
from fabric.ordinals import format_ordinals
from fabric.records import Deployment, Drain, Image, LayerName, Lost, Share
from fabric.resources import ZERO, Resources
from fabric.roles.advice import Advice
from fabric.roles.leaders import Seen
from fabric.roles.placement import Placement, deal

_KNOWN_STATES: frozenset[str] = frozenset(
    ("recovering", "parked", "assigned", "fetching", "starting", "running", "backoff", "exited", "failed", "stopping")
)


def timestamp(wall_ms: int) -> str:
    """RFC 3339, UTC, with milliseconds."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def resources(value: Resources) -> ResourcesView:
    return ResourcesView(vcpus=value.vcpus, memory_mib=value.memory_mib, disk_mib=value.disk_mib)


def share(value: Share) -> ShareView:
    return ShareView(node=value.node, rack=value.rack, ordinals=value.ordinals, count=len(value.numbers()))


def shares_of(count: int, placement: Placement) -> list[ShareView]:
    """A placement of `count` ordinals as a plan."""
    return [
        ShareView(node=node, rack=rack, ordinals=format_ordinals(ordinals), count=len(ordinals))
        for (node, rack), ordinals in deal(range(count), placement).items()
    ]


def advice(value: Advice) -> AdviceView:
    return AdviceView(
        kinds=list(value.kinds),
        sentence=value.sentence,
        count=value.count,
        flavor=value.flavor,
        max_per_node=value.max_per_node,
        max_per_rack=value.max_per_rack,
        wait_for=list(value.wait_for),
        uncordon=list(value.uncordon),
    )


def deployment(found: Versioned[Deployment]) -> DeploymentView:
    record = found.record
    return DeploymentView(
        id=record.id,
        name=record.name,
        image=record.spec.image,
        digest=record.spec.digest,
        flavor=record.spec.flavor,
        resources=resources(record.spec.resources),
        count=record.count,
        min_count=record.min_count,
        policy=record.policy,
        max_per_node=record.max_per_node,
        max_per_rack=record.max_per_rack,
        restart=record.spec.restart,
        labels=record.labels,
        environment=record.spec.environment,
        state=record.state,
        final=record.final,
        gone=record.gone,
        lost_after_s=record.lost_after_s,
        stop_after_s=record.spec.stop_after_s,
        exclusive=record.exclusive,
        placed=record.placed,
        lacking=record.lacking,
        plan=[share(one) for one in record.plan],
        leaving=[share(one) for one in record.leaving],
        reason=record.reason,
        reasons=list(record.reasons),
        generation=record.generation,
        settled=record.settled,
        epoch=record.epoch,
        created=timestamp(record.created_ms),
        updated=timestamp(record.updated_ms),
        index=found.stat.mzxid,
    )


def instance(value: InstanceView) -> InstanceItem:
    known = value.state in _KNOWN_STATES
    state: InstanceState = value.state if known else "unknown"  # type: ignore[assignment]
    return InstanceItem(
        id=value.id,
        deployment=value.deployment,
        ordinal=value.ordinal,
        node=value.node,
        rack=value.rack,
        flavor=value.flavor,
        image=value.image,
        state=state,
        pid=value.pid,
        attempt=value.attempt,
        started=timestamp(value.started_ms) if value.started_ms else None,
        directory=value.directory,
        driver=value.driver,
        reason=value.reason,
    )


def planned_instance(
    record: Deployment, ordinal: int, node: str, rack: str, state: InstanceState, reason: str
) -> InstanceItem:
    """An ordinal of the plan of which its node told nothing."""
    return InstanceItem(
        id=f"{record.id}.{ordinal}",
        deployment=record.id,
        ordinal=ordinal,
        node=node,
        rack=rack,
        flavor=record.spec.flavor,
        image=record.spec.image,
        state=state,
        pid=0,
        attempt=0,
        started=None,
        directory="",
        driver="",
        reason=reason,
    )


def node(value: NodeStatus, leader: str, drain: Drain | None = None) -> NodeView:
    return NodeView(
        node=value.node,
        rack=value.rack,
        layer=value.layer,
        address=value.address,
        data_endpoint=value.data_endpoint,
        total=resources(value.total),
        free=resources(value.free),
        cordoned=value.cordoned,
        instances=value.instances,
        reserved=value.reserved,
        heard_ms=value.heard_ms,
        silent=value.silent,
        driver=value.driver,
        host=value.host,
        pid=value.pid,
        images=value.images,
        free_bytes=value.free_bytes,
        managent=value.managent,
        leader=value.node == leader,
        draining=timestamp(drain.deadline_ms) if drain is not None else None,
        lost=None,
    )


def lost_node(value: Lost, drain: Drain | None = None) -> NodeView:
    """A node of which nothing is left but the note that it is lost."""
    return NodeView(
        node=value.node,
        rack=value.rack,
        layer="compute",
        address="",
        data_endpoint="",
        total=resources(ZERO),
        free=resources(ZERO),
        cordoned=drain is not None,
        instances=0,
        reserved=0,
        heard_ms=-1,
        silent=True,
        driver="",
        host="",
        pid=0,
        images=0,
        free_bytes=0,
        managent="",
        leader=False,
        draining=timestamp(drain.deadline_ms) if drain is not None else None,
        lost=timestamp(value.since_ms),
    )


def rack(layer: LayerName, name: str, seen: Seen | None, status: RackStatus | None) -> RackView:
    nodes = status.nodes if status is not None else ()
    total = free = ZERO
    for one in nodes:
        total, free = total + one.total, free + one.free
    return RackView(
        rack=name,
        layer=layer,
        leader=seen.leader.node if seen is not None else status.leader if status is not None else "",
        epoch=seen.epoch if seen is not None else status.epoch if status is not None else 0,
        load=seen.leader.load if seen is not None else 0,
        nodes=len(nodes),
        silent=sum(one.silent for one in nodes),
        cordoned=sum(one.cordoned for one in nodes),
        instances=sum(one.instances for one in nodes),
        total=resources(total),
        free=resources(free),
        answered=status is not None,
    )


def leader(layer: LayerName, seen: Seen) -> LeaderView:
    one = seen.leader
    return LeaderView(
        layer=layer, rack=one.rack, node=one.node, address=one.address, epoch=seen.epoch, load=one.load
    )


def flavor(value: Flavor) -> FlavorView:
    return FlavorView(name=value.name, resources=resources(value.resources))


def image(record: Image, now: Holders | None = None) -> ImageView:
    """`now`: what the storage agents said, if they were asked; else `holders` are those that acknowledged the push."""
    return ImageView(
        name=record.name,
        digest=record.digest,
        size=record.size,
        kind=record.kind,
        pushed=timestamp(record.pushed_ms),
        content=record.content,
        holders=sorted(record.holders if now is None else now.found),
        silent=[] if now is None else sorted(now.silent),
        redundant=None if now is None else len({holder.rack for holder in now.chosen}) >= REDUNDANCY,
    )
