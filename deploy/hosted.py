"""An initiator in the real world, wherever its home is: performs what it asks for, and brings it what comes of it.

Theory of operation. An initiator (deploy.initiator) is a state machine. Messages, answers of the directory and the end
of a wait go into it, on the loop, one at a time; what it asks for is performed at once and in order. No effect brings
an input while it is being performed. One timer stands at (or before) its next deadline. An initiator has no task but
while the directory is asked.

The directory. Claim, save and drop are under way one at a time, as the initiator asks for the next only when it has
heard of the last. Those of all initiators in a process share the process's session, which sends a window of them at a
time and lets the others wait; while the connection is lost all of them wait there. So an initiator goes on with what
needs no directory, deploys nothing whose intent is not saved, and goes on when the connection is back. What went wrong
for good becomes `TreeFailed`, and the initiator asks again by itself.

A bug in an initiator (it raised) ends that initiator alone: it is logged, closed, and its home is told.
"""

from __future__ import annotations

import asyncio
import secrets
import traceback
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from deploy.directory import Claim, Directory, Fenced, TableDirectory
from deploy.hosting import InitiatorCharge, InitiatorHome
from deploy.initiator.effects import (
    Activate,
    Charged,
    Claimed,
    ClaimTable,
    Deactivate,
    DropTable,
    Effect,
    FindStubs,
    Gathered,
    Input,
    Note,
    Progress,
    Received,
    Saved,
    SaveTable,
    Send,
    Settled,
    StubsKnown,
    TreeFailed,
)
from deploy.messages import AnyDeployMessage
from deploy.records import StubRef
from fabric.records import BadRecord
from zk.client import TreeClient
from zk.connect import Unreachable
from zk.tree import Tree, TreeError

MIN_PAUSE_S = 0.001
"""Between two ticks, should a deadline stay in the past."""
MAX_TRACEBACK_CHARS = 4000
_TROUBLE = (TreeError, Unreachable, BadRecord, OSError, ValueError)
"""What asking a directory may end in, but for being fenced. ValueError: a connect string that is none."""


class Machine(Protocol):
    """deploy.initiator.initiator.Initiator, as far as its host knows it."""

    def handle(self, now: float, news: Input, /) -> list[Effect]: ...

    def tick(self, now: float) -> list[Effect]: ...

    def next_deadline(self) -> float | None: ...


News = Progress | Settled | Gathered | Claimed | Exception
MakeMachine = Callable[[InitiatorCharge, str, str], Machine]
"""(charge, address, guid)."""


_directories: weakref.WeakKeyDictionary[Tree, Directory] = weakref.WeakKeyDictionary()


def directory_of(tree: Tree) -> Directory:
    """One for all who share a session, so that they share its window of reads too."""
    found = _directories.get(tree)
    if found is None:
        found = _directories[tree] = Directory(TreeClient(tree))
    return found


class Hosted:
    """deploy.hosting.HostedInitiator. `report`: hears what is the top's alone (Progress, Settled, Gathered), that the
    table was claimed, and why the directory did not do what was asked."""

    def __init__(
        self,
        home: InitiatorHome,
        charge: InitiatorCharge,
        make: MakeMachine,
        *,
        report: Callable[[News], None] = lambda news: None,
    ) -> None:
        self.guid = secrets.token_hex(16)
        self.path = charge.path
        self.claim: Claim | None = None
        self._home = home
        self._loop = home.loop
        self._where = charge.charge.directory
        self._machine = make(charge, home.address, self.guid)
        self._report = report
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sought: dict[str, None] | None = None  # names of stubs to look up next, while others are looked up
        self._said = ""
        self.closed = False

    # --- what the host asks ---------------------------------------------------------------------------------------

    def take(self, sender: str, message: AnyDeployMessage) -> None:
        self.give(Received(sender, message))

    def activate(self) -> None:
        self.give(Activate())

    def deactivate(self) -> None:
        self.give(Deactivate())

    def charged(self, charge: InitiatorCharge) -> None:
        if charge.charge.directory != self._where:
            self._home.log(
                "warning",
                f"initiator {self.path}: its directory stays {self._where} until it is started anew; it was told "
                f"{charge.charge.directory}",
            )
        self.give(Charged(charge))

    def close(self) -> None:
        """What is being written to the directory may have been, or not: the next claim finds out."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._tasks:
            task.cancel()

    def give(self, given: Input) -> None:
        """An input; never raises."""
        if self.closed:
            return
        try:
            self._perform(self._machine.handle(self._loop.time(), given))
        except Exception as error:
            self._fail(error)

    # --- effects ----------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._home.send(to, message)
                case ClaimTable():
                    self._ask(self._claimed)
                case SaveTable(table):
                    self._ask(partial(self._saved, lambda tables, claim: tables.save(claim, table)))
                case DropTable():
                    self._ask(partial(self._saved, lambda tables, claim: tables.drop(self.path, claim)))
                case FindStubs(names):
                    self._find(names)
                case Note(level, text):
                    self._home.log(level, text)
                case Progress() | Settled() | Gathered():
                    self._report(effect)
            if self.closed:
                return
        self._set_timer()

    def _set_timer(self) -> None:
        """It may stand before the deadline: it fires in vain then, once, instead of being moved at every input."""
        deadline = self._machine.next_deadline()
        if deadline is None:
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(max(deadline, self._loop.time() + MIN_PAUSE_S), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.closed:
            return
        try:
            now, deadline = self._loop.time(), self._machine.next_deadline()
            if deadline is not None and deadline <= now:
                self._perform(self._machine.tick(now))
            else:
                self._set_timer()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.close()
        told = "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARS:]
        self._home.log("error", f"initiator {self.path or '(top)'} ended by a bug:\n{told}")
        self._home.failed(self.path, f"its initiator failed: {type(error).__name__}: {str(error)[:300]}")

    # --- the directory ----------------------------------------------------------------------------------------------

    def _ask(self, step: Callable[[], Awaitable[Input]]) -> None:
        self._start(self._asked(step))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _asked(self, step: Callable[[], Awaitable[Input]]) -> None:
        try:
            given = await step()
            self._said = ""
        except Fenced as error:
            self.claim = None
            self._say("warning", str(error))
            self._report(error)
            given = TreeFailed("fenced")
        except _TROUBLE as error:
            reason = f"{type(error).__name__}: {error}"
            self._say("error" if isinstance(error, BadRecord) else "warning", reason)
            self._report(error)
            given = TreeFailed(reason)
        except Exception as error:
            self._fail(error)
            return
        self.give(given)

    def _say(self, level: str, text: str) -> None:
        """It is asked again and again during an outage: the same trouble is logged once."""
        if text != self._said:
            self._said = text
            self._home.log(level, f"initiator {self.path or '(top)'}: the directory: {text}")

    async def _directory(self) -> Directory:
        if not self._where:
            raise ValueError("expected a directory in its charge, found none")
        return directory_of(await self._home.tree(self._where))

    async def _claimed(self) -> Claimed:
        directory = await self._directory()
        self.claim = claim = await directory.tables.claim(self.path, self.guid, self._home.address)
        there = claim.table.children or claim.table.rollout
        given = Claimed(claim.table if there else None, claim.epoch)
        self._report(given)
        return given

    async def _saved(self, write: Callable[[TableDirectory, Claim], Awaitable[Claim | None]]) -> Saved | TreeFailed:
        if self.claim is None:
            return TreeFailed("it is not claimed")
        directory = await self._directory()
        self.claim = await write(directory.tables, self.claim)
        return Saved()

    def _find(self, names: tuple[str, ...]) -> None:
        """One search at a time; what is asked for meanwhile is looked up after it."""
        if self._sought is not None:
            self._sought.update(dict.fromkeys(names))
            return
        self._sought = dict.fromkeys(names)
        self._start(self._found())

    async def _found(self) -> None:
        while self._sought:
            names, self._sought = tuple(self._sought), {}
            try:
                records, gone = await (await self._directory()).stubs.some(names)
            except _TROUBLE as error:
                self._say("warning", f"{type(error).__name__}: {error}")
                break
            refs = tuple(StubRef(one.name, one.address, one.domain) for one in records if one.address)
            self.give(StubsKnown(refs, gone))
        self._sought = None
