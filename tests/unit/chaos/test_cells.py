"""The matrix as data: which cells are chosen, and which hold."""

from __future__ import annotations

import msgspec
import pytest

from fabric.chaos.cells import NEVER, BadChoice, Cell, Told, choose, rows
from fabric.steps import STEPS

GOOD = Cell("coordinator.claimed", "r1c01", "running", "", 2100, 300)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"state": "deleted"}, True),
        ({"state": "failed", "reason": "no room: vcpus"}, True),
        ({"state": "failed"}, False),
        ({"state": "placing"}, False),
        ({"state": ""}, False),
        ({"victim": ""}, False),
        ({"ended_ms": NEVER}, False),
        ({"whole_ms": NEVER}, False),
        ({"troubles": ("exactly: d-1.0 runs on r1c01, r1c02 at once",)}, False),
    ],
)
def test_a_cell_holds_if_the_request_ended_with_a_reason_and_nothing_was_wrong(changes: dict[str, object], holds: bool):
    cell = msgspec.structs.replace(GOOD, **changes)
    assert cell.holds == holds
    assert Told("kill", "ended", 2.0, 9.0, (GOOD, cell)).holds == holds
    assert cell.told


def test_steps_are_chosen_by_role_and_name_in_the_order_of_the_flow():
    assert choose() == STEPS
    assert [step.name for step in choose(("storage",), ("*.a*",))] == [
        "storage.asked",
        "storage.answers-in",
        "storage.answering",
        "storage.answered",
    ]
    assert {step.role for step in choose(("api", "rack"))} == {"api", "rack"}


def test_what_there_is_not_is_refused_with_what_may_be_meant():
    with pytest.raises(BadChoice, match=r"'agent\.startd'; did you mean agent\.started\?"):
        choose(steps=("agent.startd",))
    with pytest.raises(BadChoice, match=r"expected roles among api, coordinator.*'leader'"):
        choose(("leader",))


def test_a_row_for_each_role_tells_how_many_hold_and_how_long_those_took():
    bad = msgspec.structs.replace(GOOD, ended_ms=90_000, troubles=("durable: x",))
    agent = msgspec.structs.replace(GOOD, step="agent.started", ended_ms=50)
    first, second = rows((GOOD, bad, agent))
    assert (first.role, first.cells, first.hold, first.ended_most_ms) == ("coordinator", 2, 1, 2100)
    assert (second.role, second.cells, second.hold, second.whole_most_ms) == ("agent", 1, 1, 300)
