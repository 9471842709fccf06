"""What children are deployed from and with."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from deploy.configuration import Children, InitiatorRole
from deploy.initiator.charges import child_charge
from deploy.initiator.placement import children_of
from deploy.messages import Charge
from deploy.records import StubRef

STUBS = tuple(StubRef(f"s{number}", f"tcp://s{number}:1/00000001") for number in range(4))
CHARGE = Charge("http://top/", "/site", "", "zk:1", STUBS, rollout="r1", generation="g1")
ROLE = InitiatorRole((Children("count", count=2),), failover="domain", lease_s=30.0, start="./run")


def test_a_child_gets_its_slice_and_the_parents_sources() -> None:
    first, _ = children_of("/site/a", ROLE, STUBS)
    made = child_charge("/site/a", ROLE, CHARGE, first)
    assert made == msgspec.structs.replace(CHARGE, start="./run", lease_s=30.0, domain=STUBS[:2], spare=(STUBS[2],))


def test_a_domain_repository_has_full_paths_or_paths_cut_at_the_initiator() -> None:
    first, _ = children_of("/site/a", ROLE, STUBS)
    own = replace(ROLE, repository="http://own/")
    made = child_charge("/site/a", own, CHARGE, first)
    assert (made.repository, made.scope) == ("http://own/", "")
    made = child_charge("/site/a", replace(own, scope="relative"), CHARGE, first)
    assert (made.repository, made.scope) == ("http://own/", "/site/a")
    made = child_charge("/site/a", replace(ROLE, scope="relative"), CHARGE, first)
    assert (made.repository, made.scope) == ("http://top/", "/site/a")
