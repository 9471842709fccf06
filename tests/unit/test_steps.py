"""The table of steps: which inputs and effects are which step, and which are none."""

from __future__ import annotations

import pytest

from fabric import steps
from fabric.commands import AskOffer, Cancelled, Confirm, ImageHeld, Offer, Reserve, Reserved
from fabric.effects import CallTree, ImageReady, InstanceStarted, MoreHolders, Received, Send, TreeDone
from fabric.messages import NodeAnswer, NodeCall, NodeCommand, NodeResult, RackAnswer, RackCall, Submit, Submitted
from fabric.records import Spec
from fabric.resources import Resources
from fabric.steps import BY_NAME, ROLES, STEPS, Moment, of_role, recording
from fabric.traffic import OWN_ROUTE
from zk import paths
from zk.tree import BadVersion, Create, Created, Delete, Deleted, Done, Get, Multi, Set, Stat, Written

D = "d-abcdef12"
B3 = "b3:" + "0" * 64
NEED = Resources(1, 2, 3)
FREE = Resources(4, 5, 6)
WRITTEN = Written(Stat(1, 2, 3, 0, 0, 0, 0))
OFFER = Offer(1, FREE, FREE, False, 0, 0, 4, "", ())
RESERVED = Reserved("0", 1, 0, 0, FREE, ())
SPEC = Spec("web", B3, "Small", NEED, {}, "always")
CLAIM = Multi((Create(paths.owner(D), b"{}", ephemeral=True), Set(paths.deployment(D), b"{}", 3)))
RENEWAL = Multi((Delete(paths.owner(D)), *CLAIM.ops))
CLOSE = Multi((Set(paths.deployment(D), b"{}", 4), Set(paths.trace(D), b""), Delete(paths.owner(D))))
RECORD = Multi((Create(paths.deployment(D), b"{}"), Create(paths.trace(D))))
THERE = "tcp://127.0.0.1:1/0011223344556677"


def named(moment: Moment, thing: object) -> dict[str, str]:
    """The steps that `thing` is, and what each is about."""
    found = {step.name: step.about(thing) for step in steps.by_kind(moment).get(type(thing), ())}
    return {name: about for name, about in found.items() if about is not None}


def racks_offer(sender: str) -> Received:
    return Received(sender, RackAnswer("c", "r1", True, (NodeResult("n", OFFER), NodeResult("m", Cancelled()))))


@pytest.mark.parametrize(
    ("moment", "thing", "expected"),
    [
        ("before", Received("route:1", Submit("c", D, 1, 2, 3)), {"coordinator.asked": D}),
        ("before", Received("route:1", Submitted("c", True, "")), {"api.taken": ""}),
        ("before", Received("route:1", Submitted("c", False, "busy")), {}),
        ("before", Send(THERE, Submit("c", D, 1, 2, 3)), {"api.picking": D}),
        ("after", Send(THERE, Submit("c", D, 1, 2, 3)), {"api.submitted": D}),
        ("after", CallTree(f"dep:{D}:1", CLAIM), {"coordinator.claiming": D}),
        ("after", CallTree(f"dep:{D}:1", RENEWAL), {"coordinator.claiming": D}),
        ("before", CallTree(f"dep:{D}:1", CLAIM), {}),
        ("before", CallTree(f"dep:{D}:2", Set(paths.deployment(D), b"{}", 3)), {"coordinator.planning": D}),
        ("after", CallTree(f"dep:{D}:2", Set(paths.deployment(D), b"{}", 3)), {"coordinator.plan-sent": D}),
        ("before", CallTree(f"dep:{D}:3", CLOSE), {"coordinator.closing": D}),
        ("after", CallTree(f"dep:{D}:3", CLOSE), {"coordinator.close-sent": D}),
        ("before", CallTree("lost:n1", Set("/lost/n1", b"{}", 3)), {}),
        ("before", CallTree(f"dep:{D}:4", Get(paths.deployment(D))), {}),
        ("before", TreeDone(f"dep:{D}:1", Done((Created("/x", None), WRITTEN))), {"coordinator.claimed": D}),
        ("before", TreeDone(f"dep:{D}:1", Done((Deleted(), Created("/x", None), WRITTEN))), {"coordinator.claimed": D}),
        ("before", TreeDone(f"dep:{D}:2", WRITTEN), {"coordinator.plan-written": D}),
        ("before", TreeDone(f"dep:{D}:2", BadVersion("/x")), {}),
        ("before", TreeDone(f"dep:{D}:3", Done((WRITTEN, WRITTEN, Deleted()))), {"coordinator.closed": D}),
        ("before", racks_offer(OWN_ROUTE), {"coordinator.offers-in": ""}),
        ("after", Send(THERE, RackCall("c", 700, AskOffer(D, NEED, 1, 7))), {"coordinator.discussing": D}),
        ("before", Received("route:1", RackCall("c", 700, AskOffer(D, NEED, 1, 7))), {"rack.asked": D}),
        ("after", Received("route:1", RackCall("c", 700, AskOffer(D, NEED, 1, 7))), {"rack.offers-asked": D}),
        ("before", Received(OWN_ROUTE, RackCall("c", 700, AskOffer(D, NEED, 1, 7))), {}),
        (
            "after",
            Received("route:1", RackCall("c", 9, commands=(NodeCommand("n", Reserve(D, 9, 1, 7, NEED, "0", 9)),))),
            {"rack.reserve-passed": D},
        ),
        ("before", Send("route:1", RackAnswer("c", "r1", True, (NodeResult("n", RESERVED),))), {"rack.reserved": ""}),
        ("before", Send(OWN_ROUTE, RackAnswer("c", "r1", True, (NodeResult("n", RESERVED),))), {}),
        ("before", Received("route:1", NodeCall("c", Confirm(D, 9, 1, SPEC, "0", THERE))), {"agent.confirm-asked": D}),
        ("after", Send("route:1", NodeAnswer("c", "n", RESERVED)), {"agent.reserved": ""}),
        ("after", Send("route:1", NodeAnswer("c", "n", ImageHeld(True, "tcp://h:1", 1, 0))), {"holder.told": ""}),
        ("after", Send("route:1", NodeAnswer("c", "n", ImageHeld(False, "tcp://h:1", 1, 0))), {}),
        ("after", MoreHolders(B3, ()), {}),
        ("before", ImageReady(B3, (), (), 1, 0, 0, True), {}),
        ("before", ImageReady(B3, (), (), 1, 0, 0, False), {"agent.image-ready": B3}),
        ("before", InstanceStarted(f"{D}.0", 1, 7, 0, "/x", adopted=True), {}),
        ("before", InstanceStarted(f"{D}.0", 1, 7, 0, "/x"), {"agent.started": f"{D}.0"}),
    ],
)
def test_what_is_a_step_and_what_is_none(moment: Moment, thing: object, expected: dict[str, str]):
    assert named(moment, thing) == expected


def test_the_api_writes_a_record_under_a_token_of_the_table():
    assert recording(RECORD) == f"record:{D}"
    assert recording(CLAIM) == ""
    assert recording(Set(paths.deployment(D), b"")) == ""
    assert named("before", CallTree(recording(RECORD), RECORD)) == {"api.recording": D}
    assert named("before", TreeDone(recording(RECORD), Done((Created("/x", None),)))) == {"api.recorded": D}


def test_the_table_is_told_at_the_top_of_its_module():
    """Every step is in the overview, once, and every role has its own."""
    assert len(BY_NAME) == len(STEPS)
    overview = (steps.__doc__ or "").replace(",", " ").split()
    for role in ROLES:
        assert role in overview
        for step in of_role(role):
            assert step.name == f"{role}.{step.name.partition('.')[2]}"
            assert step.name.partition(".")[2] in overview, f"{step.name} is not told"
            assert 0 <= step.flow <= 9
    assert {step.flow for step in STEPS} == set(range(10))
