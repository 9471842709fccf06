"""Measures how the flow of a request grows with the fabric, and writes the figures into bench/RESULTS.md.

    python -m bench.scale [--part growth exponents hundred huge] [--far] [--no-write]

The fabric is simulated: the roles of production, under virtual time, with messages through the real codec, in calm
weather, with all checkers on. So ten thousand nodes fit into one process, and what is counted is what the roles do:

- growth: fabrics of 40 to 10,000 nodes, each with requests of 50 instances, one after the other;
- exponents: the same with the short and with the full discussion, and how each grows: the exponent b of a * nodes^b;
  with --far up to 100,000 nodes, which takes ten minutes more;
- hundred: 10,000 nodes in 250 racks, 100 requests of 50 to 500 instances, in the course of a minute of virtual time;
- huge: 100,000 nodes, one request of 500 instances.

Each is measured in a process of its own, on one core; its CPU time counts, as other work may be on the machine. A
request is from when a user asks for it until its record says that it runs. Heartbeats and hellos are left out of its
messages; reads and writes of ZooKeeper are all that were asked for meanwhile, so the leaders' regular looks are among
them. "Delivered" are messages from one agent (or API process) to another, so those of a leader to itself don't count.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from bench.fabrics import Discussion
from bench.results import commit, write
from bench.scale_report import (
    GROWTH,
    HUGE,
    HUNDRED,
    Counts,
    Measured,
    Shape,
    exponents_section,
    growth_section,
    huge_section,
    hundred_section,
)
from fabric.messages import Heartbeat, LeaderHello
from fabric.records import Deployment, Spec
from fabric.roles.settings import Settings
from fabric.sim.checkers.settled import Settled
from fabric.sim.conditions import SMALL, Conditions
from fabric.sim.driver import Habits
from fabric.sim.users import Users
from fabric.sim.world import PROMISES, Options, World
from zk.znodes import Change

SETTINGS = Settings()
"""Those of production."""

SEED = 1
STEP_S = 0.5
SWEEP_EVERY_S = 5.0
SETTLE_S = 120.0
"""Of virtual time: to register, and after the last request."""
GAP_S = 1.0
"""Between two requests of which one waits for the other."""
IDLE_S = 30.0


class Orders(Users):
    """Users who ask for what they are told to, and nothing else. `ended`: deployment -> when its record was at rest."""

    def __init__(self, world: World) -> None:
        self._drawn = random.Random(f"{SEED}/orders")
        super().__init__(world, self._drawn)
        self.asked: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        world.ensemble.observe(self._look)

    def begin(self) -> None:
        """They wait."""

    def want(self, when: float, count: int) -> str:
        number = len(self.asked)
        image = self._drawn.choice(self.world.pushed)
        record = Deployment(
            id=f"d-{number:012d}",
            name=image.name,
            spec=Spec(image.name, image.digest, "Small", SMALL, {}, "always", 0),
            count=count,
            min_count=count,
            policy="spread",
            created_ms=0,
            updated_ms=0,
            key=f"{self._drawn.getrandbits(64):016x}",
        )
        self.asked[record.id] = when
        self.order(when, record)
        return record.id

    def _look(self, zxid: int, session: int, changes: list[Change]) -> None:
        for kind, path in changes:
            seen = self.world.view.deployments.get(path.rpartition("/")[2]) if kind == "set" else None
            if seen is not None and seen.record.final:
                self.ended.setdefault(seen.record.id, self.world.clock.now)


class Bench:
    """One fabric, from its boot on."""

    def __init__(self, shape: Shape, discussion: Discussion = "known") -> None:
        self.shape = shape
        settings = replace(SETTINGS, discussion=discussion)
        self.world = World(SEED, Options(nodes=shape.nodes, settings=settings), _calm(shape))
        self.orders = self.world.users = Orders(self.world)
        self._settled = next(one for one in self.world.checkers if isinstance(one, Settled))
        self._sweep_at = 0.0
        assert self.world.promises == frozenset(PROMISES)
        self.world.begin()
        self.settle()
        self.boot = self.counts()

    def run(self, until: float) -> None:
        while self.world.clock.now < until:
            self.world.clock.run(min(until, self.world.clock.now + STEP_S))
            if self.world.clock.now >= self._sweep_at:
                self._sweep_at = self.world.clock.now + SWEEP_EVERY_S
                self.world.sweep()
                clock, network = self.world.clock, self.world.network
                cpu_s = time.process_time()
                _say(f"  {clock.now:6.1f} virtual s, {cpu_s:5.0f} s of CPU, {network.delivered:,} messages")

    def settle(self) -> None:
        """Until nothing is missing. Raises SystemExit when something still is after SETTLE_S."""
        clock = self.world.clock
        until = clock.now + SETTLE_S
        while trouble := next(self._settled.unsettled(), None):
            if clock.now >= until:
                raise SystemExit(f"{self.shape.nodes} nodes, after {clock.now:.0f} virtual s: {trouble}")
            self.run(clock.now + STEP_S)

    def counts(self) -> Counts:
        world = self.world
        sent: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        processes = [one.process for one in world.machines.values() if one.process is not None]
        for process in processes:
            if process.bus is not None and process.tree is not None:
                sent.update(process.bus.counters.sent)
                asked.update(process.tree.operations)
        for submitter in world.submitters:
            sent.update(submitter.bus.counters.sent)
            asked.update(submitter.tree.operations)
        idle = sent[Heartbeat.__name__] + sent[LeaderHello.__name__]
        reads = asked["get"] + asked["exists"] + asked["children"]
        return Counts(
            world.clock.now,
            time.process_time(),
            world.clock.events,
            world.network.delivered,
            sent.total() - idle,
            reads,
            asked.total() - reads,
        )

    def one_by_one(self, counts: Sequence[int]) -> Measured:
        each: list[Counts] = []
        for count in counts:
            self.run(self.world.clock.now + GAP_S)
            before = self.counts()
            deployment = self.orders.want(self.world.clock.now, count)
            while deployment not in self.orders.ended:
                self.world.clock.run(self.world.clock.now + 0.01)
                if self.world.clock.now > before.virtual_s + SETTLE_S:
                    raise SystemExit(f"{deployment} is not at rest after {SETTLE_S:.0f} s")
            each.append(self.counts().since(before))
        self.settle()
        spent = self.counts().since(self.boot)
        idle_from = self.counts()
        self.run(self.world.clock.now + IDLE_S)
        return self.measured(counts, spent, tuple(each), self.counts().since(idle_from))

    def at_once(self, counts: Sequence[int], within_s: float) -> Measured:
        rng = random.Random(f"{SEED}/moments")
        began = self.world.clock.now
        for count in counts:
            self.orders.want(began + rng.uniform(0, within_s), count)
        self.run(began + within_s)
        self.settle()
        return self.measured(counts, self.counts().since(self.boot))

    def measured(
        self, counts: Sequence[int], spent: Counts, each: tuple[Counts, ...] = (), idle: Counts | None = None
    ) -> Measured:
        """Raises SystemExit when a request did not get exactly what it asked for."""
        self.world.sweep()
        for seen in self.world.view.deployments.values():
            record = seen.record
            running = sum((record.id, ordinal) in self.world.view.running for ordinal in range(record.count))
            if record.state != "running" or not record.count == record.placed == running:
                found = f"{record.placed} placed, {running} running: {record.reason}"
                raise SystemExit(f"{record.id}: expected {record.count} running, found it {record.state}, {found}")
        took = tuple(self.orders.ended[one] - asked for one, asked in self.orders.asked.items())
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return Measured(self.shape, self.boot, tuple(counts), took, spent, each, idle, mib)


def _calm(shape: Shape) -> Conditions:
    """No faults; a sync of a journal takes 1 ms, a way to ZooKeeper 2 ms, one to a peer half a millisecond."""
    return Conditions(
        level="calm",
        racks=shape.racks,
        compute=shape.compute,
        storage=shape.storage,
        faults_s=0.0,
        fault_every_s=1.0,
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def grow(shape: Shape, discussion: Discussion = "known") -> Measured:
    gc.disable()  # as in a simulation of the tests: a world lives until its end
    return Bench(shape, discussion).one_by_one([50] * 4)


def hundred() -> Measured:
    gc.disable()
    rng = random.Random(f"{SEED}/counts")
    return Bench(HUNDRED).at_once([rng.randint(50, 500) for _ in range(100)], 60.0)


def huge() -> Measured:
    gc.disable()
    return Bench(HUGE).one_by_one([500])


# --- the report ------------------------------------------------------------------------------------------------------


PARTS = ("growth", "exponents", "hundred", "huge")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description="Measures the growth of a request.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what to measure (all)")
    parser.add_argument("--far", action="store_true", help="exponents up to 100,000 nodes instead of 10,000")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    args = parser.parse_args()
    code = commit()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for part in args.part:
            _say(part)
            if part == "growth":
                section = growth_section(list(pool.map(grow, GROWTH)), code)
            elif part == "exponents":
                shapes = (*GROWTH, HUGE) if args.far else GROWTH
                known, full = (list(pool.map(partial(grow, discussion=each), shapes)) for each in ("known", "full"))
                section = exponents_section(known, full, code)
            elif part == "hundred":
                section = hundred_section(pool.submit(hundred).result(), code)
            else:
                section = huge_section(pool.submit(huge).result(), code)
            print(section, flush=True)
            if not args.no_write:
                write(f"scale {part}", section)


if __name__ == "__main__":
    main()
