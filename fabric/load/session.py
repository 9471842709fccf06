"""One run of a load test, from begin to end.

    prepare ─> load begins ─> warm-up ─┬─ the window: everything is measured between two looks ─┐
                                       └──────────────── for `for_s`, or until Ctrl-C ──────────┤
    result <─ audit <─ nothing left? <─ delete what stands <─ open requests end (bounded) <─────┘

Theory of operation. One event loop has the load and, ten times a second, a look at signals and at what to tell. Looks
at /proc, ZooKeeper and the API's metrics happen at the two ends of the window, outside of it. Whatever happens, what
the run made is deleted, as far as the API answers, unless the fabric goes with it anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from fabric.load import measured, meters, preparing
from fabric.load.asking import Asker, View
from fabric.load.booking import Books
from fabric.load.generator import Clients, Generator, Pace, Rate
from fabric.load.history import Asked, Clock, End, History, Kind, requests
from fabric.load.http import Connections
from fabric.load.machine import commit, machine
from fabric.load.measured import Window
from fabric.load.place import Place
from fabric.load.plan import Plan, Shape
from fabric.load.preparing import SHOWN, Known
from fabric.load.results import Check, Counted, Group, Result
from fabric.load.stock import Cycles, Mix
from fabric.load.traces import Sampler, traced
from fabric.local.interrupts import Interrupted, Interrupts

T = TypeVar("T")
TURN_S = 0.1
TELL_EVERY_S = 1.0
DRAIN_S = 60.0
INTERRUPTED_DRAIN_S = 3.0
CLEAR_S = 60.0
Tell = Callable[[str, int, int], None]
"""What is going on, and how much of how much is done."""


@dataclass(frozen=True, slots=True)
class _Look:
    """At one end of the window."""

    cpu_s: dict[str, float]
    machine: meters.Machine
    ensemble: meters.Ensemble | None
    api: meters.ApiCounters | None
    exchanges: int


@dataclass
class Session:
    """`command`: the command line, for the result."""

    plan: Plan
    shape: Shape | None
    place: Place
    command: str
    interrupts: Interrupts
    tell: Tell
    _clock: Clock = field(default_factory=Clock)
    _history: History = field(default_factory=History)
    _books: Books = field(default_factory=Books)
    _done: int = 0
    _failed: int = 0
    _cleared: bool = False
    """It was tried, in CLEAR_S: a fabric that is gone is not waited for twice."""

    def run(self) -> Result:
        """Raises CannotRun; Interrupted before anything was measured."""
        return asyncio.run(self._run())

    async def _run(self) -> Result:
        run = secrets.token_hex(6)
        image = self.plan.image or f"load-{run}"
        async with Connections(self.place.url) as api:
            try:
                known = await self._unless_interrupted(self._prepared(api, image, run))
                sampler = self._sampler(api)
                generator = self._generator(api, image, run, sampler)
                running = asyncio.create_task(generator.run())
                try:
                    return await self._measured(api, known, generator, running, sampler)
                finally:
                    generator.stop()
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                    if not self.place.own and not self._cleared:
                        await self._clear(generator)
            finally:
                if not self.plan.image and not self.place.own:
                    await preparing.remove(api, image)

    async def _prepared(self, api: Connections, image: str, run: str) -> Known:
        self.tell("looking at the fabric, pushing an image", 0, 0)
        known = await preparing.prepared(api, self.plan, image)
        if not self.plan.cold:
            nodes = len(known.nodes)
            self.tell(f"giving each of {nodes} nodes the image", 0, 0)
            await preparing.primed(
                api, known, image, run, lambda done: self.tell(f"{done} of {nodes} nodes have the image", 0, 0)
            )
        return known

    async def _unless_interrupted(self, work: Coroutine[None, None, T]) -> T:
        """Raises Interrupted, when the work has left."""
        task = asyncio.create_task(work)
        while not task.done():
            await asyncio.wait({task}, timeout=TURN_S)
            if self.interrupts.number:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.interrupts.check()
        return task.result()

    async def _measured(
        self, api: Connections, known: Known, generator: Generator, running: asyncio.Task[None], sampler: Sampler
    ) -> Result:
        plan = self.plan
        began_s = self._clock.now()
        await self._until(began_s + plan.warm_s, generator, "warming up")
        self.interrupts.check()
        groups = meters.roles(self.place.state, os.getpid())
        before = await self._look(api, groups, begins=True)
        from_s = self._clock.now()
        await self._until(from_s + plan.for_s, generator, "measuring")
        to_s = self._clock.now()
        after = await self._look(api, groups, begins=False)
        interrupted = bool(self.interrupts.number)
        generator.stop()
        await self._drain(generator, running, INTERRUPTED_DRAIN_S if interrupted else DRAIN_S)
        window = Window(from_s, to_s, self._clock.now())
        cut_off = bool(self.interrupts.number)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        asked = requests(self._history.attempts, self._history.ends)
        checks = await self._checks(api, known, generator, asked, cut_off)
        return self._result(known, generator, sampler, asked, window, groups, before, after, checks, interrupted)

    # --- making the load ---------------------------------------------------------------------------------------------

    def _sampler(self, api: Connections) -> Sampler:
        from_s = self._clock.now() + self.plan.warm_s
        return Sampler.over(api, self._clock, self.plan.traces, from_s, from_s + self.plan.for_s)

    def _generator(self, api: Connections, image: str, run: str, sampler: Sampler) -> Generator:
        plan = self.plan
        rng = random.Random(plan.seed)
        pace: Pace = Clients(plan.clients) if plan.clients else Rate(plan.rate_s, plan.most_open)
        body: dict[str, object] = {"image": image, "flavor": plan.flavor, "count": plan.count}
        body |= {"policy": plan.policy} if plan.policy else {}
        body |= {"max_per_node": plan.max_per_node} if plan.max_per_node else {}

        def draw(kind: Kind) -> tuple[int, dict[str, object]]:
            if kind == "create":
                return plan.count, body
            count = rng.randint(1, 2 * plan.count)
            return count, {"count": count}

        async def ended(end: End, view: View) -> None:
            self._done += 1
            if end.state == "running":
                wanted = generator.stock.counts[end.deployment]
                self._books.runs(end.deployment, {share.node: share.count for share in view.plan}, wanted)
                if end.kind == "create":
                    await sampler.sample(end.deployment)
            elif end.kind != "delete":
                self._failed += 1

        asker = Asker(api, self._history, self._clock, f"load-{run}")
        way = Cycles() if plan.mix is None else Mix(*plan.mix, plan.keep)
        generator = Generator(asker, pace, way, draw, rng, self._clock, ended, self._books.leaves)
        return generator

    async def _until(self, at_s: float, generator: Generator, what: str) -> None:
        """Or until a signal comes."""
        began_s, told_s, told_done = self._clock.now(), self._clock.now(), self._done
        while (now := self._clock.now()) < at_s and not self.interrupts.number:
            if now - told_s >= TELL_EVERY_S:
                rate = (self._done - told_done) / (now - told_s)
                failed = f", {self._failed} failed" if self._failed else ""
                text = f"{what}: {rate:.1f} requests/s, {generator.counters.open} open{failed}"
                self.tell(text, round(now - began_s), round(at_s - began_s))
                told_s, told_done = now, self._done
            await asyncio.sleep(min(TURN_S, max(0.0, at_s - now)))

    async def _drain(self, generator: Generator, running: asyncio.Task[None], most_s: float) -> None:
        deadline_s = self._clock.now() + most_s
        while not running.done() and self._clock.now() < deadline_s:
            if self.interrupts.number:
                deadline_s = min(deadline_s, self._clock.now() + INTERRUPTED_DRAIN_S)
            self.tell(f"waiting for {generator.counters.open} that are open", 0, 0)
            await asyncio.wait({running}, timeout=TELL_EVERY_S)

    async def _clear(self, generator: Generator) -> None:
        self._cleared = True
        try:
            async with asyncio.timeout(CLEAR_S):
                await generator.clear()
        except TimeoutError:
            self.tell(f"{len(generator.stock.standing)} deployments could not be deleted in {CLEAR_S:g} s", 0, 0)

    # --- what came of it ---------------------------------------------------------------------------------------------

    async def _look(self, api: Connections, groups: dict[str, tuple[int, ...]], begins: bool) -> _Look:
        """What takes long (a busy API) is asked on the far side of the window, so that CPU is of the window alone."""
        metrics = await preparing.metrics(api) if begins else ""
        state = self.place.state
        ensemble = meters.ensemble(meters.servers_of(state)) if state else None
        cpu_s = {role: meters.cpu_s(pids) for role, pids in groups.items()}
        used, exchanges = meters.machine_now(), api.exchanges
        metrics = metrics if begins else await preparing.metrics(api)
        return _Look(cpu_s, used, ensemble, meters.api_counters(metrics), exchanges)

    async def _checks(
        self, api: Connections, known: Known, generator: Generator, asked: tuple[Asked, ...], cut_off: bool
    ) -> tuple[Check, ...]:
        """`cut_off`: a signal came before what was open had ended."""
        lost = [one for one in asked if (told := measured.failure(one)) and told[0] in ("lost", "not at rest")]
        if cut_off:  # what was cut off on purpose is not lost
            lost = [one for one in lost if one.last.again]
        over = self._books.overcommitted(known.need, known.nodes)
        wrong = self._books.miscounted
        names = ", ".join(one.deployment or f"request {one.number}" for one in lost[:SHOWN])
        checks = [
            Check("no request is lost", not lost, f"{len(lost)} lost: {names}" if lost else "0 lost"),
            Check("no node runs more than it has", not over, "; ".join(over[:SHOWN]) or "0 over-committed"),
            Check(
                "each deployment runs exactly its count",
                not wrong,
                f"{len(wrong)} do not: {', '.join(wrong[:SHOWN])}" if wrong else "all do",
            ),
        ]
        if cut_off and self.place.own:
            return tuple(checks)
        self.tell("deleting what stands", 0, 0)
        await self._clear(generator)
        self.tell("looking for what is left", 0, 0)
        checks.append(await preparing.nothing_left(api, generator.stock.counts))
        if self.plan.audit and not self.interrupts.number:
            self.tell("auditing", 0, 0)
            with contextlib.suppress(Interrupted):  # what was measured is told all the same
                checks.append(await self._unless_interrupted(preparing.audited(api)))
        return tuple(checks)

    def _result(
        self,
        known: Known,
        generator: Generator,
        sampler: Sampler,
        asked: tuple[Asked, ...],
        window: Window,
        groups: dict[str, tuple[int, ...]],
        before: _Look,
        after: _Look,
        checks: tuple[Check, ...],
        interrupted: bool,
    ) -> Result:
        ended = measured.ended(asked, window)
        total = ended.total()
        due = sum(window.holds(one.due_s) for one in asked)
        unsent = sum(window.holds(due_s) for due_s in generator.unsent_s)
        self.tell("reading memory", 0, 0)
        used = {role: after.cpu_s[role] - before.cpu_s[role] for role in groups}
        busy = after.machine.busy_s - before.machine.busy_s
        return Result(
            at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            machine=machine(),
            commit=commit(),
            fabric=known.version,
            command=self.command,
            against=self.place.told,
            agents=known.agents,
            shape=self.shape,
            plan=self.plan,
            ran_s=round(window.length_s, 3),
            interrupted=interrupted,
            requests=total,
            due=due + unsent,
            unsent=unsent,
            skipped=generator.counters.skipped,
            per_s={name: round(count / window.length_s, 3) for name, count in {**ended, "all": total}.items()},
            latencies=measured.latencies(asked, generator.unsent_s, window),
            late_ms=measured.lateness(asked, window),
            traced=traced(sampler.runs),
            groups=tuple(_group(role, groups[role], used[role], total) for role in groups),
            counted=_counted(before, after, total),
            busy=round(after.machine.share_since(before.machine), 4),
            generator_share=round(used[meters.GENERATOR] / max(busy, 1e-9), 4),
            exchanges=after.exchanges - before.exchanges,
            failures=measured.failures(asked),
            checks=checks,
            seconds=measured.seconds(asked, window),
        )


def _group(role: str, pids: tuple[int, ...], used_s: float, requests: int) -> Group:
    found = meters.memory(pids)
    cpu_ms = 1000 * used_s / requests if requests else 0.0
    return Group(role, len(pids), round(used_s, 3), round(cpu_ms, 3), round(found.pss, 1), round(found.rss, 1))


def _counted(before: _Look, after: _Look, requests: int) -> Counted:
    if not requests:
        return Counted()

    def each(first: float, last: float) -> float:
        return round((last - first) / requests, 2)

    counted = Counted()
    if before.ensemble and after.ensemble:
        was, now = before.ensemble, after.ensemble
        counted = Counted(each(was.zxid, now.zxid), each(was.packets, now.packets))
    if before.api and after.api:
        earlier, later = before.api, after.api
        kinds = {kind: each(earlier.operations.get(kind, 0.0), count) for kind, count in later.operations.items()}
        told = {kind: count for kind, count in kinds.items() if count}
        messages = each(earlier.messages, later.messages)
        counted = msgspec.structs.replace(counted, api_messages=messages, api_operations=told)
    return counted
