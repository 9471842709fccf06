"""The audit's comparison: a healthy fabric is clean, every kind of trouble is found, and what is under way is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.commands import Held, InstanceView
from fabric.records import Deployment, Drain, Lost, Share, Spec
from fabric.resources import Resources
from fabric.roles.audit import (
    REMEDIES,
    Content,
    Facts,
    Finding,
    Told,
    compare,
    confirmed,
    grouped,
    settle_s,
)
from fabric.roles.settings import Settings
from zk import paths

SETTINGS = Settings()
NOW_MS = 1_800_000_000_000
ID = "d-abcdef12"
OTHER = "d-other123"
DIGEST = "b3:" + "ab" * 32
SPEC = Spec("web", DIGEST, "Large", Resources(4, 8192, 40960), {}, "always")
N1, N2, N3 = ("r1", "n1"), ("r2", "n2"), ("r2", "n3")
PLAN = (Share("n1", "r1", "0-1"), Share("n2", "r2", "2"))


def record(deployment: str = ID, **changes: Any) -> Deployment:
    values: dict[str, Any] = {
        "id": deployment, "name": "web", "spec": SPEC, "count": 3, "min_count": 3, "policy": "spread",
        "created_ms": 1, "updated_ms": 1, "state": "running", "generation": 2, "settled": 2, "plan": PLAN, **changes,
    }  # fmt: skip
    return Deployment(**values)


def has(place: tuple[str, str], *ordinals: int, state: str = "running", deployment: str = ID) -> Told:
    rack, node = place
    return Told(
        tuple(
            InstanceView(
                f"{deployment}.{one}", deployment, one, node, rack, "Large", "web", state, 9, 1, 1, "", "null", ""
            )
            for one in ordinals
        )
    )


HEALTHY = Facts(
    now_ms=NOW_MS,
    records={ID: (record(), 7)},
    unreadable={},
    marked=frozenset(),
    keys={"k" * 64: (ID, 0)},
    lost={},
    drains={},
    cordons=frozenset(),
    members={"n1": "r1", "n2": "r2", "n3": "r2"},
    told={N1: has(N1, 0, 1), N2: has(N2, 2), N3: Told()},
    contents=(Content(DIGEST, ("web",), (("r1", "s1"), ("r2", "s2"))),),
    storage={"s1": "r1", "s2": "r2"},
    silent=frozenset(),
)


def facts(**changes: Any) -> Facts:
    return replace(HEALTHY, **changes)


def told(**changes: Told) -> dict[tuple[str, str], Told]:
    places = {"n1": N1, "n2": N2, "n3": N3}
    return {**HEALTHY.told, **{places[node]: one for node, one in changes.items()}}


def records(**changes: Any) -> dict[str, tuple[Deployment, int]]:
    return {ID: (record(**changes), 7)}


def found(looked: Facts) -> list[Finding]:
    return list(compare(looked, SETTINGS))


def only(looked: Facts, kind: str, remedy: str) -> Finding:
    [one] = found(looked)
    assert (one.kind, one.remedy) == (kind, remedy), one
    return one


def test_a_healthy_fabric_is_clean() -> None:
    assert found(HEALTHY) == []


# --- instances -------------------------------------------------------------------------------------------------------


def test_an_instance_of_a_deployment_that_is_gone_is_an_orphan() -> None:
    one = only(facts(told=told(n3=has(N3, 5, deployment=OTHER))), "orphan", "verify")
    assert (one.subject, one.where, one.place) == (f"{OTHER}.5", "r2/n3", N3)
    assert OTHER in one.detail


def test_an_instance_that_the_plan_does_not_have_is_an_orphan() -> None:
    one = only(facts(told=told(n3=has(N3, 7))), "orphan", "verify")
    assert one.version == 7
    ended = facts(records=records(state="deleted", gone=True, plan=()), told={**told(n1=Told(), n2=has(N2, 2))})
    assert only(ended, "orphan", "verify").subject == f"{ID}.2"


def test_an_ordinal_that_has_moved_and_still_runs_only_where_it_was_is_an_orphan_and_missing() -> None:
    both = found(facts(told=told(n2=Told(), n3=has(N3, 2))))
    assert [(one.kind, one.where) for one in both] == [("missing", "r2/n2"), ("orphan", "r2/n3")]


def test_an_ordinal_on_a_second_node_is_a_double() -> None:
    one = only(facts(told=told(n3=has(N3, 2))), "double", "verify")
    assert (one.subject, one.where) == (f"{ID}.2", "r2/n3")
    assert "r2/n2" in one.detail


def test_what_is_leaving_a_drained_node_is_no_double_unless_it_is_exclusive() -> None:
    leaving = {"leaving": (Share("n3", "r2", "2"),)}
    assert found(facts(records=records(**leaving), told=told(n3=has(N3, 2)))) == []
    one = only(facts(records=records(exclusive=True, **leaving), told=told(n3=has(N3, 2))), "double", "reconcile")
    assert one.where == "r2/n3"
    assert "exclusive" in one.detail


def test_a_deployment_that_is_being_changed_is_not_compared() -> None:
    changing = facts(
        records=records(generation=3, state="starting"), marked=frozenset({ID}), told=told(n2=Told(), n3=has(N3, 2, 9))
    )
    assert found(changing) == []


def test_what_is_stopping_gets_its_grace() -> None:
    one = only(facts(told=told(n3=has(N3, 7, state="stopping"))), "orphan", "verify")
    assert one.settle_s > SETTINGS.stop_grace_s
    one = only(facts(told=told(n2=has(N2, 2, state="stopping"))), "missing", "reconcile")
    assert one.settle_s > SETTINGS.stop_grace_s


@pytest.mark.parametrize("state", ["assigned", "fetching", "starting", "backoff", "exited", "failed"])
def test_an_instance_in_any_other_state_is_there(state: str) -> None:
    assert found(facts(told=told(n2=has(N2, 2, state=state)))) == []


def test_what_a_present_node_does_not_have_is_missing() -> None:
    one = only(facts(told=told(n1=has(N1, 0))), "missing", "reconcile")
    assert (one.subject, one.where, one.deployment) == (f"{ID}.1", "r1/n1", ID)
    assert found(facts(records=records(state="failed", plan=()), told={N1: Told(), N2: Told(), N3: Told()})) == []


# --- lost nodes ------------------------------------------------------------------------------------------------------


def without_n2(**changes: Any) -> Facts:
    members = {"n1": "r1", "n3": "r2"}
    values: dict[str, Any] = {"members": members, "told": {N1: HEALTHY.told[N1], N3: Told()}, **changes}
    return facts(**values)


def gone(ago_s: float, accepted_ago_s: float | None = None) -> dict[str, tuple[Lost, int]]:
    accepted = NOW_MS - int(accepted_ago_s * 1000) if accepted_ago_s is not None else 0
    return {"n2": (Lost("n2", "r2", NOW_MS - int(ago_s * 1000), accepted, "n3" if accepted else ""), 1)}


def test_a_node_that_is_gone_and_not_noted_is_found_when_leaders_had_time_to() -> None:
    one = only(without_n2(), "lost", "reconcile")
    assert one.settle_s > SETTINGS.lost_note_s + SETTINGS.brake_settle_s


def test_a_lost_node_is_waited_for_as_long_as_its_deployment_says() -> None:
    assert found(without_n2(lost=gone(15, 12))) == []
    assert only(without_n2(lost=gone(300, 295)), "lost", "reconcile").subject == f"{ID}.2"
    assert found(without_n2(lost=gone(300, 295), records=records(lost_after_s=600))) == []


def test_what_the_brake_holds_is_no_finding() -> None:
    crowd = {f"x{number}": (Lost(f"x{number}", "r2", NOW_MS - 300_000), 1) for number in range(4)}
    assert found(without_n2(lost={**crowd, **gone(300)})) == []
    assert [one.kind for one in found(without_n2(lost=gone(300)))] == ["lost"], "nobody decided, and nothing holds it"


# --- what belongs to nothing -----------------------------------------------------------------------------------------


def reserved(deployment: str, left_ms: int) -> dict[tuple[str, str], Told]:
    return told(n3=Told((), (Held(deployment, "0-1", left_ms),)))


def test_a_reservation_that_nobody_coordinates_is_a_leak_if_it_outlives_its_time() -> None:
    one = only(facts(told=reserved(OTHER, 12_000)), "leak", "cancel")
    assert one.settle_s > 12
    assert only(facts(told=reserved(ID, -5_000)), "leak", "cancel").settle_s < 5
    assert found(facts(told=reserved(ID, 5_000), records=records(settled=1, state="placing"),
                       marked=frozenset({ID}))) == []  # fmt: skip


def test_markers_and_records_belong_together() -> None:
    one = only(facts(marked=frozenset({OTHER})), "leak", "delete")
    assert one.path == paths.open_marker(OTHER)
    assert only(facts(marked=frozenset({ID})), "leak", "unmark").version == 7
    assert only(facts(records=records(settled=1, state="placing")), "leak", "mark").version == 7


def test_a_key_of_a_deployment_that_is_gone_is_a_leak() -> None:
    one = only(facts(keys={"f" * 64: (OTHER, 3)}), "leak", "delete")
    assert (one.path, one.version) == (paths.key("f" * 64), 3)


def test_notes_about_nodes() -> None:
    back = {"n1": (Lost("n1", "r1", NOW_MS - 60_000), 4)}
    one = only(facts(lost=back), "leak", "delete")
    assert (one.path, one.version) == (paths.lost("n1"), 4)
    old_ms = NOW_MS - int(SETTINGS.keep_final_s * 1000)
    forgotten = {"n9": (Lost("n9", "r1", old_ms - 1, old_ms, "n1"), 5)}
    assert only(facts(lost=forgotten), "leak", "delete").version == 5
    assert found(facts(lost={"n9": (Lost("n9", "r1", old_ms + 9000, old_ms + 9000, "n1"), 5)})) == []
    drained = {"n1": (Drain("n1", NOW_MS, NOW_MS), 2)}
    assert only(facts(drains=drained), "leak", "cordon").subject == "n1"
    assert found(facts(drains=drained, cordons=frozenset({"n1"}))) == []


def test_an_unreadable_record_is_named_and_nothing_is_said_of_what_it_may_mean() -> None:
    looked = facts(
        records={}, unreadable={paths.deployment(ID): "expected a record"}, marked=frozenset({ID}),
        told=told(n3=Told((), (Held(ID, "0", -1),))),
    )  # fmt: skip
    assert [(one.kind, one.subject) for one in found(looked)] == [("unreadable", paths.deployment(ID))]


# --- images and silence ----------------------------------------------------------------------------------------------


def holders(*places: tuple[str, str]) -> tuple[Content, ...]:
    return (Content(DIGEST, ("web", "web-old"), places),)


def test_an_image_needs_holders_in_two_racks() -> None:
    one = only(facts(contents=holders(("r1", "s1"))), "under-redundant", "copies")
    assert (one.subject, one.where) == ("image web, web-old", DIGEST)
    assert only(facts(contents=holders()), "under-redundant", "copies").detail.startswith("nobody")
    assert "two racks" in only(facts(contents=holders(("r1", "s1"), ("r1", "s3"))), "under-redundant", "copies").detail
    alone = facts(contents=holders(("r1", "s1"), ("r1", "s3")), storage={"s1": "r1", "s3": "r1"})
    assert found(alone) == [], "there is only one rack to be in"


def test_while_a_storage_node_is_silent_nothing_is_said_of_images() -> None:
    one = only(facts(contents=holders(("r1", "s1")), silent=frozenset({"s2"})), "unreachable", "none")
    assert (one.subject, one.where) == ("s2", "r2/s2")


def test_who_does_not_answer_is_unreachable_and_what_it_has_is_not_missing() -> None:
    one = only(facts(told={N1: HEALTHY.told[N1], N3: Told()}), "unreachable", "none")
    assert one.subject == "n2"
    rack = only(facts(told={N1: HEALTHY.told[N1]}), "unreachable", "none")
    assert rack.subject == "rack r2"


# --- two looks -------------------------------------------------------------------------------------------------------


def test_what_is_in_one_look_only_is_not_confirmed() -> None:
    first = compare(facts(told=told(n3=has(N3, 2))), SETTINGS)
    assert confirmed(first, first) == first
    assert confirmed(first, compare(HEALTHY, SETTINGS)) == ()
    assert confirmed((), first) == ()


def test_what_was_compared_with_another_version_is_not_confirmed() -> None:
    first = compare(facts(told=told(n3=has(N3, 2))), SETTINGS)
    second = compare(facts(told=told(n3=has(N3, 2)), records={ID: (record(), 8)}), SETTINGS)
    assert len(first) == len(second) == 1
    assert confirmed(first, second) == ()


def test_between_the_looks_lies_what_the_slowest_needs_to_go_away() -> None:
    assert settle_s(()) == 0
    assert settle_s(compare(facts(told=told(n3=has(N3, 2))), SETTINGS)) == 0
    assert 12 < settle_s(compare(facts(told=reserved(OTHER, 12_000)), SETTINGS)) < 20


def test_ordinals_with_the_same_trouble_are_one_line() -> None:
    lines = grouped(compare(facts(told=told(n3=has(N3, 5, 6, 7))), SETTINGS))
    assert [one.subject for one in lines] == [f"{ID} ordinals 5-7"]
    single = compare(facts(told=told(n3=has(N3, 5))), SETTINGS)
    assert grouped(single) == single


@given(
    st.dictionaries(st.sampled_from([N1, N2, N3]), st.sets(st.integers(0, 4), max_size=5), min_size=3, max_size=3),
)
def test_each_instance_and_each_share_is_accounted_for(where: dict[tuple[str, str], set[int]]) -> None:
    """Whatever the nodes have: what is neither meant nor found does not exist, and nothing else is found."""
    looked = facts(told={place: has(place, *sorted(ordinals)) for place, ordinals in where.items()})
    meant = {(place, ordinal) for place, ordinals in ((N1, (0, 1)), (N2, (2,))) for ordinal in ordinals}
    have = {(place, ordinal) for place, ordinals in where.items() for ordinal in ordinals}
    all_found = found(looked)
    assert {(one.place, one.ordinal) for one in all_found if one.kind in ("orphan", "double")} == have - meant
    assert {(one.place, one.ordinal) for one in all_found if one.kind == "missing"} == meant - have
    assert len(all_found) == len(have ^ meant)
    assert all(one.remedy in REMEDIES for one in all_found)
