"""Instances: a supervisor, which outlives its agent, and the runner, which is part of the agent's process.

Theory of operation. What `fabric.drivers.supervisor` and `fabric.runtime.instances` do, without processes. The
supervisor's table is what really runs on a machine: an attempt is run at most once, an end is remembered until the
instance is removed or started anew, and only the agent that is connected now hears of it. The runner does one thing
after the other for each instance, and dies with its agent; what it had asked the supervisor for happens all the same.

How long things take, which starts fail and which instances end by themselves is drawn from `Habits`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fabric.effects import (
    Adopted,
    Input,
    InstanceExited,
    InstanceFailed,
    InstanceGone,
    InstanceStarted,
    StartInstance,
    StopInstance,
)
from fabric.resources import ZERO, Resources
from fabric.sim.clock import Clock

KILLED, TERMINATED = 9, 15


@dataclass(slots=True)
class Habits:
    """Rates of what instances do. `start_s`, `end_s`: the mean of how long a start, and an end after TERM, take."""

    start_s: float = 0.03
    end_s: float = 0.05
    fails: float = 0.0
    """Starts that fail for the node's fault, as a part of all."""
    stubborn: float = 0.0
    """Instances that do not mind TERM."""
    exits_after_s: float = 0.0
    """The mean life of an instance that ends by itself; 0: none does."""


@dataclass(slots=True)
class Instance:
    """One attempt of one instance, as the supervisor has it. `pid` 0: it has not executed yet."""

    name: str
    attempt: int
    resources: Resources
    digest: str
    state: Literal["starting", "running", "ended"] = "starting"
    pid: int = 0
    started_ms: int = 0
    code: int | None = None
    signal: int | None = None
    lost: bool = False
    before: Instance | None = None
    asked_by: Callable[[Instance], None] | None = None
    waiting: list[Callable[[str], None]] = field(default_factory=list)
    """Who asked for this start: told "" or why it failed."""
    stops: list[Callable[[], None]] = field(default_factory=list)


class Witness(Protocol):
    """Who is told what really happens on a machine."""

    def launched(self, machine: str, instance: Instance) -> None: ...

    def ended(self, machine: str, instance: Instance) -> None: ...


class Supervisor:
    """`used`: of all that has not ended. `on_exit` of the agent that is connected, if one is."""

    def __init__(
        self,
        machine: str,
        clock: Clock,
        rng: random.Random,
        habits: Habits,
        witness: Witness,
        wall_ms: Callable[[], int],
    ) -> None:
        self.table: dict[str, Instance] = {}
        self.used = ZERO
        self.on_exit: Callable[[Instance], None] | None = None
        self._machine = machine
        self._clock = clock
        self._rng = rng
        self._habits = habits
        self._witness = witness
        self._wall_ms = wall_ms
        self._pids = 1000

    def live(self) -> list[Instance]:
        return [one for one in self.table.values() if one.state != "ended"]

    # --- requests ----------------------------------------------------------------------------------------------------

    def start(self, effect: StartInstance, answer: Callable[[str], None]) -> None:
        """`answer("")`: the attempt, or a later one, was started, see `table`; else why not. Never from inside."""
        known = self.table.get(effect.instance)
        if known is not None and known.attempt >= effect.attempt:
            if known.state == "starting":
                known.waiting.append(answer)
            else:
                self._clock.after(0.001, lambda: answer(""))
                if known.state == "ended":
                    self._clock.after(0.001, lambda: self._report(known))
        elif known is not None and known.state != "ended":
            found = f"attempt {known.attempt} has not ended (pid {known.pid}): stop it first"
            self._clock.after(0.001, lambda: answer(found))
        else:
            one = Instance(effect.instance, effect.attempt, effect.resources, effect.digest, before=known)
            one.asked_by = self.on_exit
            one.waiting.append(answer)
            self.table[one.name] = one
            self.used = self.used + one.resources
            self._witness.launched(self._machine, one)
            self._clock.after(self._rng.expovariate(1 / self._habits.start_s), lambda: self._executed(one))

    def stop(self, name: str, grace_s: float, answer: Callable[[], None]) -> None:
        one = self.table.get(name)
        if one is None or one.state == "ended":
            self._clock.after(0.001, answer)
            return
        one.stops.append(answer)
        if len(one.stops) == 1:
            self._terminate(one, grace_s)

    def remove(self, name: str) -> None:
        one = self.table.get(name)
        if one is not None and one.state == "ended":
            del self.table[name]

    # --- what happens ------------------------------------------------------------------------------------------------

    def _executed(self, one: Instance) -> None:
        if one.state != "starting":
            return
        waiting, one.waiting = one.waiting, []
        if self._rng.random() < self._habits.fails:
            self._free(one)
            if one.before is not None:
                self.table[one.name] = one.before
            else:
                del self.table[one.name]
            if one.asked_by != self.on_exit:  # this agent found it in the list, as running
                one.code = 127
                self._report(one)
            for answer in waiting:
                answer("cannot fork the process: Resource temporarily unavailable")
            for stopped in one.stops:
                stopped()
            return
        self._pids += 1
        one.state, one.pid, one.started_ms, one.before = "running", self._pids, self._wall_ms(), None
        for answer in waiting:
            answer("")
        if self._habits.exits_after_s:
            self._clock.after(self._rng.expovariate(1 / self._habits.exits_after_s), lambda: self._exits(one))

    def _exits(self, one: Instance) -> None:
        if one.state == "running" and self._habits.exits_after_s:
            self._end(one, code=0 if self._rng.random() < 0.3 else 1)

    def crash(self, name: str) -> None:
        """The instance's process dies."""
        one = self.table.get(name)
        if one is not None and one.state == "running":
            self._end(one, signal=KILLED)

    def _terminate(self, one: Instance, grace_s: float) -> None:
        stubborn = self._rng.random() < self._habits.stubborn
        wait_s = grace_s if stubborn else min(grace_s, self._rng.expovariate(1 / self._habits.end_s))
        self._clock.after(wait_s, lambda: self._killed(one, KILLED if stubborn else TERMINATED))

    def _killed(self, one: Instance, number: int) -> None:
        if one.state == "starting":  # the signal waits for the exec
            self._clock.after(0.01, lambda: self._killed(one, number))
        elif one.state == "running":
            self._end(one, signal=number)

    def _end(self, one: Instance, code: int | None = None, signal: int | None = None, lost: bool = False) -> None:
        self._free(one)
        one.state, one.code, one.signal, one.lost = "ended", code, signal, lost
        self._report(one)
        stops, one.stops = one.stops, []
        for stopped in stops:
            stopped()

    def _free(self, one: Instance) -> None:
        one.state = "ended"
        self.used = self.used.minus(one.resources)
        self._witness.ended(self._machine, one)

    def _report(self, one: Instance) -> None:
        if self.on_exit is not None:
            self.on_exit(one)

    def lose_power(self) -> None:
        """Everything ends with the machine; the records on its disk tell."""
        self.on_exit = None
        for one in self.live():
            starting = one.state == "starting"
            one.stops.clear()
            self._end(one, lost=True)
            if starting and one.before is None:
                del self.table[one.name]
            elif starting and one.before is not None:
                self.table[one.name] = one.before


@dataclass(slots=True)
class _Chain:
    """Of one instance: what is under way, what waits, and whether the last of it is a stop."""

    waiting: deque[StartInstance | StopInstance] = field(default_factory=deque)
    stopping: bool = False
    starting: list[Instance] | None = None
    """Exits that came while a start is under way."""


class Runner:
    """`emit` takes the news; `prepared(digest)` says why that image can't be started from, or ""."""

    def __init__(
        self,
        supervisor: Supervisor,
        clock: Clock,
        emit: Callable[[Input], None],
        prepared: Callable[[str], str],
    ) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._emit = emit
        self._prepared = prepared
        self._chains: dict[str, _Chain] = {}
        self._closed = False

    def adopt(self) -> Sequence[Input]:
        """Connect; what is there, as inputs, `Adopted` last."""
        news: list[Input] = []
        running, exited = [], []
        for name, one in self._supervisor.table.items():
            if one.state == "ended":
                exited.append(name)
                news.append(_exit(one))
            else:
                running.append(name)
                news.append(InstanceStarted(name, one.attempt, one.pid, one.started_ms, f"/{name}", adopted=True))
        self._supervisor.on_exit = self._on_exit
        return [*news, Adopted(tuple(running), tuple(exited))]

    def start(self, effect: StartInstance) -> None:
        chain = self._chains.get(effect.instance)
        if chain is None:
            chain = self._chains[effect.instance] = _Chain()
            self._begin(chain, effect)
        else:
            chain.waiting.append(effect)
        chain.stopping = False

    def stop(self, effect: StopInstance) -> None:
        chain = self._chains.get(effect.instance)
        if chain is None:
            chain = self._chains[effect.instance] = _Chain(stopping=True)
            self._begin(chain, effect)
        elif not chain.stopping:
            chain.stopping = True
            chain.waiting.append(effect)

    def close(self) -> None:
        """The agent is gone. Instances run on."""
        self._closed = True
        if self._supervisor.on_exit == self._on_exit:
            self._supervisor.on_exit = None

    def _begin(self, chain: _Chain, effect: StartInstance | StopInstance) -> None:
        if isinstance(effect, StopInstance):
            self._supervisor.stop(effect.instance, effect.grace_s, lambda: self._stopped(chain, effect.instance))
            return
        trouble = self._prepared(effect.digest)
        if trouble:
            self._clock.after(0.0, lambda: self._started(chain, effect, trouble))
        else:
            chain.starting = []
            self._supervisor.start(effect, lambda why: self._started(chain, effect, why))

    def _started(self, chain: _Chain, effect: StartInstance, why: str) -> None:
        if self._closed:
            return
        exits, chain.starting = chain.starting or [], None
        if why:
            self._news(InstanceFailed(effect.instance, effect.attempt, "node", why))
        else:
            one = self._supervisor.table[effect.instance]
            self._news(InstanceStarted(one.name, one.attempt, one.pid, one.started_ms, f"/{one.name}"))
        for exited in exits:
            self._news(_exit(exited))
        self._next(chain, effect.instance)

    def _stopped(self, chain: _Chain, name: str) -> None:
        if self._closed:
            return
        self._supervisor.remove(name)
        if not chain.waiting:
            chain.stopping = False
            self._news(InstanceGone(name))
        self._next(chain, name)

    def _next(self, chain: _Chain, name: str) -> None:
        if chain.waiting:
            self._begin(chain, chain.waiting.popleft())
        else:
            del self._chains[name]

    def _on_exit(self, one: Instance) -> None:
        chain = self._chains.get(one.name)
        if chain is not None and chain.starting is not None:
            chain.starting.append(one)
        else:
            self._news(_exit(one))

    def _news(self, news: Input) -> None:
        if not self._closed:
            self._emit(news)


def _exit(one: Instance) -> InstanceExited:
    return InstanceExited(one.name, one.attempt, one.code, one.signal, one.lost, "")
