"""Staying the top after a rollout: somebody looks after the roots while no command runs.

Theory of operation. What every initiator does for its children the top does for the roots, for as long as it is there:
what ended is started again, and what stood on a boot stub that is lost is placed on another one. So to stay is to keep
the top at work, to keep its lock, and to say what happens.

One that stays makes way: whoever applies, or commands by hand, takes the lock from it (deploy.top_lock), and orders and
questions go through it. When it finds that somebody else is the top it steps aside, waits until nobody is, and goes on.
Any number may wait like this, and one of them goes on: so two on two machines stand in for each other.

To go on is not to apply. The generation of the rollout that is begun then is that of the roots' rows, so that nobody
who runs is brought to what the repository says by now; that is for an apply. It does not go on when there are no roots
any more, or when they come from another repository: `follow` returns why.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from deploy import top_lock
from deploy.at_work import TopError, Work, Workplace, at_work
from deploy.configuration import Children, InitiatorRole
from deploy.directory import Fenced
from deploy.identity import TOP, name_of
from deploy.messages import Charge, Counts, Problem, Rollout
from deploy.records import StubRef, Table, TopRecord
from deploy.waves import ALL
from zk.tree import TreeError

LOOK_S = 1.0
"""Between two looks at who is the top."""
SPREAD_S = 30.0
"""While something is not well, boot stubs that have come since are looked for this often."""
MAX_SAID = 1_000
"""Lines that wait to be said; of more, the oldest are dropped."""


def role_of(roots: tuple[str, ...]) -> InitiatorRole:
    """Of the top. A root whose boot stub is dead is placed on another one: without it there is no tree to resume."""
    return InitiatorRole((Children("names", names=tuple(name_of(root) for root in roots)),), failover="domain")


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is to look after."""

    roots: tuple[str, ...]
    generation: str


class Stayer:
    """`repository`: what was applied from. `stubs`: reads the directory's. `say`: hears what happens, in sentences."""

    def __init__(
        self,
        place: Workplace,
        repository: str,
        stubs: Callable[[], Awaitable[tuple[StubRef, ...]]],
        say: Callable[[str], None],
    ) -> None:
        self._place, self._repository, self._stubs, self._say = place, repository, stubs, say
        self._waiting: deque[str] = deque(maxlen=MAX_SAID)
        self._bad: tuple[int, tuple[str, ...]] = (0, ())
        self._stirred = False
        """Something was said since all were well."""
        self._directory_away = False

    async def keep(self, work: Work) -> None:
        """Returns when somebody else is the top. Raises TopError when the top ended by a bug."""
        record = msgspec.structs.replace(work.record, stays=True, doing=f"stays, after apply {self._repository}")
        record = msgspec.structs.replace(record, doing=record.doing[: top_lock.MAX_DOING_CHARS])
        loop = asyncio.get_running_loop()
        work.host.watched(self._noted, self._counted)
        spread_at = loop.time() + SPREAD_S
        while work.host.over is None:
            if (whom := await self._makes_way(record)) is not None:
                self._said()
                self._say(f"makes way for {whom}")
                return
            if self._bad[0] and loop.time() >= spread_at:
                spread_at = loop.time() + SPREAD_S
                await self._spread(work)
            self._said()
            await asyncio.sleep(LOOK_S)
        self._said()
        if not isinstance(work.host.over, Fenced):
            raise TopError(str(work.host.over))
        self._say("makes way for another top initiator, which has the roots' table now")

    async def follow(self) -> str:
        """Go on whenever nobody is the top; returns why that has an end."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if await top_lock.holder(self._place.client) is not None:
                    continue
                found = self._left(await self._place.directory.tables.load(TOP))
                if isinstance(found, str):
                    return found
                await self._go_on(found)
            except (TreeError, TimeoutError) as error:
                self._away(error)
            except top_lock.Held:
                continue  # somebody was faster

    def _left(self, table: Table | None) -> _Found | str:
        """What there is to look after, or why there is nothing."""
        if table is None or not table.children:
            return "nothing is deployed any more"
        if table.repository != self._repository:
            return f"what is there was applied from {table.repository or 'nowhere'}, and not from {self._repository}"
        generations = Counter(row.generation for row in table.children)
        return _Found(tuple(f"/{row.name}" for row in table.children), generations.most_common(1)[0][0])

    async def _go_on(self, found: _Found) -> None:
        rollout = f"o-{secrets.token_hex(6)}"
        charge = Charge(
            self._repository,
            directory=self._place.hosts,
            domain=await self._stubs(),
            rollout=rollout,
            generation=found.generation,
        )
        async with at_work(
            self._place, role_of(found.roots), charge, f"stays, after apply {self._repository}", stays=True
        ) as work:
            self._say("nobody else is at work: goes on looking after the roots")
            work.host.watched(self._noted, self._counted)
            work.host.begin(Rollout(rollout, 1, ALL, found.generation, retry=False, recheck=False, prune=False))
            await self.keep(work)

    async def _makes_way(self, record: TopRecord) -> str | None:
        """For whom; None while this process is the top."""
        client = self._place.client
        try:
            if await top_lock.hold(client, record):
                self._directory_away = False
                return None
            other = await top_lock.holder(client)
        except TreeError as error:
            self._away(error)
            return None
        if other is None:
            return "nobody, but was not the top for a while"
        return f"process {other.pid} on {other.host}, which does: {other.doing}"

    async def _spread(self, work: Work) -> None:
        try:
            work.host.spread(await self._stubs())
        except TreeError as error:
            self._away(error)

    # --- what is said --------------------------------------------------------------------------------------------

    def _away(self, error: Exception) -> None:
        """Once, as long as it lasts."""
        if not self._directory_away:
            self._directory_away = True
            self._say(f"the directory does not answer: {type(error).__name__}: {error}")

    def _noted(self, level: str, text: str) -> None:
        self._stirred = True
        self._waiting.append(text)

    def _counted(self, counts: Counts, problems: tuple[Problem, ...]) -> None:
        """What is said is who is not well, when that has changed, and at last that all are well again."""
        bad = counts.refused + counts.failed + counts.unreachable
        now = bad, tuple(one.path for one in problems)
        if not bad:
            if (self._stirred or self._bad[0]) and not counts.pending:
                self._stirred, self._bad = False, now
                self._waiting.append(f"all {counts.targeted} are as they were told to be")
            return
        if now == self._bad:
            return
        self._bad, self._stirred = now, True
        some = "; ".join(f"{one.path} is {one.outcome}: {one.reason}" for one in problems[:3])
        self._waiting.append(f"{bad} of {counts.targeted} are not as they were told to be: {some}")

    def _said(self) -> None:
        while self._waiting:
            self._say(self._waiting.popleft())
