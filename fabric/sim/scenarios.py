"""Scenarios: what happens is said by a script of a few lines, in a small fabric whose weather is steady.

Theory of operation. A `Stage` is a world of three racks, each of three compute machines and one of storage, in which
nothing is left to chance: delays are always the same, nothing is lost, and nobody does anything that the script does
not ask for. All promises are checked as ever. A script lets time pass `until` something is so (it is looked at whenever
something has happened, so that a fault may be put between any two steps), and at the end everything has to settle.
To add one, write a function here with `@scenario`; its docstring is what the list says.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fabric.records import Deployment, Spec
from fabric.sim.checkers.base import Violation
from fabric.sim.conditions import SMALL, Conditions
from fabric.sim.driver import Habits
from fabric.sim.machine import Machine
from fabric.sim.operators import Wish
from fabric.sim.simulation import Result, settle, watch
from fabric.sim.tale import Tale
from fabric.sim.world import BEGIN_S, Options, World

BOUND_S = 60.0
"""Of virtual time, for a script to wait."""

STEADY = Conditions(
    level="script",
    racks=3,
    compute=3,
    storage=1,
    faults_s=0.0,
    fault_every_s=0.0,
    kinds={},
    loss=0.0,
    repeat=0.0,
    overtaken=0.0,
    late_s=0.0,
    spoilt=0.0,
    sync_s=0.001,
    zk_s=0.002,
    skew_s=0.0,
    habits=Habits(),
    requests=0,
    images=1,
)

Script = Callable[["Stage"], None]
SCENARIOS: dict[str, Script] = {}


def scenario(script: Script) -> Script:
    SCENARIOS[script.__name__.replace("_", "-")] = script
    return script


class _Steady(random.Random):
    """Always the middle: what is drawn from it does not depend on what was drawn before."""

    def random(self) -> float:
        return 0.5


class Stage(World):
    """What a script works with."""

    def __init__(self, options: Options) -> None:
        super().__init__(0, options, STEADY)
        self.tale = Tale(self) if options.story else None
        self.story = None  # until the script begins
        self._deployments = 0

    def _rng(self, name: str) -> random.Random:
        return super()._rng(name) if name in ("key", "users", "machines") else _Steady(0)

    # --- time --------------------------------------------------------------------------------------------------------

    def until(self, what: str, so: Callable[[], object]) -> None:
        """Let time pass until it is so."""
        bound = self.clock.now + BOUND_S
        while not so():
            if self.clock.due > bound:
                raise Violation("ends", f"in {BOUND_S:g} s it was never so that {what}")
            self.clock.run(self.clock.due)

    def wait(self, for_s: float) -> None:
        self.clock.run(self.clock.now + for_s)

    # --- users -------------------------------------------------------------------------------------------------------

    def deploy(self, count: int, stop_after_s: int = 0) -> str:
        """The deployment's id, at once."""
        self._deployments += 1
        content = self.pushed[0]
        record = Deployment(
            id=f"d-{self._deployments:06d}",
            name=content.name,
            spec=Spec(content.name, content.digest, "Small", SMALL, {}, "always", stop_after_s),
            count=count,
            min_count=count,
            policy="spread",
            created_ms=0,
            updated_ms=0,
            key=f"{self._deployments:016x}",
            lost_after_s=3 + 5 * stop_after_s,
        )
        self.users.ask(Wish("create", record.id), record)
        return record.id

    def scale(self, deployment: str, count: int) -> None:
        self.users.ask(Wish("scale", deployment, count))

    def delete(self, deployment: str) -> None:
        self.users.ask(Wish("delete", deployment))

    def drain(self, machine: Machine, deadline_s: int) -> None:
        self.users.ask(Wish("drain", machine.name, deadline_s))

    # --- faults ------------------------------------------------------------------------------------------------------

    def kill(self, machine: Machine) -> None:
        """Its agent; the keeper starts it again."""
        self.tell("script", f"the agent of {machine.name} is killed")
        machine.crash()

    def power(self, on: bool, *machines: Machine) -> None:
        self.tell("script", f"{' '.join(one.name for one in machines)}: the power is {'back' if on else 'gone'}")
        for machine in machines:
            (machine.power_on if on else machine.lose_power)()

    def pause(self, machine: Machine, for_s: float) -> None:
        self.tell("script", f"{machine.name} stands still for {for_s:g} s")
        machine.pause(for_s)

    def stubborn(self) -> None:
        """From now on no instance minds TERM."""
        self.tell("script", "instances do not mind TERM any more")
        self.habits.stubborn = 1.0

    def quorum(self, there: bool) -> None:
        self.tell("script", f"ZooKeeper has {'its quorum again' if there else 'no quorum'}")
        self.ensemble.outage(not there)

    # --- what is so --------------------------------------------------------------------------------------------------

    def record(self, deployment: str) -> Deployment | None:
        seen = self.view.deployments.get(deployment)
        return seen.record if seen is not None else None

    def planned(self, deployment: str) -> bool:
        record = self.record(deployment)
        return record is not None and bool(record.plan)

    def runs(self, deployment: str) -> bool:
        """It is at rest, as it was asked for."""
        record = self.record(deployment)
        return record is not None and record.final and record.state == "running"

    def moves(self, deployment: str) -> bool:
        record = self.record(deployment)
        return record is not None and bool(record.leaving)

    def present(self, machine: Machine) -> bool:
        return machine.name in self.view.present

    def coordinator(self, deployment: str) -> Machine:
        return self.machines[self.agent_sessions[self.view.owners[deployment]]]

    def ending(self) -> int:
        """Instances that are being stopped."""
        return sum(bool(one.stops) for machine in self.machines.values() for one in machine.supervisor.live())

    def worker(self, deployment: str) -> Machine:
        """One that runs some of it, and does not lead its rack."""
        nodes = {node for slot, here in self.view.running.items() if slot[0] == deployment for node in here}
        followers = (self.machines[name] for name in sorted(nodes))
        return next(one for one in followers if one.process is None or not one.process.leads)


# --- the scenarios ---------------------------------------------------------------------------------------------------


@scenario
def deploy(stage: Stage) -> None:
    """Six instances are asked for, then nine, then none."""
    one = stage.deploy(6)
    stage.until("it runs", lambda: stage.runs(one))
    stage.scale(one, 9)
    stage.until("it grows", lambda: not stage.runs(one))
    stage.until("it runs", lambda: stage.runs(one))
    stage.delete(one)


@scenario
def coordinator_dies(stage: Stage) -> None:
    """The coordinator dies when the plan is written, and nobody has confirmed it."""
    one = stage.deploy(6)
    stage.until("the plan is written", lambda: stage.planned(one))
    stage.kill(stage.coordinator(one))
    stage.until("it runs", lambda: stage.runs(one))


@scenario
def node_dies(stage: Stage) -> None:
    """A node loses its power and comes back when its instances run elsewhere."""
    one = stage.deploy(6)
    stage.until("it runs", lambda: stage.runs(one))
    node = stage.worker(one)
    stage.power(False, node)
    stage.until("it is being replaced", lambda: not stage.runs(one))
    stage.until("it runs elsewhere", lambda: stage.runs(one))
    stage.power(True, node)
    stage.until("it is back", lambda: stage.present(node))


@scenario
def node_stands_still(stage: Stage) -> None:
    """A node stops for longer than its session lives, and its instances run on: back again, it has to stop them."""
    one = stage.deploy(6)
    stage.until("it runs", lambda: stage.runs(one))
    node = stage.worker(one)
    stage.pause(node, 20.0)
    stage.until("it is being replaced", lambda: not stage.runs(one))
    stage.until("it runs elsewhere", lambda: stage.runs(one))
    stage.until("the node is back", lambda: stage.present(node))


@scenario
def drain(stage: Stage) -> None:
    """A node is drained, and the coordinator dies when the new places are planned."""
    one = stage.deploy(6)
    stage.until("it runs", lambda: stage.runs(one))
    stage.drain(stage.worker(one), 60)
    stage.until("its ordinals are leaving", lambda: stage.moves(one))
    stage.kill(stage.coordinator(one))
    stage.until("it runs elsewhere", lambda: stage.runs(one))


@scenario
def outage(stage: Stage) -> None:
    """ZooKeeper loses its quorum when the plan is written, for longer than sessions live."""
    one = stage.deploy(6)
    stage.until("the plan is written", lambda: stage.planned(one))
    stage.quorum(False)
    stage.wait(5.0)
    stage.quorum(True)
    stage.until("it runs", lambda: stage.runs(one))


@scenario
def deleted_while_parked(stage: Stage) -> None:
    """Nodes out of touch for too long stop what they run; back in touch, they are to start it, and it is deleted."""
    one = stage.deploy(6, stop_after_s=2)
    stage.until("it runs", lambda: stage.runs(one))
    stage.stubborn()
    stage.quorum(False)
    stage.until("all are being stopped", lambda: stage.ending() == 6)
    stage.quorum(True)
    stage.wait(0.6)
    stage.delete(one)
    stage.until("it is gone", lambda: not stage.view.running)


@scenario
def rot(stage: Stage) -> None:
    """A chunk rots: the scrubber finds it, and another holder's takes its place."""
    content = stage.pushed[0]
    holder = next(one for one in stage.machines.values() if one.store.truly_holds(content))
    holder.store.rot(content.manifest.chunks[0])
    stage.tell("script", f"{holder.name}: a chunk of {content.name} is rotten")
    stage.until("it is found", lambda: holder.store.damaged())
    stage.tell(holder.name, f"finds that {content.name} is damaged")
    stage.until("it is replaced", lambda: holder.store.truly_holds(content))
    stage.tell(holder.name, f"has {content.name} whole again")


@scenario
def brake(stage: Stage) -> None:
    """A rack is without power: so many at once are waited for, and come back."""
    one = stage.deploy(9)
    stage.until("it runs", lambda: stage.runs(one))
    rack = [machine for machine in stage.machines.values() if machine.rack == "r1"]
    stage.power(False, *rack)
    stage.until("ZooKeeper counts them out", lambda: len(stage.view.present) == 6)
    stage.wait(20.0)
    stage.power(True, *rack)
    stage.until("it runs", lambda: len(stage.view.running) == 9)


# --- how they are played ---------------------------------------------------------------------------------------------


def play(name: str, options: Options) -> Result:
    """`name`: one of SCENARIOS."""
    began = time.process_time()
    stage = Stage(replace(options, scenario=name))
    return watch(stage, partial(_course, stage, SCENARIOS[name]), began)


def _course(stage: Stage, script: Script) -> float:
    stage.boot()
    stage.clock.run(BEGIN_S * 2)
    stage.story = stage.tale
    script(stage)
    stage.tell("script", "ends")
    return settle(stage)
