"""Every message of deployment over the bus: BIP (HPL-2001-321, 4.1), beats of boot stubs, and talk along the tree.

Every message may be lost, repeated or late. A call is repeated with the same `call` until it is answered; a boot stub
carries a call out once, answers "running" while it does, and repeats its answer. (`epoch`, `attempt`) says whose word
counts: a boot stub remembers the highest pair for each managent, and refuses what is older as "stale".

A message to an initiator that a boot stub hosts goes to the boot stub's address, with the managent's path in `to`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from deploy.identity import Managent, Path
from deploy.records import MAX_STUBS_IN_DOMAIN, Outcome, Prints, Reason, StubName, StubRef, Url
from deploy.states import EnvState, LifeState, Verb
from fabric.commands import Message
from fabric.records import Address, Guid, Label, Line, Number
from fabric.wire import Body, FrameCodec, Vocabulary

PROTOCOL = (64, 0)
"""(major, minor). Majors from 64 on are deployment's, so that no frame of it is taken for one of the fabric's."""

CallId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
MAX_SPARE_STUBS = 16
MAX_TAIL_LINES = 20
MAX_SPANS = 16
MAX_BEATS = 20_000
MAX_ENTRIES = 2_000
MAX_PROBLEMS = 20


# --- BIP: initiator -> boot stub ---------------------------------------------------------------------------------


class Parent(msgspec.Struct, frozen=True):
    """The initiator that commands a managent: where beats about it go. `path` is "" for the top."""

    path: Path
    address: Address


class Charge(msgspec.Struct, frozen=True):
    """What a managent is deployed or configured from, and with. `scope`: the path by which identifiers are cut in this
    repository, "" for full paths. `directory`: ZooKeeper's connect string, for initiators. `domain`: the boot stubs on
    which an initiator may deploy. `spare`: more of them, where all of those are dead (deploy.initiator.placement).
    `lease_s`: see deploy.configuration.InitiatorRole."""

    repository: Url
    scope: Path = ""
    start: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    directory: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    domain: Annotated[tuple[StubRef, ...], msgspec.Meta(max_length=MAX_STUBS_IN_DOMAIN)] = ()
    spare: Annotated[tuple[StubRef, ...], msgspec.Meta(max_length=MAX_SPARE_STUBS)] = ()
    lease_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0
    rollout: Label = ""
    generation: Label = ""


class BipCall(Message, frozen=True):
    """One command of Table 1. `charge` comes with deploy, configure-env and configure-managent."""

    call: CallId
    verb: Verb
    managent: Managent
    epoch: Number
    attempt: Number
    parent: Parent
    charge: Charge | None = None


class Span(msgspec.Struct, frozen=True, array_like=True):
    """How long a step of section 3 took in the boot stub: 2 the repository's references, 3 the code, 4 configuration,
    5 installation, 6 the start. (Step 7 is the answer that this comes with.)"""

    step: Annotated[int, msgspec.Meta(ge=1, le=8)]
    ms: Number


class BipAnswer(Message, frozen=True):
    """To the initiator at path `to`. `outcome`:
    done; running (not yet: ask again); refused (`reason` names the state needed and the state found);
    failed (`tail`: the last lines of the program's output); stale (a newer initiator or attempt commands it); unknown
    (no such managent here). `initiator`: its configuration makes it one. `final`: to try again is of no use, as what is
    wrong is the description. `spans`: of the steps that were made."""

    call: CallId
    to: Path
    managent: Path
    stub: StubName
    outcome: Literal["done", "running", "refused", "failed", "stale", "unknown"]
    env: EnvState
    life: LifeState
    prints: Prints = Prints()
    initiator: bool = False
    final: bool = False
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    tail: Annotated[tuple[Line, ...], msgspec.Meta(max_length=MAX_TAIL_LINES)] = ()
    spans: Annotated[tuple[Span, ...], msgspec.Meta(max_length=MAX_SPANS)] = ()


class InspectCall(Message, frozen=True):
    """What is there, and what would the repository give now? Changes nothing."""

    call: CallId
    managent: Managent
    parent: Parent
    charge: Charge


class InspectAnswer(Message, frozen=True):
    """`have` and `want` differ in code or install: it must be uninstalled and deployed; in managent alone: configured
    and restarted. `initiator`: what the repository would give makes it one. `error`: the repository could not be asked,
    or what it says is wrong; `final`: to try again is of no use."""

    call: CallId
    to: Path
    managent: Path
    stub: StubName
    env: EnvState
    life: LifeState
    have: Prints
    want: Prints
    initiator: bool = False
    error: Reason = ""
    final: bool = False


class AdoptCall(Message, frozen=True):
    """From a new incarnation of an initiator: beats about these managents come to me from now on, under this epoch.
    Initiators among them learn from their boot stub who their parent is now. Answered by a whole `StubBeat`, in which
    what is there has this epoch. Also sent to a boot stub that has not beaten for a while: it renews a lease, too."""

    call: CallId
    parent: Parent
    epoch: Number
    managents: Annotated[tuple[Managent, ...], msgspec.Meta(max_length=MAX_BEATS)]


class StubPing(Message, frozen=True):
    """Answered by a whole `StubBeat` for that parent; also what keeps a lease alive."""

    call: CallId
    parent: Parent


class ManagentBeat(msgspec.Struct, frozen=True, array_like=True):
    """`health`: ok; crashed (its process or class ended by itself); silent (it does not answer BMP). `initiator`: its
    configuration makes it one."""

    path: Path
    epoch: Number
    attempt: Number
    env: EnvState
    life: LifeState
    health: Literal["ok", "crashed", "silent"]
    reason: Reason = ""
    initiator: bool = False


class StubBeat(Message, frozen=True):
    """From a boot stub to an initiator (`to`), every `beat_s` and at once when something changed. `whole`: all that
    this parent has there; else only what changed. `guid`: of the stub's incarnation."""

    to: Path
    stub: StubRef
    guid: Guid
    whole: bool
    managents: Annotated[tuple[ManagentBeat, ...], msgspec.Meta(max_length=MAX_BEATS)]


# --- along the tree: initiator <-> initiator -------------------------------------------------------------------------


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """`targeted` is the sum of all others; `pending` is 0 when a rollout is settled. Counted is what is described, up
    to the rollout's `until`. `stopped`: shut down or uninstalled by an order, and so it is as it should be."""

    targeted: Number = 0
    active: Number = 0
    passive: Number = 0
    pending: Number = 0
    refused: Number = 0
    failed: Number = 0
    unreachable: Number = 0
    stopped: Number = 0


class Problem(msgspec.Struct, frozen=True, array_like=True):
    path: Path
    outcome: Outcome
    reason: Reason


class Rollout(msgspec.Struct, frozen=True):
    """What is to be brought about: every managent up to and including `until` in the order of the tree (depth first,
    children by their index); "" for all. (`epoch`, `seq`) says which of two rollouts is the newer one: `epoch` is that
    of the top's table, and `seq` grows with every change of `until`. An initiator tells a child for which nothing
    changed no new `seq`. `retry`: try again what was refused or failed. `recheck`: inspect also what has this
    generation already. `prune`: uninstall what is not described. `remove_all`: nothing is described; who is told so
    is about to be removed itself."""

    id: Label
    seq: Number
    until: Path
    generation: Label
    retry: bool = False
    recheck: bool = False
    prune: bool = True
    remove_all: bool = False
    epoch: Number = 0


class RolloutCall(Message, frozen=True):
    """Parent to child initiator. Repeated until a `SubtreeReport` with this rollout and seq comes. (`epoch`,
    `attempt`): of the parent's table, and of the child's row in it. `charge`: the child's; None when it has it
    already."""

    to: Path
    parent: Parent
    epoch: Number
    attempt: Number
    charge: Charge | None
    rollout: Rollout


class SubtreeReport(Message, frozen=True):
    """Child initiator to parent: at changes (at most every `report_s`) and every `beat_s`. `settled`: everything up to
    `until` has its final outcome. `counts`: of all that is below `path`, without itself. `problems`: the first few, by
    path; one about `path` says that it cannot have the children that its configuration gives it. `epoch`: of its own
    table, by which the parent knows a new incarnation; 0 before it has claimed it."""

    to: Path
    path: Path
    address: Address
    epoch: Number
    rollout: Label
    seq: Number
    settled: bool
    counts: Counts
    problems: Annotated[tuple[Problem, ...], msgspec.Meta(max_length=MAX_PROBLEMS)] = ()


What = Literal[Verb, "status"]


class TreeCall(Message, frozen=True):
    """To an initiator: pass `what` to every managent of your subtree that matches `pattern` (deploy.patterns, path),
    and send me what came of it. "status" asks and changes nothing. Repeated with the same `call` until all pages came:
    pages below `have` did, the others are sent again."""

    call: CallId
    to: Path
    asker: Parent
    pattern: Pattern
    what: What
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)]
    have: Number = 0


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What came of it for one managent. `through`: the initiator on whose word this is said."""

    path: Path
    stub: Annotated[str, msgspec.Meta(max_length=64)]
    env: EnvState
    life: LifeState
    outcome: Outcome
    reason: Reason = ""
    prints: Prints = Prints()
    generation: Label = ""
    through: Path = ""


class TreePage(Message, frozen=True):
    """Part of the answer to a `TreeCall`, passed upward soon. `origin` is the initiator that was called; what comes
    from below it is in its own pages, which `number` counts from 0. The last one says so: it is sent when all
    children have answered or were given up. Each path is in one entry of all pages at most."""

    call: CallId
    to: Path
    origin: Path
    number: Number
    entries: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=MAX_ENTRIES)]
    last: bool


_Bip = BipCall | BipAnswer | InspectCall | InspectAnswer | AdoptCall | StubPing | StubBeat
_Tree = RolloutCall | SubtreeReport | TreeCall | TreePage
AnyDeployMessage = _Bip | _Tree


class _DeployBody(Body[AnyDeployMessage], frozen=True, array_like=True): ...


DEPLOY: Vocabulary[AnyDeployMessage] = Vocabulary(PROTOCOL, _DeployBody)


def deploy_codec(key: bytes | None) -> FrameCodec[AnyDeployMessage]:
    return FrameCodec(key, DEPLOY)
