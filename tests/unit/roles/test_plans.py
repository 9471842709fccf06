"""Plans as values."""

from __future__ import annotations

from fabric.records import Deployment, Share, Spec
from fabric.resources import Resources
from fabric.roles.plans import replanned

SPEC = Spec("web", "b3:" + "ab" * 32, "Small", Resources(1, 1, 1), {}, "always")


def test_what_gets_its_old_place_again_does_not_leave_it() -> None:
    """Found by the simulator (seed 521): a node was drained, the ordinals' new place was lost, the drain was taken
    back, and they were placed where they ran all the time; then they were stopped there, as having left."""
    record = Deployment("d-000001", "", SPEC, 3, 3, "spread", 0, 0, leaving=(Share("a", "r1", "0-1"),))
    where = {0: ("a", "r1"), 1: ("b", "r1"), 2: ("c", "r2")}
    leaving = {0: ("a", "r1"), 1: ("a", "r1")}
    planned = replanned(record, where, leaving, {}, (5, 1), 0)
    assert planned.leaving == (Share("a", "r1", "1"),)
    assert planned.plan == (Share("a", "r1", "0"), Share("b", "r1", "1"), Share("c", "r2", "2"))
