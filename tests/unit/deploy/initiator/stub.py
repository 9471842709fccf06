"""A boot stub for tests of initiators: it obeys Table 1, epochs, attempts and leases, and keeps its managents through
a crash of its own. Installing is waiting; what the repository gives is what the world says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from deploy.configuration import InitiatorRole
from deploy.messages import (
    AdoptCall,
    AnyDeployMessage,
    BipAnswer,
    BipCall,
    Charge,
    InspectAnswer,
    InspectCall,
    ManagentBeat,
    Parent,
    StubBeat,
    StubPing,
)
from deploy.records import Prints, StubRef
from deploy.states import ALIVE, COMMANDS, EnvState, LifeState, refusal

NOTHING = Prints()


@dataclass(frozen=True)
class Wanted:
    """What the repository gives for one managent. `fails`: how the next deployments of it go wrong."""

    prints: Prints
    role: InitiatorRole | None = None


@dataclass
class Managent:
    path: str
    epoch: int
    attempt: int
    parent: Parent
    env: EnvState = "non-existent"
    life: LifeState = "non-existent"
    health: str = "ok"
    prints: Prints = NOTHING
    role: InitiatorRole | None = None
    charge: Charge | None = None
    job: BipCall | None = None
    sender: str = ""
    answers: dict[str, BipAnswer] = field(default_factory=dict)


class Around(Protocol):
    """The world, as a boot stub sees it."""

    now: float

    def at(self, after_s: float, action: Callable[[], None]) -> None: ...

    def deliver(self, name: str, to: str, message: AnyDeployMessage) -> None: ...

    def wanted(self, path: str) -> Wanted | None: ...

    def trouble(self, stub: str, path: str) -> tuple[str, bool]:
        """("", …): none; else why this deployment fails, and whether that is final."""

    def host(self, stub: Stub, managent: Managent) -> None:
        """Its life, role, charge or parent is another: host the initiator as it should be."""

    def close(self, stub: Stub, managent: Managent) -> None: ...

    def begins(self, stub: str, call: BipCall) -> None:
        """A command begins."""

    def runs_now(self, stub: str, managent: Managent, verb: str) -> None:
        """A command made it run."""


class Stub:
    """`incarnation` grows with every start; what an earlier one put off is forgotten."""

    BEAT_S = 5.0
    CHECK_S = 0.5
    """How often leases are looked at."""

    def __init__(self, world: Around, name: str, domain: str) -> None:
        self.world = world
        self.name = name
        self.domain = domain
        self.alive = False
        self.incarnation = 0
        self.managents: dict[str, Managent] = {}
        self.gone: dict[str, Managent] = {}
        self.heard: dict[str, float] = {}
        self.job_s = 0.05

    @property
    def guid(self) -> str:
        return f"{self.incarnation:08x}"

    @property
    def address(self) -> str:
        return f"tcp://{self.name}:1/{self.guid}"

    @property
    def ref(self) -> StubRef:
        return StubRef(self.name, self.address, self.domain)

    def start(self) -> None:
        self.alive = True
        self.incarnation += 1
        self.heard.clear()
        self.managents = {path: one for path, one in self.managents.items() if one.env != "non-existent"}
        for managent in self.managents.values():
            managent.job = None
            self.heard[managent.parent.path] = self.world.now
            if managent.charge and managent.charge.lease_s and managent.life in ALIVE:
                managent.life = "configured"  # nobody knows for how long it was away: the lease may be over
            self.world.host(self, managent)
        self._later(self.BEAT_S * 0.2, self._beat)
        self._later(self.CHECK_S, self._lapse)

    def crash(self) -> None:
        self.alive = False

    def _later(self, after_s: float, action: Callable[[], None]) -> None:
        incarnation = self.incarnation

        def act() -> None:
            if self.alive and self.incarnation == incarnation:
                action()

        self.world.at(after_s, act)

    # --- messages ----------------------------------------------------------------------------------------------------

    def take(self, sender: str, message: AnyDeployMessage) -> None:
        match message:
            case BipCall():
                self._command(sender, message)
            case InspectCall():
                self._inspect(sender, message)
            case AdoptCall():
                self.heard[message.parent.path] = self.world.now
                for path in message.managents:
                    managent = self.managents.get(path)
                    if managent is not None and message.epoch >= managent.epoch:
                        managent.epoch, managent.parent = message.epoch, message.parent
                        self.world.host(self, managent)
                self._whole(message.parent, sender)
            case StubPing():
                self.heard[message.parent.path] = self.world.now
                self._whole(message.parent, sender)
            case _:
                raise AssertionError(message)

    def _command(self, sender: str, call: BipCall) -> None:
        managent = self.managents.get(call.managent)
        pair = (call.epoch, call.attempt)
        known = managent or self.gone.get(call.managent)
        if known is not None and pair < (known.epoch, known.attempt):
            return self._say(sender, call, managent, "stale", f"{pair} is older than {known.epoch, known.attempt}")
        self.heard[call.parent.path] = self.world.now
        if known is not None and call.call in known.answers:
            return self.world.deliver(self.name, sender, known.answers[call.call])
        if managent is not None and managent.job is not None:
            if managent.job.call == call.call:
                managent.sender = sender
            return self._say(sender, call, managent, "running", "")
        env, life = (managent.env, managent.life) if managent else ("non-existent", "non-existent")
        reason = refusal(call.verb, env, life)
        if reason is not None:
            return self._say(sender, call, managent, "refused" if managent else "unknown", reason)
        if managent is None:
            managent = self.managents[call.managent] = Managent(call.managent, *pair, call.parent)
            managent.answers = known.answers if known is not None else {}
        managent.epoch, managent.attempt = pair
        managent.parent, managent.job, managent.sender = call.parent, call, sender
        self.world.begins(self.name, call)
        self._later(self.job_s, lambda: self._carry_out(managent, call))
        return None

    def _carry_out(self, managent: Managent, call: BipCall) -> None:
        managent.job = None
        wanted = self.world.wanted(managent.path)
        reason, final = self.world.trouble(self.name, managent.path) if call.charge is not None else ("", False)
        if call.charge is not None and wanted is None:
            reason, final = "no match at all", True
        if reason:
            if call.verb == "deploy":
                managent.env = "code loaded"
            answer = self._answer(call, managent, "failed", reason, final)
        else:
            self._obey(managent, call, wanted)
            answer = self._answer(call, managent, "done", "", False)
        managent.answers = {**dict(list(managent.answers.items())[-3:]), call.call: answer}
        if call.verb == "restart":
            self.world.close(self, managent)
        self.world.host(self, managent)
        if managent.env == "non-existent":
            del self.managents[managent.path]
            self.gone[managent.path] = managent
        self.world.deliver(self.name, managent.sender, answer)

    def _obey(self, managent: Managent, call: BipCall, wanted: Wanted | None) -> None:
        row = COMMANDS[call.verb]
        if call.verb in ("start", "restart", "deploy"):
            managent.health = "ok"
        if call.charge is not None and wanted is not None:
            managent.charge = call.charge
            have = managent.prints
            if call.verb == "deploy":
                managent.prints, managent.role = wanted.prints, wanted.role
            elif call.verb == "configure-managent":
                managent.prints, managent.role = Prints(have.code, have.install, wanted.prints.managent), wanted.role
        managent.env = row.env_after or managent.env
        managent.life = row.life_after or managent.life
        if call.verb == "deploy" and managent.charge and managent.charge.lease_s:
            self._later(self.CHECK_S, self._lapse)
        if call.verb in ("start", "restart", "deploy"):
            self.world.runs_now(self.name, managent, call.verb)
        if managent.env == "non-existent":
            managent.prints, managent.role = NOTHING, None

    def _inspect(self, sender: str, call: InspectCall) -> None:
        self.heard[call.parent.path] = self.world.now
        managent = self.managents.get(call.managent) or Managent(call.managent, 0, 0, call.parent)
        wanted = self.world.wanted(call.managent)
        error, final = self.world.trouble(self.name, call.managent)
        if wanted is None:
            error, final = "no match at all", True
        answer = InspectAnswer(
            call.call, call.parent.path, call.managent, self.name, managent.env, managent.life, managent.prints,
            wanted.prints if wanted else NOTHING, bool(wanted and wanted.role), error, final,
        )  # fmt: skip
        self.world.deliver(self.name, sender, answer)

    def _say(self, sender: str, call: BipCall, managent: Managent | None, outcome, reason: str) -> None:
        self.world.deliver(self.name, sender, self._answer(call, managent, outcome, reason, False))

    def _answer(self, call: BipCall, managent: Managent | None, outcome, reason: str, final: bool) -> BipAnswer:
        one = managent or Managent(call.managent, 0, 0, call.parent)
        return BipAnswer(
            call.call, call.parent.path, call.managent, self.name, outcome, one.env, one.life, one.prints,
            one.role is not None, final, reason, ("the last line",) if outcome == "failed" else (),
        )  # fmt: skip

    # --- by itself ---------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        for parent in list(dict.fromkeys(one.parent for one in self.managents.values())):
            self._whole(parent, parent.address)
        self._later(self.BEAT_S, self._beat)

    def _whole(self, parent: Parent, to: str) -> None:
        mine = [one for one in self.managents.values() if one.parent.path == parent.path and one.env != "non-existent"]
        beats = tuple(
            ManagentBeat(one.path, one.epoch, one.attempt, one.env, one.life, one.health, "", one.role is not None)  # type: ignore[arg-type]
            for one in mine
        )
        self.world.deliver(self.name, to, StubBeat(parent.path, self.ref, self.guid, True, beats))

    def _lapse(self) -> None:
        for managent in self.managents.values():
            lease_s = managent.charge.lease_s if managent.charge else 0.0
            silent_s = self.world.now - self.heard.get(managent.parent.path, 0.0)
            if lease_s and silent_s >= lease_s and managent.life in ALIVE and managent.job is None:
                managent.life = "configured"
                self.world.host(self, managent)
        if any(one.charge and one.charge.lease_s for one in self.managents.values()):
            self._later(self.CHECK_S, self._lapse)

    def end(self, path: str) -> None:
        """Its program ends by itself."""
        managent = self.managents[path]
        if managent.life in ALIVE and managent.job is None:
            managent.life, managent.health = "configured", "crashed"
            self.world.host(self, managent)
