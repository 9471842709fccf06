"""What the request API reads and writes, as pydantic models.

Strict: a count of `"12"` or `true` is an error, not a 12, and an unknown field is an error, not a typo that nobody
sees. Every list and string has a bound. What is answered is also declared here, so that `/openapi.json` is the whole
truth and a client may be written against this file alone.

Conventions: times are RFC 3339 text in UTC; sizes say their unit in their name; a list is `{"items": […], "next": …}`
where `next` is to be given back as `?after=` and is null on the last page. `index` is ZooKeeper's id of the record's
last change (mzxid), also sent as the `X-Index` header: give it back as `?index=` to wait for the next change.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fabric.ordinals import MAX_COUNT
from fabric.records import DEFAULT_LOST_AFTER_S, LayerName, Policy, Restart, State

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
MAX_LABELS = 32
MAX_VARIABLES = 64
MAX_ENVIRONMENT_BYTES = 8 * 1024
"""The environment travels in the command to each node and lies in the deployment's znode, so it is small."""
OUR_PREFIX = "FABRIC_"
MAX_WAIT_S = 7 * 86_400
STOP_GRACE_S = 5
"""What an instance may take to stop (fabric.roles.settings has the limit); a node that stops its own in time has to
have done so before they run elsewhere."""
MAX_PAGE = 1000
DEFAULT_PAGE = 100

NodeOrImageName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(max_length=256)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
VariableValue = Annotated[str, StringConstraints(max_length=2048, pattern=r"^[^\x00]*$")]


class Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _rule(field: str, expected: str, found: str) -> PydanticCustomError:
    """An error about a rule of our own, with the three parts that users are told."""
    return PydanticCustomError(
        "rule", "expected {expected}, found {found}", {"field": field, "expected": expected, "found": found}
    )


# --- what is asked ---------------------------------------------------------------------------------------------------


class DeploymentRequest(Model):
    """Run `count` instances of `image`, each of size `flavor`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": "web", "flavor": "Large", "count": 50},
                {
                    "image": "web",
                    "flavor": "Large",
                    "count": 50,
                    "min_count": 40,
                    "policy": "spread",
                    "max_per_node": 4,
                    "name": "shop",
                    "labels": {"team": "blue"},
                    "environment": {"PORT": "0"},
                },
            ]
        }
    )

    image: NodeOrImageName = Field(description="The name of a published image.")
    flavor: str = Field(min_length=1, max_length=64, description="The size of each instance; see /v1/flavors.")
    count: int = Field(ge=1, le=MAX_COUNT, description="How many instances.")
    min_count: int | None = Field(
        default=None, ge=1, le=MAX_COUNT, description="Be content with this many; default: `count`, all or nothing."
    )
    policy: Policy = Field(
        default="spread", description="`spread`: balanced over racks, then nodes. `pack`: as few nodes as can be."
    )
    max_per_node: int = Field(default=0, ge=0, le=MAX_COUNT, description="0: no limit.")
    max_per_rack: int = Field(default=0, ge=0, le=MAX_COUNT, description="0: no limit.")
    restart: Restart = Field(default="always", description="What happens when an instance exits by itself.")
    lost_after_s: int = Field(
        default=DEFAULT_LOST_AFTER_S,
        ge=0,
        le=MAX_WAIT_S,
        description="A node that vanished is replaced so many seconds after ZooKeeper counted it out.",
    )
    stop_after_s: int = Field(
        default=0,
        ge=0,
        le=MAX_WAIT_S,
        description="Out of touch with ZooKeeper for so many seconds, a node stops its instances of this deployment, "
        "so that none runs twice; needs a `lost_after_s` of that and the time that stopping takes. 0: they run on, "
        "and a copy is resolved when the node is back.",
    )
    exclusive: bool = Field(
        default=False,
        description="An ordinal that moves off a drained node is stopped before it starts elsewhere, not after.",
    )
    name: NodeOrImageName | None = Field(
        default=None, description="For people; need not be unique. Default: the image's name."
    )
    labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=MAX_LABELS)
    environment: dict[VariableName, VariableValue] = Field(
        default={}, max_length=MAX_VARIABLES, description="For the instances; names that begin with FABRIC_ are ours."
    )

    @field_validator("environment")
    @classmethod
    def _bounded(cls, environment: dict[str, str]) -> dict[str, str]:
        size = sum(len(name.encode()) + len(value.encode()) for name, value in environment.items())
        if size > MAX_ENVIRONMENT_BYTES:
            most = f"at most {MAX_ENVIRONMENT_BYTES} bytes of names and values together"
            raise _rule("environment", most, f"{size} bytes")
        ours = sorted(name for name in environment if name.startswith(OUR_PREFIX))
        if ours:
            raise _rule("environment", f"no name that begins with {OUR_PREFIX}", f'"{ours[0]}"')
        return environment

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_count is not None and self.min_count > self.count:
            raise _rule("min_count", f"at most count, which is {self.count}", str(self.min_count))
        least = self.stop_after_s + STOP_GRACE_S
        if self.stop_after_s and self.lost_after_s < least:
            why = f"at least {least}: stop_after_s, and {STOP_GRACE_S} for the stopping"
            raise _rule("lost_after_s", why, str(self.lost_after_s))
        return self


class ScaleRequest(Model):
    """Have `count` instances from now on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"count": 60}]})

    count: int = Field(ge=1, le=MAX_COUNT)


# --- what is answered ------------------------------------------------------------------------------------------------


class FieldError(Model):
    """One thing that is wrong with a request: where, what was expected there, and what was found."""

    field: str
    expected: str
    found: str


class Problem(Model):
    """RFC 9457 problem details; `application/problem+json`."""

    type: str = Field(description="A URN that programs may rely on, such as urn:fabric:problem:unknown-image.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path of the request.")
    errors: list[FieldError] = Field(default=[], description="One entry for each field that is wrong.")
    reasons: list[str] = Field(default=[], description="Why it does not fit: one line a dimension, rack or rule.")


class ResourcesView(Model):
    vcpus: int
    memory_mib: int
    disk_mib: int


class ShareView(Model):
    """One node's part of a plan; `ordinals` as ranges, such as "0-3,7"."""

    node: str
    rack: str
    ordinals: str
    count: int


class DeploymentView(Model):
    id: str
    name: str
    image: str
    digest: str
    flavor: str
    resources: ResourcesView
    count: int
    min_count: int
    policy: Policy
    max_per_node: int
    max_per_rack: int
    restart: Restart
    labels: dict[str, str]
    environment: dict[str, str]
    state: State
    final: bool = Field(description="At rest: running, failed or deleted, with nothing left to do.")
    gone: bool = Field(description="Its deletion was asked for.")
    lost_after_s: int
    stop_after_s: int
    exclusive: bool
    placed: int = Field(description="Ordinals in the plan; fewer than `count`: placed short.")
    lacking: int = Field(description="Ordinals that ran, were lost or had to go, and have no other place yet.")
    plan: list[ShareView]
    leaving: list[ShareView] = Field(description="Still at their old node too, which is being drained.")
    reason: str
    reasons: list[str]
    generation: int = Field(description="Grows with every change a user asks for.")
    settled: int = Field(description="The generation that was last brought to an end.")
    epoch: int
    created: str
    updated: str
    index: int


class DeploymentList(Model):
    items: list[DeploymentView]
    next: str | None


class RackOffer(Model):
    """What a rack could run of what was asked, and what of it would be used."""

    rack: str
    offered: int
    used: int
    nodes: int
    silent: list[str] = Field(description="Nodes that did not answer.")


class AdviceView(Model):
    """What would do, all of it together; a field that is 0 or empty says nothing."""

    kinds: list[Literal["fewer", "flavor", "max_per_node", "max_per_rack", "wait", "uncordon"]]
    sentence: str
    count: int = Field(description="Ask for so many.")
    flavor: str
    max_per_node: int
    max_per_rack: int
    wait_for: list[str] = Field(description="Deployments that must have given their reservations back.")
    uncordon: list[str] = Field(description="Nodes.")


class DryRunView(Model):
    """The placement that would be made now. Nothing is reserved."""

    dry_run: Literal[True] = True
    feasible: bool
    count: int
    min_count: int
    placed: int
    plan: list[ShareView]
    racks: list[RackOffer]
    silent_racks: list[str]
    reason: str
    reasons: list[str]
    advice: list[AdviceView] = Field(description="Each of these would do; the smallest change first.")


InstanceState = Literal[
    "recovering", "parked", "assigned", "fetching", "starting", "running", "backoff", "exited", "failed", "stopping",
    "missing", "unknown",
]  # fmt: skip
"""As the node says (`parked`: stopped while the node is out of touch with ZooKeeper); `missing`: planned there, but the
node has none; `unknown`: the node did not answer."""


class InstanceItem(Model):
    id: str
    deployment: str
    ordinal: int
    node: str
    rack: str
    flavor: str
    image: str
    state: InstanceState
    pid: int = Field(description="0: no process.")
    attempt: int
    started: str | None
    directory: str
    driver: str
    reason: str


class InstanceList(Model):
    items: list[InstanceItem]
    next: str | None
    silent: list[str] = Field(description="Nodes that were asked and did not answer.")


class NodeView(Model):
    """A node as its rack's leader sees it by heartbeats."""

    node: str
    rack: str
    layer: LayerName
    address: str
    data_endpoint: str
    total: ResourcesView
    free: ResourcesView
    cordoned: bool
    instances: int
    reserved: int
    heard_ms: int = Field(description="Since its last heartbeat; -1: none yet.")
    silent: bool
    driver: str
    host: str
    pid: int
    images: int
    free_bytes: int
    managent: str = Field(description="Its path, when its agent was deployed as a managent; else empty.")
    leader: bool
    draining: str | None = Field(description="By when it is to be empty; null: it is not drained.")
    lost: str | None = Field(description="Since when it is lost; null: it is here.")


class NodeList(Model):
    items: list[NodeView]
    next: str | None
    silent_racks: list[str] = Field(description="Racks whose leader did not answer, as layer/rack.")


class RackView(Model):
    rack: str
    layer: LayerName
    leader: str
    epoch: int
    load: int
    nodes: int
    silent: int
    cordoned: int
    instances: int
    total: ResourcesView
    free: ResourcesView
    answered: bool = Field(description="False: its leader did not answer; the numbers are 0 then.")


class RackList(Model):
    items: list[RackView]
    next: str | None


class LeaderView(Model):
    layer: LayerName
    rack: str
    node: str
    address: str
    epoch: int
    load: int = Field(description="A hint: how many requests it coordinates.")


class LeaderList(Model):
    items: list[LeaderView]
    next: str | None


class FlavorView(Model):
    name: str
    resources: ResourcesView


class FlavorList(Model):
    items: list[FlavorView]


class RackCapacity(Model):
    rack: str
    fits: int
    total: int = Field(description="How many an empty rack would hold.")
    nodes: int
    limited_by: str = Field(description="The dimension that runs out first.")


class CapacityView(Model):
    """How many more instances of a flavor fit now, by rack. A snapshot by heartbeats: it promises nothing."""

    flavor: str
    resources: ResourcesView
    fits: int
    total: int
    racks: list[RackCapacity]
    silent_racks: list[str]


class CordonView(Model):
    node: str
    cordoned: bool = Field(description="What was asked for, and is written down.")
    effective: bool = Field(description="The node has said that it knows.")
    detail: str


class ImageView(Model):
    name: str
    digest: str
    size: int
    kind: Literal["tar", "executable"]
    pushed: str
    content: str = Field(description="The digest of the whole content that was given with the push, if one was.")
    holders: list[str] = Field(description="One image: who holds it now. In a list: who acknowledged the push.")
    silent: list[str] = Field(default=[], description="Storage nodes that did not answer.")
    redundant: bool | None = Field(
        default=None,
        description="One image: two nodes, in different racks, hold it whole now. When not, it is being repaired, if "
        "there is a holder and room in another rack. In a list: not asked.",
    )


class ImageList(Model):
    items: list[ImageView]
    next: str | None


class ImageDeletedView(Model):
    name: str
    digest: str
    freed_bytes: int
    shared_with: list[str] = Field(description="Other names of the same content: it stays for them.")


class HealthView(Model):
    status: Literal["ok"]
    version: str


class ReadyView(Model):
    ready: bool
    zookeeper: Literal["connected", "suspended", "lost"]
    compute_leaders: int
    storage_leaders: int
    detail: str
