"""What an initiator tells a boot stub about one of its children: from where, with what, on which stubs in turn. Pure.

Used by the initiator, and by the planner, who must ask the same repositories for the same identifiers.
"""

from __future__ import annotations

from deploy.configuration import InitiatorRole
from deploy.initiator.placement import Place
from deploy.messages import Charge


def child_charge(path: str, role: InitiatorRole, charge: Charge, place: Place) -> Charge:
    """The charge of the child at `place` of the initiator at `path`, whose own role and charge are given; `rollout` and
    `generation` are those of `charge`. A repository of its own begins with full paths; identifiers are cut at this
    initiator where its role says so (section 5.6)."""
    if role.scope == "relative":
        scope = path
    else:
        scope = "" if role.repository else charge.scope
    return Charge(
        repository=role.repository or charge.repository,
        scope=scope,
        start=role.start,
        directory=charge.directory,
        domain=place.slice,
        spare=place.spare,
        lease_s=role.lease_s,
        rollout=charge.rollout,
        generation=charge.generation,
    )
