"""A boot stub's state machine with a world that does what a test says: no clock, no disk, no process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deploy.configuration import Children, Configuration, InitiatorRole, ProgramRole
from deploy.messages import BipAnswer, BipCall, Charge, Parent, StubBeat
from deploy.records import Prints, StubRef
from deploy.resolved import CodeFile, Resolved
from deploy.states import Verb
from deploy.stub import managent as records
from deploy.stub.effects import (
    Effect,
    Install,
    Installed,
    Note,
    Received,
    Resolve,
    Run,
    Send,
    Start,
    Step,
    StepFailed,
    Stepped,
    Undone,
    Uninstall,
    Work,
)
from deploy.stub.limits import StubSettings
from deploy.stub.machine import BootStub
from deploy.stub.parents import marks_of
from fabric.effects import Persist

W = TypeVar("W")
GUID = "0123456789abcdef"
ADDRESS = "tcp://127.0.0.1:4711/0123456789abcdef"
PARENT = Parent("/site", "tcp://127.0.0.1:5000/00000000000000aa")
HEIR = Parent("/site", "tcp://127.0.0.1:5001/00000000000000bb")
CHARGE = Charge("http://repository/")
CODE = CodeFile("http://repository/agent.sh", "agent.sh", "", Path("/cache/1"), "b3:00")
INITIATOR = Configuration(initiator=InitiatorRole((Children("count", 2),)))


def prints(code: str = "c", install: str = "a", managent: str = "b") -> Prints:
    return Prints(*(letter * 16 for letter in (code, install, managent)))


def resolved(managent: Configuration | None = None, **changes: Any) -> Resolved:
    fields: dict[str, Any] = {"code": (CODE,), "install": Configuration(), "prints": prints()} | changes
    return Resolved(managent=managent or Configuration(program=ProgramRole(start="./agent.sh")), **fields)


Answerer = Callable[[Work], Any]


def obliging(work: Work) -> Any:
    """Everything succeeds."""
    match work:
        case Resolve():
            return resolved()
        case Install():
            return Installed()
        case Start():
            return Run("process", "./agent.sh", 77, 1000, "boot")
        case Uninstall():
            return Undone()
        case _ if type(work).__name__ == "Adopt":
            return work.run  # type: ignore[union-attr]
    return None


class Scene:
    """`world` None: steps stay open, until `finish` is called."""

    def __init__(self, world: Answerer | None = obliging, settings: StubSettings | None = None) -> None:
        self.settings = settings or StubSettings()
        self.now = 100.0
        self.world = world
        self.disk: dict[str, bytes] = {}
        self.sent: list[Send] = []
        self.works: list[Work] = []
        self.open: list[Step] = []
        self.effects: list[Effect] = []
        self.calls = 0
        self.boot = "boot-1"
        self.stub = self._boot()

    def _boot(self) -> BootStub:
        managents, forgotten = records.restore(self.disk.items())
        ref = StubRef("s1", ADDRESS, "/site")
        heard = marks_of(self.disk, self.boot)
        return BootStub(ref, GUID, self.settings, self.now, managents, forgotten, self.boot, heard)

    def restart(self) -> None:
        """A new incarnation, from what is on the disk."""
        self.open.clear()
        self.stub = self._boot()
        self.perform(self.stub.start(self.now))

    # --- inputs --------------------------------------------------------------------------------------------------

    def send(self, message: Any, sender: str = "route:1") -> None:
        self.perform(self.stub.handle(self.now, Received(sender, message)))

    def command(self, verb: Verb, path: str = "/site/a", *, sender: str = "route:1", **fields: Any) -> BipAnswer:
        """Send it, and return the answer to it; the call's id is new unless it is given."""
        self.calls += 1
        defaults: dict[str, Any] = {
            "call": f"c{self.calls}",
            "epoch": 1,
            "attempt": 1,
            "parent": PARENT,
            "charge": CHARGE,
        }
        before = len(self.answers)
        self.send(BipCall(verb=verb, managent=path, **(defaults | fields)), sender)
        assert len(self.answers) > before, "no answer yet"
        return self.answers[-1]

    def start(self, verb: Verb, path: str = "/site/a", **fields: Any) -> BipCall:
        """Send it, without an answer at once."""
        self.calls += 1
        defaults: dict[str, Any] = {
            "call": f"c{self.calls}",
            "epoch": 1,
            "attempt": 1,
            "parent": PARENT,
            "charge": CHARGE,
        }
        call = BipCall(verb=verb, managent=path, **(defaults | fields))
        self.send(call)
        return call

    def finish(self, result: Any = None, ms: int = 5) -> None:
        """The oldest open step ends so."""
        step = self.open.pop(0)
        self.perform(self.stub.handle(self.now, Stepped(step.job, result, ms)))

    def news(self, news: Any) -> None:
        self.perform(self.stub.handle(self.now, news))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.stub.next_deadline() <= end:
            self.now = max(self.now, self.stub.next_deadline())
            self.perform(self.stub.tick(self.now))
        self.now = end

    # --- effects -------------------------------------------------------------------------------------------------

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case Persist(puts, deletes):
                    self.disk.update(puts)
                    for key in deletes:
                        self.disk.pop(key, None)
                case Send():
                    self.sent.append(effect)
                case Step(job, work):
                    self.works.append(work)
                    if self.world is None:
                        self.open.append(effect)
                    else:
                        self.perform(self.stub.handle(self.now, Stepped(job, self.world(work), 5)))
                case Note():
                    pass

    @property
    def answers(self) -> list[BipAnswer]:
        return [one.message for one in self.sent if isinstance(one.message, BipAnswer)]

    @property
    def beats(self) -> list[StubBeat]:
        return [one.message for one in self.sent if isinstance(one.message, StubBeat)]

    def done(self, kind: type[W]) -> list[W]:
        return [work for work in self.works if isinstance(work, kind)]


def failing(kind: type, failed: StepFailed, world: Answerer = obliging) -> Answerer:
    return lambda work: failed if isinstance(work, kind) else world(work)
