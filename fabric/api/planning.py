"""A dry run: the discussion of step 4 and the placement of step 6, without reserving anything.

The API asks every compute rack for offers, as a coordinator would, and hands them to the same pure `place`. So the
answer is what a coordinator that began now would begin with; it promises nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from fabric.api import views
from fabric.api.control import ControlPlane
from fabric.api.schemas import DryRunView, RackOffer
from fabric.commands import AskOffer, Offer
from fabric.records import Policy, Size
from fabric.resources import Resources
from fabric.roles.advice import KINDS, Case, advise
from fabric.roles.placement import NodeOffer, Wish, explain, node_offer, place

YOUNGEST = (1 << 53) - 1
"""The ticket of somebody who is behind everybody else: nobody makes way for a dry run."""


async def dry_run(
    control: ControlPlane,
    deployment: str,
    resources: Resources,
    flavors: tuple[Size, ...],
    count: int,
    min_count: int,
    policy: Policy,
    max_per_node: int,
    max_per_rack: int,
) -> DryRunView:
    """`deployment`: an id that salts the placement, as that of the real request would. `flavors`: to think of instead,
    the nearest first. Where it does not fit, the answer says what would do: for `min_count` at least, and where that
    fits, for all of `count`."""
    gathered = await control.call_racks("compute", AskOffer(deployment, resources, count, YOUNGEST))
    offers: list[NodeOffer] = []
    silent = [f"rack {rack}" for rack in gathered.silent_racks]
    for reply in gathered.replies:
        silent.extend(f"node {node} of rack {reply.rack}" for node in reply.silent)
        offers.extend(
            node_offer(node, reply.rack, answer) for node, answer in reply.results if isinstance(answer, Offer)
        )
    wish = Wish(count, policy, max_per_node, max_per_rack, deployment)
    placement = place(wish, offers)
    placed = count - placement.short
    used: Counter[str] = Counter()
    for one in placement.given:
        used[one.rack] += one.count
    feasible = placed >= min_count
    if not feasible:
        reason = f"{placed} of {count} would fit, and at least {min_count} are asked for"
    elif placement.short:
        reason = f"{placed} of {count} would fit; {min_count} are enough"
    else:
        reason = f"all {count} fit"
    case = Case(replace(wish, count=count if feasible else min_count), resources, offers, flavors)
    if feasible:
        case = replace(case, kinds=tuple(kind for kind in KINDS if kind != "fewer"))
    return DryRunView(
        feasible=feasible,
        count=count,
        min_count=min_count,
        placed=placed,
        plan=views.shares_of(count, placement),
        racks=[
            RackOffer(
                rack=reply.rack,
                offered=sum(offer.count for offer in offers if offer.rack == reply.rack),
                used=used[reply.rack],
                nodes=len(reply.results) + len(reply.silent),
                silent=list(reply.silent),
            )
            for reply in gathered.replies
        ],
        silent_racks=list(gathered.silent_racks),
        reason=reason,
        reasons=list(explain(wish, offers, silent)) if placement.short else [],
        advice=[views.advice(one) for one in advise(case)],
    )
