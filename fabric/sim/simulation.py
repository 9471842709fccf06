"""One seed from its beginning to its end: faults, then none, then everything must settle within a bound."""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from fabric.sim.checkers.base import Violation
from fabric.sim.checkers.settled import Settled
from fabric.sim.world import BEGIN_S, Options, World

SETTLE_S = 90.0
"""Of virtual time, from the end of the faults."""
LOOK_EVERY_S = 0.5
STAYS_S = 3.0
"""What has settled must still be so after this long."""
SWEEP_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Failure:
    """`promise` "bug": a role, or the simulator, raised an exception."""

    seed: int
    promise: str
    found: str
    at_s: float
    nodes: int
    without: tuple[str, ...]
    scenario: str = ""

    @property
    def command(self) -> str:
        what = f"--scenario {self.scenario}" if self.scenario else f"--seed {self.seed} --nodes {self.nodes}"
        without = f" --without {','.join(self.without)}" if self.without else ""
        return f"python -m fabric.sim {what}{without} --transcript"


@dataclass(frozen=True, slots=True)
class Result:
    """Of one seed. `events` of the clock; `messages` delivered; `took_s` of a core's time."""

    seed: int
    failure: Failure | None
    level: str
    events: int
    messages: int
    virtual_s: float
    settle_s: float
    took_s: float
    requests: int
    faults: Counter[str] = field(default_factory=Counter)
    story: tuple[str, ...] = ()
    scenario: str = ""


def simulate(seed: int, options: Options | None = None) -> Result:
    """Never raises for what it finds. Python's garbage collector rests meanwhile: a world is one knot of objects that
    live until its end, so looking for garbage in it costs much and finds little; afterwards it goes at once."""
    options = options or Options()
    collects = gc.isenabled()
    gc.disable()
    try:
        return _simulate(seed, options)
    finally:
        gc.collect(0)
        if collects:
            gc.enable()


def _simulate(seed: int, options: Options) -> Result:
    began = time.process_time()
    world = World(seed, options)
    return watch(world, partial(_run, world), began)


def watch(world: World, course: Callable[[], float], began: float) -> Result:
    """`course` lets things happen there, and says how long it took to settle. `began`: by `time.process_time`."""
    failure, settle_s = None, 0.0
    try:
        settle_s = course()
    except Violation as violation:
        failure = _failure(world, violation.promise, violation.found)
    except Exception as error:
        failure = _failure(world, "bug", f"{type(error).__name__}: {error} ({_where(error)})")
    if failure is not None:
        world.tell("failed", f"{failure.promise}: {failure.found}")
    return Result(
        seed=world.seed,
        failure=failure,
        level=world.conditions.level,
        events=world.clock.events,
        messages=world.network.delivered,
        virtual_s=world.clock.now,
        settle_s=settle_s,
        took_s=time.process_time() - began,
        requests=world.users.answered,
        faults=world.faults.counts,
        story=tuple(world.story.lines) if world.story is not None else (),
        scenario=world.options.scenario,
    )


def _run(world: World) -> float:
    """How long it took to settle."""
    clock = world.clock
    world.begin()
    until = BEGIN_S + world.conditions.faults_s
    while clock.now < until:
        clock.run(min(until, clock.now + SWEEP_EVERY_S))
        world.sweep()
    world.tell("faults", "are over")
    return settle(world)


def settle(world: World) -> float:
    """End all faults and wait, within a bound, until everything is as it should be and stays so: how long it took."""
    clock, until = world.clock, world.clock.now
    world.faults.stop()
    settled = next(one for one in world.checkers if isinstance(one, Settled))
    while True:
        clock.run(clock.now + LOOK_EVERY_S)
        trouble = next(settled.unsettled(), None)
        if trouble is None:
            settle_s = clock.now - until
            clock.run(clock.now + STAYS_S)
            trouble = next(settled.unsettled(), None)
            if trouble is None:
                world.sweep()
                world.tell("world", f"settled after {settle_s:.1f} s")
                return settle_s
        if clock.now >= until + SETTLE_S:
            promise, found = trouble
            raise Violation(promise, f"{SETTLE_S:g} s after the last fault: {found}")


def _where(error: Exception) -> str:
    """Where it was raised, and how it came there, briefly."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(f"{one.filename.rpartition('/')[2]}:{one.lineno} {one.name}" for one in reversed(frames))


def _failure(world: World, promise: str, found: str) -> Failure:
    without = tuple(sorted(world.options.without))
    options = world.options
    return Failure(world.seed, promise, found, world.clock.now, options.nodes, without, options.scenario)
