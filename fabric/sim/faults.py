"""Faults: at moments, to whom, and for how long, all drawn from the seed. `stop` ends every one of them.

Each kind is a method that begins a fault and schedules its end. Half of those that need a victim prefer one that leads,
since that is where most is at stake.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fabric.sim.machine import Machine
from fabric.sim.strangers import Strangers

if TYPE_CHECKING:
    from fabric.sim.world import World


MAX_DEAD = 0.15
"""Of all machines, those that never come back while there are faults."""


class Faults:
    """`begin` once; they happen until `stop`. `counts`: by kind."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.counts: Counter[str] = Counter()
        self._rng = rng
        self._over = False
        self._lying: set[str] = set()
        """Machines that stay without power until the end of the faults."""
        self._strangers = Strangers(world, rng)
        kinds = world.conditions.kinds
        self._kinds, self._weights = list(kinds), list(kinds.values())
        self._do: dict[str, Callable[[], str]] = {
            "crash": self._crash,
            "power": self._power,
            "rack": self._rack,
            "dead": self._dead,
            "pause": self._pause,
            "leave": self._leave,
            "partition": self._partition,
            "cut off": self._cut_off,
            "expire": self._expire,
            "drop": self._drop,
            "reply": self._reply,
            "outage": self._outage,
            "journal full": self._journal_full,
            "images full": self._images_full,
            "rot": self._rot,
            "instance": self._instance,
            "clock": self._clock,
            "api": self._api,
            "stranger": self._strangers.strike,
        }

    def begin(self) -> None:
        if self._kinds:
            self._next()

    def _next(self) -> None:
        self.world.clock.after(self._rng.expovariate(1 / self.world.conditions.fault_every_s), self._strike)

    def _strike(self) -> None:
        if self._over:
            return
        kind = self._rng.choices(self._kinds, self._weights)[0]
        found = self._do[kind]()
        if found:
            self.counts[kind] += 1
            self.world.tell("fault", f"{kind}: {found}")
        self._next()

    # --- victims -----------------------------------------------------------------------------------------------------

    def _victim(self) -> Machine:
        machines = list(self.world.machines.values())
        if self._rng.random() < 0.5:
            leaders = [one for one in machines if one.process is not None and one.process.leads]
            machines = leaders or machines
        return self._rng.choice(machines)

    def _until(self, after_s: float, end: Callable[[], None]) -> None:
        """The end of a fault, unless `stop` has ended it."""

        def over() -> None:
            if not self._over:
                end()

        self.world.clock.after(after_s, over)

    def _some_s(self) -> float:
        """Often shorter than a session's time-out, sometimes much longer."""
        usual_s = self._rng.choice((0.3, 1.5, 5.0, 9.0)) * (0.5 + self._rng.random())
        return usual_s * self.world.conditions.lasting

    # --- kinds -------------------------------------------------------------------------------------------------------

    def _crash(self) -> str:
        machine = self._victim()
        process = machine.process
        if process is None or process.paused:
            return ""
        if self._rng.random() < 0.6:
            process.fuse = self._rng.randint(0, 12)
            return f"{machine.name} crashes after {process.fuse} more effects"
        machine.crash()
        return f"{machine.name} is killed"

    def _power(self) -> str:
        machine = self._victim()
        if not machine.powered:
            return ""
        machine.lose_power()
        self._until(self._some_s() + 0.5, partial(self._power_on, machine))
        return f"{machine.name} is without power"

    def _power_on(self, machine: Machine) -> None:
        if machine.name not in self._lying:
            machine.power_on()

    def _rack(self) -> str:
        rack = self._victim().rack
        machines = [one for one in self.world.machines.values() if one.rack == rack]
        wait_s = self._some_s() + 0.5
        for machine in machines:
            machine.lose_power()
            self._until(wait_s + 0.3 * self._rng.random(), partial(self._power_on, machine))
        return f"all of rack {rack} is without power for {wait_s:.1f} s"

    def _dead(self) -> str:
        """For as long as there are faults."""
        machine = self._victim()
        if len(self._lying) + 1 > MAX_DEAD * len(self.world.machines) or machine.name in self._lying:
            return ""
        self._lying.add(machine.name)
        machine.lose_power()
        return f"{machine.name} is dead"

    def _pause(self) -> str:
        machine = self._victim()
        if machine.process is None or machine.process.paused:
            return ""
        wait_s = self._some_s()
        machine.pause(wait_s)
        return f"{machine.name} stands still for {wait_s:.1f} s"

    def _leave(self) -> str:
        machine = self._victim()
        if machine.process is None or not machine.wanted or machine.process.paused:
            return ""
        machine.leave()
        self._until(self._some_s() + 0.3, machine.start_again)
        return f"{machine.name} is told to leave"

    def _partition(self) -> str:
        cuts = self.world.weather.cuts
        names = list(self.world.machines)
        racks = sorted({machine.rack for machine in self.world.machines.values()})
        kind = self._rng.choice(("nodes", "node", "racks"))
        if kind == "nodes":
            one, other = [self._victim().name], [self._rng.choice(names)]
        elif kind == "node":
            one = [self._victim().name]
            other = [name for name in names if name not in one]
        else:
            here, there = self._rng.sample(racks, 2)
            one = [machine.name for machine in self.world.machines.values() if machine.rack == here]
            other = [machine.name for machine in self.world.machines.values() if machine.rack == there]
        pairs = {(a, b) for a in one for b in other if a != b}
        both = self._rng.random() < 0.5
        if both:
            pairs |= {(b, a) for a, b in pairs}
        elif self._rng.random() < 0.5:
            pairs = {(b, a) for a, b in pairs}
        cuts |= pairs
        self._until(self._some_s(), partial(cuts.difference_update, pairs))
        return f"{kind} {one[0]} and {other[0]}, {'both ways' if both else 'one way'}, {len(pairs)} ways cut"

    def _cut_off(self) -> str:
        """From ZooKeeper alone."""
        machine = self._victim()
        tree = machine.process.tree if machine.process is not None else None
        if tree is None:
            return ""
        timeout_s = self.world.settings.session_timeout_s
        tree.disconnect(self._rng.uniform(0, timeout_s * 2 / 3), self._rng.uniform(0, timeout_s / 3))
        self._until(self._some_s(), tree.reconnect)
        return f"{machine.name} does not reach ZooKeeper"

    def _expire(self) -> str:
        machine = self._victim()
        tree = machine.process.tree if machine.process is not None else None
        if tree is None or not self.world.ensemble.expire(tree.session_id):
            return ""
        return f"the session of {machine.name} is ended"

    def _drop(self) -> str:
        machine = self._victim()
        tree = machine.process.tree if machine.process is not None else None
        if tree is None:
            return ""
        tree.drop(self._rng.choice((0.0, 0.5)))
        return f"the connection of {machine.name} to ZooKeeper breaks"

    def _reply(self) -> str:
        machine = self._victim()
        if self._rng.random() < 0.2:
            alive = [one for one in self.world.submitters if one.alive]
            if alive:
                submitter = self._rng.choice(alive)
                submitter.tree.lose_reply()
                return f"{submitter.name} loses the reply to its next write"
        tree = machine.process.tree if machine.process is not None else None
        if tree is None:
            return ""
        tree.lose_reply()
        return f"{machine.name} loses the reply to its next write"

    def _outage(self) -> str:
        ensemble = self.world.ensemble
        if ensemble.is_out:
            return ""
        ensemble.outage(True)
        wait_s = self._some_s()
        self._until(wait_s, partial(ensemble.outage, False))
        return f"ZooKeeper has no quorum for {wait_s:.1f} s"

    def _journal_full(self) -> str:
        machine = self._victim()
        machine.disk.full = True
        self._until(self._some_s(), partial(setattr, machine.disk, "full", False))
        return f"{machine.name}: no space left for the journal"

    def _images_full(self) -> str:
        machine = self._victim()
        part = machine.cache if machine.layer == "compute" else machine.store
        part.full = True
        self._until(self._some_s(), partial(setattr, part, "full", False))
        return f"{machine.name}: no space left for images"

    def _rot(self) -> str:
        """A chunk of an image that another machine holds whole."""
        content = self.world.contents[self._rng.choice(sorted(self.world.contents))]
        chunk = self._rng.choice(content.manifest.chunks)
        machines = self.world.machines.values()
        sound = [one for one in machines if one.store.has_sound(chunk)]
        machine = self._rng.choice(sound)
        if not any(one is not machine and one.store.truly_holds(content) for one in machines):
            return ""
        machine.store.rot(chunk)
        return f"{machine.name}: a chunk of {content.name} is rotten"

    def _instance(self) -> str:
        machine = self._rng.choice(list(self.world.machines.values()))
        live = machine.supervisor.live()
        if not live:
            return ""
        one = self._rng.choice(live)
        machine.supervisor.crash(one.name)
        return f"{one.name} on {machine.name} dies"

    def _clock(self) -> str:
        machine = self._victim()
        machine.skew_s = self._rng.choice((-3600.0, -5.0, 0.0, 5.0, 3600.0)) * self._rng.random()
        return f"the wall clock of {machine.name} is wrong by {machine.skew_s:.0f} s"

    def _api(self) -> str:
        alive = [one for one in self.world.submitters if one.alive]
        if not alive:
            return ""
        submitter = self._rng.choice(alive)
        submitter.crash()
        self.world.clock.after(self._rng.uniform(0.3, 3.0), self.world.add_submitter)
        return f"{submitter.name} dies"

    # --- the end -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """No fault goes on, and none begins any more."""
        self._over = True
        world = self.world
        world.weather.cuts.clear()
        world.weather.loss = world.weather.repeat = world.weather.overtaken = 0.0
        world.spoilt = 0.0
        world.habits.fails = world.habits.stubborn = world.habits.exits_after_s = 0.0
        world.ensemble.outage(False)
        for machine in world.machines.values():
            machine.disk.full = machine.cache.full = machine.store.full = False
            machine.power_on()
            machine.start_again()
            if machine.process is not None:
                machine.process.fuse = None
                machine.process.resume()
            tree = machine.process.tree if machine.process is not None else None
            if tree is not None:
                tree.loses_reply = False
                tree.reconnect()
        for submitter in world.submitters:
            submitter.tree.loses_reply = False
