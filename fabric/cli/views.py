"""The parts of the API's answers that the commands show.

Less than `fabric.api.schemas` on purpose: fields that are not shown are not here, and unknown ones are ignored, so that
this command understands the API of a newer fabric. (A test holds the names and types here to the schemas there.)
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from fabric.resources import Resources

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    items: tuple[T, ...]
    next: str | None = None
    silent: tuple[str, ...] = ()
    silent_racks: tuple[str, ...] = ()


class Share(msgspec.Struct, frozen=True):
    node: str
    rack: str
    ordinals: str
    count: int


class Deployment(msgspec.Struct, frozen=True):
    id: str
    name: str
    image: str
    flavor: str
    resources: Resources
    count: int
    min_count: int
    policy: str
    max_per_node: int
    max_per_rack: int
    restart: str
    labels: dict[str, str]
    environment: dict[str, str]
    state: str
    final: bool
    gone: bool
    lost_after_s: int
    stop_after_s: int
    exclusive: bool
    placed: int
    lacking: int
    plan: tuple[Share, ...]
    leaving: tuple[Share, ...]
    reason: str
    reasons: tuple[str, ...]
    created: str
    updated: str
    index: int


class RackOffer(msgspec.Struct, frozen=True):
    rack: str
    offered: int
    used: int
    nodes: int
    silent: tuple[str, ...]


class Advice(msgspec.Struct, frozen=True):
    kinds: tuple[str, ...]
    sentence: str
    count: int
    flavor: str
    max_per_node: int
    max_per_rack: int
    wait_for: tuple[str, ...]
    uncordon: tuple[str, ...]


class DryRun(msgspec.Struct, frozen=True):
    feasible: bool
    count: int
    min_count: int
    placed: int
    plan: tuple[Share, ...]
    racks: tuple[RackOffer, ...]
    silent_racks: tuple[str, ...]
    reason: str
    reasons: tuple[str, ...]
    advice: tuple[Advice, ...]


class Instance(msgspec.Struct, frozen=True):
    id: str
    node: str
    rack: str
    flavor: str
    image: str
    state: str
    pid: int
    attempt: int
    started: str | None
    reason: str


class Node(msgspec.Struct, frozen=True):
    node: str
    rack: str
    layer: str
    total: Resources
    free: Resources
    cordoned: bool
    instances: int
    reserved: int
    heard_ms: int
    silent: bool
    driver: str
    pid: int
    images: int
    free_bytes: int
    leader: bool
    draining: str | None
    lost: str | None


class Rack(msgspec.Struct, frozen=True):
    rack: str
    layer: str
    leader: str
    epoch: int
    load: int
    nodes: int
    silent: int
    cordoned: int
    instances: int
    total: Resources
    free: Resources
    answered: bool


class Leader(msgspec.Struct, frozen=True):
    layer: str
    rack: str
    node: str
    address: str
    epoch: int
    load: int


class Flavor(msgspec.Struct, frozen=True):
    name: str
    resources: Resources


class Flavors(msgspec.Struct, frozen=True):
    items: tuple[Flavor, ...]


class RackCapacity(msgspec.Struct, frozen=True):
    rack: str
    fits: int
    total: int
    nodes: int
    limited_by: str


class Capacity(msgspec.Struct, frozen=True):
    flavor: str
    fits: int
    total: int
    racks: tuple[RackCapacity, ...]
    silent_racks: tuple[str, ...]


class Cordon(msgspec.Struct, frozen=True):
    node: str
    cordoned: bool
    effective: bool


class DrainedDeployment(msgspec.Struct, frozen=True):
    id: str
    name: str
    state: str
    exclusive: bool
    staying: int
    leaving: int
    stopping: int
    lacking: int
    reason: str


class Drain(msgspec.Struct, frozen=True):
    node: str
    since: str
    deadline: str
    overdue: bool
    left: int
    done: bool
    deployments: tuple[DrainedDeployment, ...]


class Lost(msgspec.Struct, frozen=True):
    node: str
    rack: str
    since: str
    accepted: str | None
    by: str


class Brake(msgspec.Struct, frozen=True):
    on: bool
    since: str | None
    detail: str
    nodes: tuple[str, ...]
    lost: tuple[Lost, ...]


class Released(msgspec.Struct, frozen=True):
    released: tuple[str, ...]
    brake: Brake


class Finding(msgspec.Struct, frozen=True):
    kind: str
    subject: str
    where: str
    detail: str
    repair: str
    repaired: bool


class Audit(msgspec.Struct, frozen=True):
    clean: bool
    complete: bool
    brake: str
    findings: tuple[Finding, ...]
    omitted: int
    left: int
    deployments: int
    nodes: int
    instances: int
    images: int
    looks: int
    took_ms: int


class Image(msgspec.Struct, frozen=True):
    name: str
    digest: str
    size: int
    kind: str
    pushed: str
    content: str
    holders: tuple[str, ...]
    silent: tuple[str, ...] = ()
    redundant: bool | None = None


class ImageDeleted(msgspec.Struct, frozen=True):
    name: str
    digest: str
    freed_bytes: int
    shared_with: tuple[str, ...]


class Health(msgspec.Struct, frozen=True):
    status: str
    version: str
