"""The steps of the flow, as one table: where a process can be made to die, to test what becomes of a request then.

Theory of operation. Roles are sans-I/O, so every step that an agent or an API takes is an input that came to it or an
effect that it asked for; a transfer's steps are requests to the chunk server. A `Step` is a pure predicate on one such
thing, and a moment: *before* it is performed (of an input: before the role hears of it), or *after* (of an input: when
what the role asked for has been performed, as far as that need not wait for the disk). The roles know nothing of it.

    api        1 recording, recorded -> 2 picking -> 3 submitted, taken
    coordinator  3 asked, claiming, claimed -> 4 discussing -> 5 offers-in
                 -> 6 reserving, reserved, planning, plan-sent, plan-written, confirming, confirmed
                 -> 9 reported, closing, close-sent, closed                           0 stopping
    rack         5 asked, offers-asked, offers-in, offers-told
                 -> 6 reserve-asked, reserve-passed, reserved, confirm-asked, confirm-passed, confirmed
                                                                                      0 stop-asked
    agent        5 offer-asked, offered -> 6 reserve-asked, reserved, confirm-asked, confirm-kept
                 -> 7 leader-asked, holders-asked -> 8 holders-known
                 -> 9 fetching, image-ready, starting, start-ordered, started, reporting
                                                                                      0 stop-asked, stopping, stopped
    storage      8 asked, racks-asked, rack-asked, answers-in, answering, answered
    holder       8 asked, told -> 9 manifest-asked, serving, chunk-sent

`rack` is a compute rack leader other than the coordinator, `storage` a storage leader, `holder` a storage agent that
has the image. Numbers are those of the flow of a request; 0 is the way back: a deployment, or part of it, that stops.

What reaches a step, what is armed, and what happens then is `fabric.runtime.stepping`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fabric.commands import (
    Answer,
    AskOffer,
    Command,
    Confirm,
    HasImage,
    ImageHeld,
    Offer,
    Progress,
    Reserve,
    Reserved,
    Stop,
)
from fabric.effects import (
    CallTree,
    ImageReady,
    InstanceGone,
    InstanceStarted,
    MoreHolders,
    Received,
    Send,
    StartInstance,
    StopInstance,
    TreeDone,
)
from fabric.images.protocol import GetChunk, GetManifest
from fabric.messages import (
    AnyMessage,
    FindHolders,
    Holders,
    NodeAnswer,
    NodeCall,
    NodeReport,
    RackAnswer,
    RackCall,
    Submit,
    Submitted,
)
from fabric.traffic import OWN_ROUTE
from zk import paths
from zk.tree import Create, Delete, Done, Multi, Op, Set, Written

RoleName = Literal["api", "coordinator", "rack", "agent", "storage", "holder"]
Moment = Literal["before", "after"]
ROLES: tuple[RoleName, ...] = ("api", "coordinator", "rack", "agent", "storage", "holder")
BACK = 0
"""The number of the steps that are not of the flow, but of the way back."""
RECORD = "record:"
"""Prefix of the token that the API's write of a new record has in this table (`recording`); the deployment follows."""
COORDINATION = "dep:"
"""Prefix of the tokens of a coordinator's operations."""

About = Callable[[Any], str | None]
"""What the step is about: a deployment, a digest, "" where that can't be told; None: this is another step."""


@dataclass(frozen=True, slots=True)
class Step:
    """`about` is asked of things of class `kind` alone."""

    name: str
    role: RoleName
    flow: int
    meaning: str
    kind: type
    moment: Moment
    about: About


# --- predicates ------------------------------------------------------------------------------------------------------


def _subject(command: Command | None) -> str:
    return str(getattr(command, "deployment", "") or getattr(command, "digest", ""))


def _of(call: RackCall) -> Command | None:
    """What a rack is asked; commands to several nodes are of one kind."""
    return call.everyone or (call.commands[0].command if call.commands else None)


def _answers(answer: RackAnswer, kind: type[Answer]) -> bool:
    return any(isinstance(result.answer, kind) for result in answer.results)


def _rack_asked(kind: type[Command], came: Received) -> str | None:
    """By another agent: a leader that asks itself is the coordinator, whose steps these are not."""
    call = came.message
    asked = _of(call) if isinstance(call, RackCall) and came.sender != OWN_ROUTE else None
    return _subject(asked) if isinstance(asked, kind) else None


def _rack_told(kind: type[Answer], out: Send) -> str | None:
    told = isinstance(out.message, RackAnswer) and out.to != OWN_ROUTE and _answers(out.message, kind)
    return "" if told else None


def _asks_racks(kind: type[Command], out: Send) -> str | None:
    asked = _of(out.message) if isinstance(out.message, RackCall) else None
    return _subject(asked) if isinstance(asked, kind) else None


def _racks_said(kind: type[Answer], came: Received) -> str | None:
    return "" if isinstance(came.message, RackAnswer) and _answers(came.message, kind) else None


def _node_asked(kind: type[Command], came: Received) -> str | None:
    call = came.message
    return _subject(call.command) if isinstance(call, NodeCall) and isinstance(call.command, kind) else None


def _node_says(kind: type[Answer], out: Send) -> str | None:
    return "" if isinstance(out.message, NodeAnswer) and isinstance(out.message.answer, kind) else None


def _holder_says(out: Send) -> str | None:
    told = out.message.answer if isinstance(out.message, NodeAnswer) else None
    return "" if isinstance(told, ImageHeld) and told.held else None


def _came(kind: type[AnyMessage], came: Received) -> str | None:
    return _named(came.message) if isinstance(came.message, kind) else None


def _goes(kind: type[AnyMessage], out: Send) -> str | None:
    return _named(out.message) if isinstance(out.message, kind) else None


def _named(message: AnyMessage) -> str:
    return str(getattr(message, "deployment", "") or getattr(message, "digest", ""))


def _taken(came: Received) -> str | None:
    return "" if isinstance(came.message, Submitted) and came.message.taken else None


def _coordinated(token: str) -> str | None:
    return token.split(":", 2)[1] if token.startswith(COORDINATION) else None


def _writes(kind: Literal["claim", "plan", "close"], call: CallTree) -> str | None:
    deployment = _coordinated(call.token)
    if deployment is None:
        return None
    match call.op, kind:
        case Set(), "plan":
            return deployment
        case Multi(ops), "claim" if any(isinstance(op, Create) for op in ops):
            return deployment
        case Multi((Set(), *rest)), "close" if any(isinstance(op, Delete) for op in rest):
            return deployment
    return None


def _written(kind: Literal["claim", "plan", "close"], answer: TreeDone) -> str | None:
    deployment = _coordinated(answer.token)
    if deployment is None:
        return None
    match answer.outcome, kind:
        case Written(), "plan":
            return deployment
        case Done((Written(), *_)), "close":
            return deployment
        case Done((first, *_, Written())), "claim" if not isinstance(first, Written):
            return deployment
    return None


def _records(call: CallTree) -> str | None:
    return call.token[len(RECORD) :] if call.token.startswith(RECORD) else None


def _recorded(answer: TreeDone) -> str | None:
    return answer.token[len(RECORD) :] if answer.token.startswith(RECORD) and isinstance(answer.outcome, Done) else None


def recording(op: Op) -> str:
    """The token under which the API's `op` is looked up here: `RECORD` and the deployment that it creates, or ""."""
    first = op.ops[0] if isinstance(op, Multi) and op.ops else None
    if isinstance(first, Create) and first.path.startswith(paths.DEPLOYMENTS + "/"):
        return RECORD + first.path.rpartition("/")[2]
    return ""


def _asks_storage_leaders(call: CallTree) -> str | None:
    return "" if call.token.startswith("find:list:") else None


def _fetches(effect: MoreHolders) -> str | None:
    return effect.digest if effect.holders else None


def _has_image(event: ImageReady) -> str | None:
    return None if event.cached else event.digest


def _started(event: InstanceStarted) -> str | None:
    return None if event.adopted else event.instance


def _instance(effect: StartInstance | StopInstance | InstanceGone) -> str | None:
    return effect.instance


def _manifest(request: GetManifest) -> str | None:
    return request.digest


def _chunk(request: GetChunk) -> str | None:
    return request.hash.hex()


# --- the table -------------------------------------------------------------------------------------------------------


def _api() -> tuple[Step, ...]:
    def step(name: str, flow: int, kind: type, moment: Moment, about: About, meaning: str) -> Step:
        return Step(f"api.{name}", "api", flow, meaning, kind, moment, about)

    return (
        step("recording", 1, CallTree, "before", _records, "the request is valid, and not in ZooKeeper yet"),
        step("recorded", 1, TreeDone, "before", _recorded, "the request is in ZooKeeper, and its client not told"),
        step("picking", 2, Send, "before", partial(_goes, Submit), "a leader is picked, and not told"),
        step("submitted", 3, Send, "after", partial(_goes, Submit), "the leader is told"),
        step("taken", 3, Received, "before", _taken, "the leader has said that it takes the deployment"),
    )


def _coordinator() -> tuple[Step, ...]:
    def step(name: str, flow: int, kind: type, moment: Moment, about: About, meaning: str) -> Step:
        return Step(f"coordinator.{name}", "coordinator", flow, meaning, kind, moment, about)

    return (
        step("asked", 3, Received, "before", partial(_came, Submit), "it is told to take a deployment"),
        step("claiming", 3, CallTree, "after", partial(_writes, "claim"), "its claim is sent, and not answered"),
        step("claimed", 3, TreeDone, "before", partial(_written, "claim"), "it owns the deployment, and did nothing"),
        step("discussing", 4, Send, "after", partial(_asks_racks, AskOffer), "the first rack is asked for offers"),
        step("offers-in", 5, Received, "before", partial(_racks_said, Offer), "a rack has offered"),
        step("reserving", 6, Send, "after", partial(_asks_racks, Reserve), "the first rack is told to reserve"),
        step("reserved", 6, Received, "before", partial(_racks_said, Reserved), "a rack has reserved"),
        step("planning", 6, CallTree, "before", partial(_writes, "plan"), "all is reserved, no plan is written"),
        step("plan-sent", 6, CallTree, "after", partial(_writes, "plan"), "the plan is sent, and not answered"),
        step("plan-written", 6, TreeDone, "before", partial(_written, "plan"), "the plan is written, nobody was told"),
        step("confirming", 6, Send, "after", partial(_asks_racks, Confirm), "the first rack is told to confirm"),
        step("confirmed", 6, Received, "before", partial(_racks_said, Progress), "a rack has said how its agents are"),
        step("reported", 9, Received, "before", partial(_came, NodeReport), "an agent has reported"),
        step("closing", 9, CallTree, "before", partial(_writes, "close"), "all runs, and the record does not say so"),
        step("close-sent", 9, CallTree, "after", partial(_writes, "close"), "the end is sent, and not answered"),
        step("closed", 9, TreeDone, "before", partial(_written, "close"), "the end is written"),
        step("stopping", BACK, Send, "after", partial(_asks_racks, Stop), "the first rack is told to stop instances"),
    )


def _rack() -> tuple[Step, ...]:
    def step(name: str, flow: int, kind: type, moment: Moment, about: About, meaning: str) -> Step:
        return Step(f"rack.{name}", "rack", flow, meaning, kind, moment, about)

    return (
        step("asked", 5, Received, "before", partial(_rack_asked, AskOffer), "it is asked for its rack's offers"),
        step("offers-asked", 5, Received, "after", partial(_rack_asked, AskOffer), "agents are asked, or spoken for"),
        step("offers-in", 5, Send, "before", partial(_rack_told, Offer), "offers are in, and not passed on"),
        step("offers-told", 5, Send, "after", partial(_rack_told, Offer), "the rack's offers are passed on"),
        step("reserve-asked", 6, Received, "before", partial(_rack_asked, Reserve), "its agents are to reserve"),
        step("reserve-passed", 6, Received, "after", partial(_rack_asked, Reserve), "its agents are told to reserve"),
        step("reserved", 6, Send, "before", partial(_rack_told, Reserved), "agents have reserved; that is not told"),
        step("confirm-asked", 6, Received, "before", partial(_rack_asked, Confirm), "its agents are to confirm"),
        step("confirm-passed", 6, Received, "after", partial(_rack_asked, Confirm), "its agents are told to confirm"),
        step("confirmed", 6, Send, "before", partial(_rack_told, Progress), "agents have confirmed; that is not told"),
        step("stop-asked", BACK, Received, "before", partial(_rack_asked, Stop), "its agents are to stop instances"),
    )


def _agent() -> tuple[Step, ...]:
    def step(name: str, flow: int, kind: type, moment: Moment, about: About, meaning: str) -> Step:
        return Step(f"agent.{name}", "agent", flow, meaning, kind, moment, about)

    return (
        step("offer-asked", 5, Received, "before", partial(_node_asked, AskOffer), "it is asked for an offer"),
        step("offered", 5, Send, "after", partial(_node_says, Offer), "it has offered"),
        step("reserve-asked", 6, Received, "before", partial(_node_asked, Reserve), "it is told to reserve"),
        step("reserved", 6, Send, "after", partial(_node_says, Reserved), "it has reserved, and said so"),
        step("confirm-asked", 6, Received, "before", partial(_node_asked, Confirm), "it is told to confirm"),
        step("confirm-kept", 6, Send, "before", partial(_node_says, Progress), "its journal has it; nobody was told"),
        step("leader-asked", 7, CallTree, "after", _asks_storage_leaders, "ZooKeeper is asked for storage leaders"),
        step("holders-asked", 7, Send, "after", partial(_goes, FindHolders), "a storage leader is asked for holders"),
        step("holders-known", 8, Received, "before", partial(_came, Holders), "the storage leader has named holders"),
        step("fetching", 9, MoreHolders, "after", _fetches, "it begins to fetch from the holders"),
        step("image-ready", 9, ImageReady, "before", _has_image, "the image is unpacked, nothing is started"),
        step("starting", 9, StartInstance, "before", _instance, "an instance is about to be started"),
        step("start-ordered", 9, StartInstance, "after", _instance, "an instance is being started"),
        step("started", 9, InstanceStarted, "before", _started, "an instance runs, and nobody was told"),
        step("reporting", 9, Send, "before", partial(_goes, NodeReport), "it is about to report"),
        step("stop-asked", BACK, Received, "before", partial(_node_asked, Stop), "it is told to stop instances"),
        step("stopping", BACK, StopInstance, "after", _instance, "an instance is being stopped"),
        step("stopped", BACK, InstanceGone, "before", _instance, "an instance has stopped, and nobody was told"),
    )


def _storage() -> tuple[Step, ...]:
    def step(name: str, flow: int, kind: type, moment: Moment, about: About, meaning: str) -> Step:
        return Step(f"storage.{name}", "storage", flow, meaning, kind, moment, about)

    return (
        step("asked", 8, Received, "before", partial(_came, FindHolders), "it is asked who holds an image"),
        step("racks-asked", 8, Received, "after", partial(_came, FindHolders), "it has asked all storage leaders"),
        step("rack-asked", 8, Received, "before", partial(_rack_asked, HasImage), "another leader asks for its rack"),
        step("answers-in", 8, Received, "before", partial(_racks_said, ImageHeld), "a rack has said who has the image"),
        step("answering", 8, Send, "before", partial(_goes, Holders), "holders are chosen, and not told"),
        step("answered", 8, Send, "after", partial(_goes, Holders), "the chosen holders are told"),
    )


def _holder() -> tuple[Step, ...]:
    def step(name: str, flow: int, kind: type, moment: Moment, about: About, meaning: str) -> Step:
        return Step(f"holder.{name}", "holder", flow, meaning, kind, moment, about)

    return (
        step("asked", 8, Received, "before", partial(_node_asked, HasImage), "it is asked whether it has an image"),
        step("told", 8, Send, "after", _holder_says, "it has said that it has the image"),
        step("manifest-asked", 9, GetManifest, "before", _manifest, "somebody begins to fetch from it"),
        step("serving", 9, GetChunk, "before", _chunk, "it is asked for a chunk"),
        step("chunk-sent", 9, GetChunk, "after", _chunk, "it has sent a chunk"),
    )


STEPS: tuple[Step, ...] = (*_api(), *_coordinator(), *_rack(), *_agent(), *_storage(), *_holder())
BY_NAME: dict[str, Step] = {step.name: step for step in STEPS}


def of_role(role: RoleName) -> tuple[Step, ...]:
    """In the order of the flow."""
    return tuple(step for step in STEPS if step.role == role)


def by_kind(moment: Moment) -> dict[type, tuple[Step, ...]]:
    """The steps that things of a class may be, so that other things need not be looked at."""
    found: dict[type, tuple[Step, ...]] = {}
    for step in STEPS:
        if step.moment == moment:
            found[step.kind] = (*found.get(step.kind, ()), step)
    return found
