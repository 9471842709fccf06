"""One run of a scenario: up, load, faults, heal, wait until all is at rest, judge.

    bring up, or attach ─> push images ─> watch ─> load begins ─┬─ faults, each at its time, undone at its end ─┐
                                                                └──────── for `for_s` ──────────────────────────┤
    judge <─ one thorough look <─ until nothing is unsettled, or `settle_s` is over <─ requests end <─ heal <───┘

Theory of operation. The main thread keeps the schedule (schedule.py). Load and watcher have threads of their own; the
keeper is another process. Whatever happens (Ctrl-C too) the way out is the same: heal what was done, end the load, and
take the fabric down if it was brought up for this run. A fault that can't be done is noted, and the run goes on: the
scorecard says what was not done, and why.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from fabric.chaos import judge, mounts
from fabric.chaos.deaths import Deaths
from fabric.chaos.figures import figures
from fabric.chaos.load import Generator
from fabric.chaos.looking import look
from fabric.chaos.room import with_room
from fabric.chaos.schedule import Schedule
from fabric.chaos.scorecard import Scorecard, expected
from fabric.chaos.script import Scenario
from fabric.chaos.stage import Skipped, Stage
from fabric.chaos.verdict import Finding, Promise, verdict
from fabric.chaos.watch import CannotLook, Watcher
from fabric.chaos.watching import Watching
from fabric.chaos.world import Rules, World
from fabric.chaos.writing import format_scenario
from fabric.flavors import load_flavors
from fabric.images.manifest import chunk_hash
from fabric.load import image
from fabric.load.history import Clock, History, requests
from fabric.local.control import ControlClient, ControlError
from fabric.local.folder import Folder
from fabric.local.interrupts import Interrupts
from fabric.local.logs import tail
from fabric.local.state import LocalState
from fabric.net.rules import API
from fabric.resources import Resources

TURN_S = 0.05
LOOK_EVERY_S = 0.5
SETTLE_LOOK_S = 0.5
PUSH_WAIT_S = 60.0
HEAL_WAIT_S = 45.0
TIDY_WAIT_S = 10.0
MEMORY_MIB, DISK_MIB = 1 << 20, 1 << 24
"""Of each node: never what limits. The vcpus are."""
NODE_DISK_BYTES = 96 << 20
DISK_VERBS = frozenset({"fill", "read-only"})
Say = Callable[[str], None]


class RunFailed(Exception):
    """The run could not be made, so nothing can be said of the promises."""


@dataclass(frozen=True, slots=True)
class Published:
    """An image of the run: its name, its digest, and the hash of each file in it."""

    name: str
    digest: str
    files: dict[str, bytes]


class Run:
    """`say`: progress, a line at a time. `history`: where it is written, or None."""

    def __init__(
        self,
        scenario: Scenario,
        state: LocalState,
        own: bool,
        interrupts: Interrupts,
        say: Say,
        *,
        disks: str,
        history: Path | None = None,
    ) -> None:
        self.scenario, self.interrupts, self.say = scenario, interrupts, say
        self.rng = random.Random(scenario.seed)
        self.clock = Clock()
        self.history = History(history)
        self.rules = Rules(
            capacity=state.spec.capacity,
            flavors={name: one.resources for name, one in load_flavors().items()},
            flavor=scenario.load.flavor,
        )
        self.loads: list[Generator] = []
        self.watching = Watching(
            self.rules,
            lambda one: max((g.stop_after_s(one) for g in self.loads), default=0),
            lambda one, ordinal: all(g.wanted(one, ordinal) for g in self.loads),
        )
        folder = Folder(Path(state.folder))
        nodes = folder.node("x").parent
        racks = tuple(sorted({view.node.rack for view in state.nodes}))
        storage = tuple(view.node.name for view in state.nodes if view.node.layer == "storage")
        self.watcher = Watcher(
            state.zookeeper.where, nodes, racks, storage, self.watching, self.clock,
            lambda: frozenset[str]().union(*(one.busy() for one in self.loads)),
        )  # fmt: skip
        self.stage = Stage(
            ControlClient(folder), folder, self.watcher, self.watching, self.clock, self.rng, state, own, disks
        )
        self.schedule = Schedule(self.stage, scenario.acts, scenario.for_s, say)
        self.published: list[Published] = []
        self.deaths = Deaths()
        self._looked_at = 0.0

    # --- the whole ---------------------------------------------------------------------------------------------------

    def play(self) -> Scorecard:
        """Raises RunFailed, CannotLook, ControlError, Interrupted. Everything that was done is undone in any case."""
        try:
            self._prepare()
            faults_ended_s = self._storm()
        finally:
            self._heal()
        unsettled, world = self._settle()
        return self._judge(unsettled, world, faults_ended_s)

    def close(self) -> None:
        for one in self.loads:
            one.close()
        if not self.stage.own:
            self._leave_nothing()
        self.watcher.close()
        self.history.close()

    def _leave_nothing(self) -> None:
        """In somebody else's fabric: what this run deployed and published goes. As far as the API answers."""
        made = {one.deployment for one in self.history.attempts if one.accepted}
        base = self.stage.state.api.where
        with httpx.Client(base_url=base, timeout=TIDY_WAIT_S, trust_env=False) as api, _unanswered():
            for deployment in sorted(made):
                api.delete(f"/v1/deployments/{deployment}")
            for one in self.published:
                api.delete(f"/v1/images/{one.name}", params={"force": "true"})

    def _prepare(self) -> None:
        if any(act.verb in DISK_VERBS for act in self.scenario.acts) and not self.stage.disks:
            self._give_disks()
        self.watcher.open()
        with httpx.Client(base_url=self.stage.state.api.where, timeout=PUSH_WAIT_S, trust_env=False) as api:
            for number, size in enumerate(self.scenario.images):
                self.published.append(self._push(api, f"chaos-{self.clock.began:.0f}-{number}", size))
        self.watcher.digests = tuple(one.digest for one in self.published)
        load = self.scenario.load
        if load.per_s:
            names = tuple(one.name for one in self.published)
            run = f"chaos-{self.rng.getrandbits(64):016x}-{time.time_ns():x}"
            generator = Generator(self.stage.state.api.where, load, names, self.history, self.clock, self.rng, run)
            self.loads.append(generator)

    def _push(self, api: httpx.Client, name: str, size: int) -> Published:
        """Again while the fabric is not ready for it. Raises RunFailed."""
        content = image.build(size, self.rng)
        deadline = time.monotonic() + PUSH_WAIT_S
        while True:
            self.interrupts.check()
            try:
                answer = api.put(f"/v1/images/{name}", content=content)
            except httpx.HTTPError as error:
                raise RunFailed(f"the image {name} could not be pushed: {error!r}") from None
            if answer.status_code == 201:
                break
            if answer.status_code < 500 or time.monotonic() > deadline:
                raise RunFailed(f"the image {name} could not be pushed: {answer.status_code} {answer.text[:300]}")
            self.interrupts.wait(LOOK_EVERY_S)
        pushed = answer.json()
        if not self.stage.holders:
            self.stage.holders = tuple(pushed["holders"])
        return Published(name, pushed["digest"], {"entrypoint": chunk_hash(image.ENTRYPOINT)})

    def _give_disks(self) -> None:
        """A small disk for every node, while nothing runs yet."""
        self.say("giving each node a disk of its own")
        names = [node.name for node in self.stage.nodes]
        try:
            for name in names:
                self.stage.send(name, 9)
            for name in names:
                self.stage.wait_dead(name)
                mounts.small(self.stage.folder.node(name), NODE_DISK_BYTES)
                self.stage.start_again(name)
            self.stage.wait(self.stage.all_up, "all agents to be back", HEAL_WAIT_S)
        except OSError as error:
            raise RunFailed(f"a disk could not be mounted at {error.filename}: {error.strerror}") from None
        except Skipped as error:
            raise RunFailed(str(error)) from None

    # --- the storm ---------------------------------------------------------------------------------------------------

    def _storm(self) -> float:
        """The faults, under load. Returns when it was over, in seconds of the clock."""
        for one in self.loads:
            one.start()
        began = self.clock.now()
        while (now := self.clock.now() - began) < self.scenario.for_s:
            next_s = self.schedule.turn(now)
            self._look_around()
            if self.watcher.trouble:
                raise RunFailed(f"nothing is watched any more: {self.watcher.trouble}")
            self.interrupts.wait(max(0.0, min(TURN_S, next_s - (self.clock.now() - began))))
        for one in self.loads:
            one.stop()
        return self.clock.now()

    def _look_around(self) -> None:
        """Now and then: who has ended by itself, and whether an API that a fault had taken away answers again."""
        if time.monotonic() < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        with contextlib.suppress(ControlError):
            ours = {*self.stage.held, *([API] if self.stage.api_held else [])}
            for name in self.deaths.look(self.stage.control.status(), ours, self.clock.now()):
                self.say(f"{self.clock.now():7.2f} s  {name} ended by itself:\n{tail(self.stage.folder.log(name))}")
        if self.stage.api_held:
            self._look_at_api()

    def _look_at_api(self) -> None:
        with _unanswered():
            if httpx.get(f"{self.stage.state.api.where}/healthz", timeout=1.0, trust_env=False).status_code == 200:
                self.stage.api_answers()

    # --- healing -----------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Undo everything; start what is dead. What fails is said, and found by the judge."""
        self.say(f"{self.clock.now():7.2f} s  healing")
        self.schedule.undo_all()
        deadline = time.monotonic() + HEAL_WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ControlError, Skipped):
                if self.stage.start_all_dead() and self.stage.all_up():
                    break
            time.sleep(TURN_S)
        self._look_at_api()

    def _settle(self) -> tuple[list[Finding], World]:
        """Wait until nothing is unsettled; what is so, in the end, and by what."""
        began = time.monotonic()
        said_at = began
        published = {one.digest: one.files for one in self.published}
        why = ""
        while True:
            over = time.monotonic() - began > self.scenario.settle_s
            idle = all(one.idle for one in self.loads)
            self._look_around()
            found: list[Finding] = []
            try:
                world = look(self.stage, published, thorough=over)
                found = self._unsettled(world)
                if not found and idle and not over:
                    world = look(self.stage, published, thorough=True)
                    found = self._unsettled(world)
                    over = not found
                if over:
                    return found, world
            except CannotLook as error:
                why = str(error)
                if over:
                    raise RunFailed(f"nothing can be judged: {why}") from None
            if time.monotonic() > said_at + 5.0:
                said_at = time.monotonic()
                self.say(f"{self.clock.now():7.2f} s  waiting for {found[0].text if found else why or 'requests'}")
            self.interrupts.wait(SETTLE_LOOK_S)

    def _unsettled(self, world: World) -> list[Finding]:
        return judge.unsettled(world, requests(self.history.attempts, self.history.ends), self.rules)

    # --- judging -----------------------------------------------------------------------------------------------------

    def _judge(self, unsettled: list[Finding], world: World, faults_ended_s: float) -> Scorecard:
        for one in self.loads:
            one.close()
        self.watcher.close()
        asked = requests(self.history.attempts, self.history.ends)
        now = self.clock.now()
        answers = judge.answers(asked, self.stage.excused, self.stage.outages)
        findings = [*self.watching.findings, *self.deaths.findings, *answers, *unsettled]
        found = figures(
            asked, findings, self.schedule.deeds,
            skipped=sum(one.counters.skipped for one in self.loads),
            with_room=with_room(asked, self.watching.rooms.seen()),
            instances=len(self.watching.seen), most=self.watching.most_running, samples=self.watching.samples,
            redundancy_s=max(self.watching.under_redundant_s.values(), default=0.0),
            settle_s=now - faults_ended_s, ran_s=faults_ended_s,
        )  # fmt: skip
        findings += expected(self.scenario.expects, found)
        judged = verdict(findings, self._tried())
        text = format_scenario(self.scenario)
        return Scorecard(self.scenario.name, text, judged.holds, judged, found, tuple(self.schedule.deeds))

    def _tried(self) -> Iterator[Promise]:
        yield from ("capacity", "exactly", "durable", "orphans", "redundancy")
        if self.stage.outages:
            yield "outage"
        if any(deed.verb == "strangers" and not deed.skipped for deed in self.schedule.deeds):
            yield "strangers"
        if self.scenario.expects:
            yield "expected"


def _unanswered() -> contextlib.suppress:
    """Where it does not matter whether the API answers."""
    return contextlib.suppress(httpx.HTTPError)


def capacity(vcpus: int) -> Resources:
    return Resources(vcpus, MEMORY_MIB, DISK_MIB)


