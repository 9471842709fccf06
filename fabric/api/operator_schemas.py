"""What operators ask and are answered: drains, the brake, audits. The conventions are those of `fabric.api.schemas`."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from fabric.api.schemas import MAX_WAIT_S, Model
from fabric.records import State

DEFAULT_DEADLINE_S = 3600


class DrainRequest(Model):
    """Move off a node what runs there."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"deadline_s": 3600}]})

    deadline_s: int = Field(
        default=DEFAULT_DEADLINE_S,
        ge=0,
        le=MAX_WAIT_S,
        description="What found no other place by then is stopped all the same.",
    )


class DrainedDeployment(Model):
    """What a node that is drained still has of one deployment, by its record."""

    id: str
    name: str
    state: State
    final: bool
    exclusive: bool
    staying: int = Field(description="Instances that have no other place yet.")
    leaving: int = Field(description="Instances that run elsewhere, or are about to, and are to be stopped here.")
    stopping: int = Field(description="Instances that are being stopped here, and are not planned here any more.")
    lacking: int = Field(description="Of the whole deployment: ordinals that have no place now.")
    reason: str
    reasons: list[str]


class DrainView(Model):
    node: str
    since: str
    deadline: str
    overdue: bool = Field(description="The deadline has passed: what has no other place is being stopped.")
    left: int = Field(description="Instances that are still there, by the records.")
    done: bool = Field(description="Nothing is left there. The node stays cordoned until it is uncordoned.")
    deployments: list[DrainedDeployment]


class CrowdView(Model):
    """`lost` of the `of` compute nodes of a rack; `rack` is empty for the fabric as a whole."""

    rack: str
    lost: int
    of: int


class LostView(Model):
    node: str
    rack: str
    since: str
    accepted: str | None = Field(description="Since when it is replaced; null: not yet.")
    by: str = Field(description="Who decided that: a leader's node, or `operator`.")


class BrakeView(Model):
    """Whether so many nodes vanished at once that none is replaced."""

    on: bool
    since: str | None = Field(description="When the first of the nodes that are counted was noted as lost.")
    detail: str
    racks: list[CrowdView] = Field(description="Where more than `rack_share` vanished.")
    fabric: CrowdView
    nodes: list[str] = Field(description="Those that are counted as having vanished together.")
    lost: list[LostView] = Field(description="All that are lost, whether they are counted or not.")
    rack_share: float
    fabric_share: float
    least: int = Field(description="Fewer lost nodes never put the brake on.")
    window_s: float = Field(description="Nodes whose replacement was decided so recently are counted, too.")


class ReleaseView(Model):
    released: list[str] = Field(description="Nodes that are replaced from now on, because an operator said so.")
    brake: BrakeView


FindingKind = Literal[
    "orphan", "double", "missing", "lost", "leak", "under-redundant", "unreadable", "unreachable"
]


class FindingView(Model):
    kind: FindingKind
    subject: str
    where: str = Field(description="The node, as rack/node, the znode's path, or an image's digest.")
    detail: str
    repair: str = Field(description="What a repair does, or did, about it; empty: nothing can be done from here.")
    repaired: bool


class AuditView(Model):
    """What does not fit together, seen in two looks in a row, some seconds apart."""

    clean: bool = Field(description="Nothing was found, and everything could be compared.")
    complete: bool = Field(description="Every node and rack answered.")
    brake: str = Field(
        description="Why lost nodes are not replaced now, so that what ran there is no finding; empty: they are."
    )
    repairing: bool
    findings: list[FindingView]
    omitted: int = Field(description="Findings beyond those listed.")
    left: int = Field(description="Findings that are not repaired.")
    deployments: int
    nodes: int
    instances: int
    images: int
    looks: int
    took_ms: int


class AuditStep(Model):
    """A line of `?progress=true`: what is being done; the last line has the report, or why there is none."""

    stage: str
    done: int = 0
    total: int = 0
    report: AuditView | None = None
    problem: str = ""
