"""The judge of what is so in the end can fail: for each promise a world that breaks it, and one that only seems to."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.chaos.judge import answers, unsettled
from fabric.chaos.world import Outage
from fabric.records import Share
from tests.unit.chaos.planted import D1, DIGEST, NODES, RULES, RUNNING, asked, attempt, process, record, world


def found(asked_: Any = (), **changed: Any) -> list[tuple[str, str]]:
    return [(one.promise, one.text) for one in unsettled(world(**changed), asked_, RULES)]


def test_a_fabric_that_is_as_it_should_be_is_found_so() -> None:
    made = asked(attempt(1))
    assert found([made]) == []
    assert answers([made], (), ()) == []


@pytest.mark.parametrize(
    ("promise", "says", "changed"),
    [
        ("durable", "r1c02 is not registered", {"members": {k: v for k, v in NODES.items() if k != "r1c02"}}),
        ("durable", "compute r2 has no leader", {"leaders": {"compute r1": "r1c01", "storage r1": "r1s01"}}),
        ("durable", "r1c01 is noted as lost, and is here", {"lost": ("r1c01",)}),
        ("durable", "/deployments/x: what", {"unreadable": ("/deployments/x: what",)}),
        ("durable", "is starting: generation 2", {"records": {D1: record(state="starting", generation=2)}}),
        ("durable", "is running: generation 2, settled 1", {"records": {D1: record(generation=2)}}),
        ("durable", "gives no reason", {"records": {D1: record(state="failed", plan=())}, "running": frozenset()}),
        ("orphans", "still marked as open", {"open": frozenset({D1})}),
        ("exactly", "with 1 of 2 placed and no reason", {"records": {D1: record(plan=record().plan[:1])}}),
        ("exactly", ".1 is planned on r2c01 and runs nowhere", {"running": frozenset({process("r1c01", 0)})}),
        ("exactly", ".1 is planned on r2c01 and runs r1c02",
         {"running": frozenset({process("r1c01", 0), process("r1c02", 1)})}),
        ("exactly", ".0 runs on r1c01, r1c02", {"running": RUNNING | {process("r1c02", 0)}}),
        ("exactly", "lacks 1, and r1c01 has room", {"records": {D1: record(count=3, lacking=1, reason="no room")}}),
        ("orphans", "its deployment is gone", {"running": RUNNING | {process("r1c02", 0, "d-222222")}}),
        ("orphans", "is planned on r1c01", {"running": RUNNING | {process("r1c02", 0)}}),
        ("orphans", "its deployment is deleted without it", {"records": {D1: record(state="deleted", plan=())}}),
        ("redundancy", "image web is whole at r1s01", {"holders": {DIGEST: frozenset({"r1s01"})}}),
        ("redundancy", "image web is whole at nobody", {"holders": {}}),
        ("redundancy", "r1c01 has cached", {"rotten": ("r1c01 has cached image x with another entrypoint",)}),
        ("orphans", "the audit finds: leak", {"audit": ("leak r1c01 at r1/r1c01: 2 reservations",)}),
        ("exactly", "the audit finds: double", {"audit": ("double d.1 at r1/r1c01: and r2",)}),
        ("durable", "the audit finds: unreachable", {"audit": ("unreachable r1c01 at r1/r1c01: silent",)}),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_end_breaks_its_promise(promise: str, says: str, changed: dict[str, Any]) -> None:
    breaches = found(**changed)
    assert [one for one in breaches if one[0] == promise and says in one[1]], breaches


def test_what_only_seems_wrong_is_not_found() -> None:
    short = record(count=5, reason="2 of 5 placed", plan=record().plan)
    assert found(records={D1: short}) == [], "placed short, and it says so"
    full = frozenset(NODES) - {"r1s01", "r2s01"}
    others = tuple(Share(node, NODES[node], f"{4 * at}-{4 * at + 3}") for at, node in enumerate(sorted(full)))
    crowd = record("d-222222", count=12, plan=others)
    running = RUNNING | {process(one.node, n, "d-222222") for one in others for n in one.numbers()}
    lacking = record(count=3, lacking=1, reason="no room")
    assert found(records={D1: lacking, "d-222222": crowd}, running=running) == [], "nowhere is room for it"
    holders = {DIGEST: frozenset({"r1s01"})}
    alone = {node: rack for node, rack in NODES.items() if node != "r2s01"}
    texts = [text for _, text in found(holders=holders, members=alone)]
    assert not [text for text in texts if "image" in text], "one rack with storage can't have two holders"


def test_what_was_accepted_has_to_be_so() -> None:
    made, gone = asked(attempt(1)), asked(attempt(2, kind="delete"), state="deleted")
    scaled = asked(attempt(3, kind="scale", count=7, answered_s=20.0))
    assert ("durable", f"{D1} was accepted, and there is no record of it") in found([made], records={})
    assert found([made, gone], records={}, running=frozenset()) == []
    assert ("durable", f"{D1} is to be deleted, and is running") in found([made, gone])
    assert ("durable", f"{D1} was asked to have 7, and its record says 2") in found([made, scaled])
    failed = record(reason="it does not fit")
    assert found([made, scaled], records={D1: failed}) == []
    unknown = asked(attempt(3, 0, kind="scale", count=7, answered_s=20.0))
    assert found([made, unknown]) == [], "it may have been carried out, or not"


def judged(*attempts: Any, excused: Any = (), outages: Any = (), **more: Any) -> list[tuple[str, str]]:
    return [(one.promise, one.text) for one in answers([asked(*attempts, **more)], excused, outages)]


def test_answers_that_are_not_as_documented_break_durability() -> None:
    assert [promise for promise, _ in judged(attempt(1, 500))] == ["durable"]
    assert "without Retry-After" in judged(attempt(1, 503, retry_after=False), attempt(1))[0][1]
    assert "got no answer: reset" in judged(attempt(1, 0, detail="reset"), attempt(1))[0][1]
    assert "has no answer after" in judged(attempt(1, 503))[0][1]
    assert "without a reason" in judged(attempt(1), state="failed")[0][1]
    twice = judged(attempt(1), attempt(1, deployment="d-222222"))
    assert "with one idempotency key made d-111111, d-222222" in twice[0][1]


def test_refusals_and_what_a_fault_excuses_do_not() -> None:
    for status in (404, 409, 422):
        assert judged(attempt(1, status)) == []
    assert judged(attempt(1, 503), attempt(1)) == []
    assert judged(attempt(1, 0), attempt(1), excused=[(10.2, 11.0)]) == []
    assert judged(attempt(1, 0), attempt(1), excused=[(11.0, 12.0)]) != []
    assert judged(attempt(1), state="failed", reason="no room") == []


def test_what_is_accepted_without_a_quorum_breaks_the_promise_of_outages() -> None:
    assert judged(attempt(1), outages=[Outage(5.0, 20.0)])[0][0] == "outage"
    assert judged(attempt(1), outages=[Outage(9.0, 20.0)]) == [], "it may have been in time"
    assert judged(attempt(1), outages=[Outage(5.0, 10.2)]) == [], "the quorum was back by then"
