"""When requests are made: at a rate whatever became of those before, or by a number of clients one after the other.

Theory of operation. *Open loop* (`Rate`): every 1/rate seconds a request is due, and is sent then, as long as fewer
than `most` are open. One that finds `most` open waits, and is late (`late="wait"`): what its user waits for counts from
when it was due, or else a fabric that stands still would look quick, as few requests are made meanwhile; or it is left
out and counted (`late="skip"`). Due times are arithmetic, so those that wait need no queue; what was due and never sent
is in `unsent_s`. *Closed loop* (`Clients`): each client sends its next request when the last has ended, so the fabric
sets the pace, no request is ever late, and times say how long a request takes at that concurrency, not what users with
a will of their own would wait.

What is asked for is told by a `Way` (stock.py), with what is in it by `draw`. All of it is one task a request in one
event loop; whoever has a thread for it calls `stop`, `idle` and what Stock tells from another one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from fabric.load.asking import GOOD, RETRY_S, Asked, Asker, View
from fabric.load.history import Clock, End, Kind
from fabric.load.stock import Cycles, Mix, Standing, Stock, Way

CLEAR_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Rate:
    per_s: float
    most: int
    late: Literal["wait", "skip"] = "wait"


@dataclass(frozen=True, slots=True)
class Clients:
    number: int


Pace = Rate | Clients
Draw = Callable[[Kind], tuple[int, dict[str, object]]]
"""Of a create or scale: the count, and the body to send."""
Seen = Callable[[End, View], Awaitable[None]]


async def _nothing(end: End, view: View) -> None:
    pass


@dataclass
class Counters:
    """`begun` requests; `skipped`: not begun, as too many were open, or nothing could be asked; `open` now: requests,
    or whole cycles."""

    begun: int = 0
    skipped: int = 0
    open: int = 0


@dataclass
class Generator:
    """`ended`: called with each end, while its deployment has no other request. `changing`: when a delete or a scale of
    it is about to be sent."""

    asker: Asker
    pace: Pace
    way: Way
    draw: Draw
    rng: random.Random
    clock: Clock
    ended: Seen = _nothing
    changing: Callable[[str], None] = lambda deployment: None
    counters: Counters = field(default_factory=Counters)
    stock: Stock = field(default_factory=Stock)
    unsent_s: list[float] = field(default_factory=list)
    stopping: bool = False
    _unanswered: dict[int, Asked] = field(default_factory=dict)
    """Creates, by number."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Begin no more."""
        self.stopping = True

    @property
    def idle(self) -> bool:
        return self.counters.open == 0

    async def run(self) -> None:
        """Until it was stopped and what was begun has ended; cancelled, it cuts off what is open. Then that stays in
        the history as what it is: a request without an answer or an end."""
        try:
            if isinstance(self.pace, Rate):
                await self._at_rate(self.pace)
            else:
                for _ in range(self.pace.number):
                    self._task(self._client())
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def clear(self) -> None:
        """Delete all that stands, and what creates without an answer have made: asked once more, with the same key,
        they say what. After `run`, which may have cut requests off in the middle."""
        slots = asyncio.Semaphore(CLEAR_AT_ONCE)

        async def find(asked: Asked) -> None:
            async with slots:
                _, view = await self.asker.ask(asked)
            del self._unanswered[asked.number]
            if view is not None:
                await delete(self.stock.accepted(None, view.id, asked.count))

        async def delete(one: Standing) -> None:
            async with slots:
                await self._one("delete", one, None)

        stands, perhaps = tuple(self.stock.standing.values()), tuple(self._unanswered.values())
        await asyncio.gather(*map(delete, stands), *map(find, perhaps))

    # --- the paces ---------------------------------------------------------------------------------------------------

    async def _at_rate(self, pace: Rate) -> None:
        began, number = self.clock.now(), 0
        while pace.per_s and not self.stopping:
            due_s = began + number / pace.per_s
            await asyncio.sleep(max(0.0, due_s - self.clock.now()))
            while pace.late == "wait" and self.counters.open >= pace.most and not self.stopping:
                await self._changed()
            if self.stopping:
                break
            number += 1
            if self.counters.open >= pace.most:
                self.counters.skipped += 1
            else:
                self._begin(due_s)
        if pace.late == "wait" and pace.per_s:
            now = self.clock.now()
            while (due_s := began + number / pace.per_s) < now:
                self.unsent_s.append(due_s)
                number += 1

    async def _client(self) -> None:
        while not self.stopping:
            if isinstance(self.way, Cycles):
                good = await self._cycle(None)
            elif (next_one := self.stock.choose(self.way, self.rng)) is None:
                self.counters.skipped += 1
                await self._changed()
                continue
            else:
                good = await self._one(*next_one, None) is not None
            if not good:
                await asyncio.sleep(RETRY_S)  # as a person would; a closed loop of refusals would only make heat

    async def _changed(self) -> None:
        """Until a request has ended, or a moment has passed, as `stop` comes from anywhere."""
        self._change.clear()
        try:
            async with asyncio.timeout(RETRY_S):
                await self._change.wait()
        except TimeoutError:
            pass

    def _begin(self, due_s: float) -> None:
        if isinstance(self.way, Mix):
            next_one = self.stock.choose(self.way, self.rng)
            if next_one is None:
                self.counters.skipped += 1  # all of them are being changed
                return
            self._task(self._one(*next_one, due_s))
        else:
            self._task(self._cycle(due_s))

    def _task(self, work: Awaitable[object]) -> None:
        async def done() -> None:
            await work

        task = asyncio.get_running_loop().create_task(done())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            raise error  # a fault of ours: the loop prints it

    # --- the requests ------------------------------------------------------------------------------------------------

    async def _cycle(self, due_s: float | None) -> bool:
        """Whether it ran meanwhile."""
        end = await self._one("create", None, due_s)
        if end is None:
            return False
        if one := self.stock.standing.get(end.deployment):
            await self._one("delete", one, None)
        return end.state == GOOD["create"]

    def _one(self, kind: Kind, one: Standing | None, due_s: float | None) -> Awaitable[End | None]:
        """One request, to its end; None: it was not accepted. What it takes is taken at once."""
        self.stock.begun(one)
        number = self.counters.begun = self.counters.begun + 1
        self.counters.open += 1
        count, body = self.draw(kind) if kind != "delete" else (0, None)
        return self._followed(Asked(number, kind, one.id if one else "", count, body, due_s), one)

    async def _followed(self, asked: Asked, one: Standing | None) -> End | None:
        try:
            if asked.deployment:
                self.changing(asked.deployment)
            else:
                self._unanswered[asked.number] = asked
            attempt, view = await self.asker.ask(asked)
            self._unanswered.pop(asked.number, None)
            if view is None:
                self.stock.refused(one, there=attempt.status != 404)
                return None
            one = self.stock.accepted(one, view.id, asked.count)
            end, seen = await self.asker.follow(asked, view)
            await self.ended(end, seen)
            failed = end.state == "failed"
            stands = end.state == "running" or (failed and self._cleans)
            self.stock.ended(one, stands, in_vain=failed and asked.kind == "create")
            return end
        finally:
            self.counters.open -= 1
            self._change.set()

    @property
    def _cleans(self) -> bool:
        """What failed is deleted as well, so that nothing is left of it."""
        return isinstance(self.way, Cycles)
