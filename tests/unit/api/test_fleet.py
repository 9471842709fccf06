"""What a node that is drained still has, by the records."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.api.fleet import drained_of
from fabric.records import Deployment, Share, Spec
from fabric.resources import Resources

SPEC = Spec("web", "b3:" + "ab" * 32, "Large", Resources(4, 8192, 40960), {}, "always")


def record(**changes: Any) -> Deployment:
    values: dict[str, Any] = {
        "id": "d-abcdef12", "name": "web", "spec": SPEC, "count": 4, "min_count": 4, "policy": "spread",
        "created_ms": 1, "updated_ms": 1, "state": "running", "generation": 1, "settled": 1,
        "plan": (Share("n1", "r1", "0-1"), Share("n2", "r1", "2-3")), **changes,
    }  # fmt: skip
    return Deployment(**values)


def counts(found: Deployment, node: str) -> tuple[int, ...] | None:
    """(staying, leaving), and what is being stopped, if anything is."""
    row = drained_of(found, node)
    return (row.staying, row.leaving, row.stopping)[: 3 if row.stopping else 2] if row is not None else None


def test_what_the_plan_has_there_stays_and_what_is_leaving_leaves() -> None:
    assert counts(record(), "n1") == (2, 0)
    assert counts(record(), "n3") is None
    moving = record(leaving=(Share("n1", "r1", "2"), Share("n3", "r2", "3")))
    assert counts(moving, "n1") == (2, 1)
    assert counts(moving, "n3") == (0, 1)


def test_what_is_being_stopped_is_still_there_until_somebody_has_seen_to_it() -> None:
    stopping = record(stopping=(Share("n4", "r2", "1-3"), Share("n1", "r1", "1-2")), generation=2)
    assert counts(stopping, "n4") == (0, 0, 3)
    assert counts(stopping, "n1") == (2, 0, 1)
    assert counts(record(stopping=(Share("n4", "r2", "1"),)), "n4") is None, "at rest: the next change sees to it"


def test_an_ordinal_counts_once() -> None:
    assert counts(record(leaving=(Share("n1", "r1", "1"),)), "n1") == (2, 0)


@pytest.mark.parametrize("state", ["failed", "deleted"])
def test_what_is_over_has_nothing_anywhere_and_what_is_being_deleted_has(state: str) -> None:
    assert counts(record(state=state), "n1") is None
    assert counts(record(state="deleting", gone=True, generation=2), "n1") == (2, 0)
