"""A program, or a person at the command line, as the top initiator (HPL-2001-321, 2.4).

    async with Top.open(directory="192.0.2.1:2181/site", key=key) as top:
        plan = await top.plan("http://192.0.2.1:8080/", roots=("/region1",))
        result = await top.apply(plan, wave=parse_share("10%"), max_failed=parse_share("2%"), on_progress=print)
        if not result.sets.complete:
            result = await top.apply(plan, resume=True)
        await top.command("/region1/zone3/**", "deactivate")
        answer = await top.status("/**")

Theory of operation. The top is an initiator like any other, with the empty path, the roots for children, and this
process for a host; so everything that initiators do for their children it does for the roots. What it has beyond them
is the whole: it expands the description, so it knows the target by name and the order of the tree, cuts waves, and in
the end gathers who is how and partitions the target.

It is there only while something is to be done, unless it stays (deploy.staying); the tree works without it. One top
works at a time (deploy.top_lock): while it does, the questions and orders of others go through it, and another `apply`
is refused. Nothing that counts is
in this process alone: after any death of it the next top finds what is there in the tables, and goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import msgspec

from deploy import loading, top_lock
from deploy.asking import Asker
from deploy.at_work import TopError, Work, Workplace, at_work
from deploy.bip_xml import ControlMessage, bip_call
from deploy.described import Described
from deploy.directory import Unreadable
from deploy.identity import TOP, BadIdentity, is_within, name_of, parent_of
from deploy.messages import BipAnswer, Charge, Counts, Entry, Parent, Problem, Rollout, What
from deploy.patterns import CommandPattern
from deploy.plan import Plan, left_behind, make_plan, rows
from deploy.reach import address_towards, bind_at, is_loopback
from deploy.records import Child, StubRef, Table
from deploy.repository.images import ImageAccess
from deploy.sets import Sets, partition
from deploy.settings import Settings
from deploy.staying import Stayer, role_of
from deploy.waves import ALL, Share, Wave, cut, size_of, too_many
from fabric.runtime.bus import SocketContext, new_context
from fabric.traffic import parse_address
from zk import paths
from zk.session_tree import SessionTree
from zk.tree import Tree

SESSION_S = 10.0
CONNECT_S = 15.0
STATUS_S = 30.0
STUBS_S = 10.0
"""An apply so soon after its plan takes the boot stubs that were read for that: reading them all again is most of what
either asks of the directory."""
EVERYTHING = "/**"
"""The pattern of all managents."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`counts`: of everything up to the watermark. `targeted`: of the whole plan."""

    wave: Wave
    counts: Counts
    targeted: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """`halted`: why it went no further than wave `wave` of `of`; "" when it went to its end."""

    sets: Sets
    wave: int
    of: int
    halted: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """`entries`: in the order of the tree, as far as they came. `sets`: a partition of the managents that match by the
    directory."""

    entries: tuple[Entry, ...]
    sets: Sets


@dataclass(frozen=True, slots=True)
class Traced:
    """What the directory has of one managent. `written_ms`: when its table was last written, by the server's clock."""

    row: Child
    written_ms: int


OnProgress = Callable[[Progress], None]
GoOn = Callable[[Wave, Counts], Awaitable[bool]]
"""Asked before each further wave."""
Then = Callable[[Work, Result], Awaitable[None]]
"""See `Top.apply`."""


class Top:
    """Made by `open`. Everything may raise TopError, BadTree, BadRecord, and zk.tree.TreeError."""

    def __init__(
        self,
        directory: str,
        key: bytes | None,
        tree: SessionTree,
        context: SocketContext,
        bind: str,
        settings: Settings | None,
        roots: Sequence[Path],
    ) -> None:
        self._place = place = Workplace(directory, key, tree, context, bind, settings)
        self._client, self._directory = place.client, place.directory
        self._roots = tuple(roots)
        self._listed: tuple[float, tuple[StubRef, ...]] = (-STUBS_S, ())

    @classmethod
    def open(
        cls,
        directory: str,
        key: bytes | None = None,
        bind: str = "",
        settings: Settings | None = None,
        roots: Sequence[Path] = (),
    ) -> AbstractAsyncContextManager[Self]:
        """`directory`: a connect string. `bind`: "tcp://host:port" where boot stubs can reach this process; by default
        any port of the address from which the directory is reached. `roots`: below these `plan` may read `file://`.
        Raises zk.connect.Unreachable, and TopError when others than this machine can reach it and there is no key."""
        return cls._opened(directory, key, bind, settings, roots)

    @classmethod
    @asynccontextmanager
    async def _opened(
        cls, directory: str, key: bytes | None, bind: str, settings: Settings | None, roots: Sequence[Path]
    ) -> AsyncIterator[Self]:
        if not bind:
            try:
                address = address_towards(directory)
            except OSError as error:
                raise TopError(f"no way to the directory at {directory}: {error}") from None
            if key is None and not is_loopback(address):
                raise TopError(
                    f"expected the key that seals messages, since boot stubs are to reach this process at {address}; "
                    "found none"
                )
            bind = bind_at(address)
        tree = SessionTree(directory, session_timeout_s=SESSION_S)
        context = new_context(max_sockets=64)
        try:
            await tree.open(CONNECT_S)
            yield cls(directory, key, tree, context, bind, settings, roots)
        finally:
            await tree.close()
            context.term()

    # --- plan -----------------------------------------------------------------------------------------------------

    async def plan(self, repository: str, roots: Sequence[str] = (), only: bool = False) -> Plan:
        """What `apply` would change. `roots`: paths of the first level; none: those that are there. Where there are
        others they must be named too, or `only` has them removed."""
        tables = await self._tables()
        named = roots_of(tables.get(TOP), roots, only)
        stubs = await self._stubs()
        images = ImageAccess(self._session, self._place.key, self._place.context)
        async with loading.opened(self._roots, images) as loader:
            expansion, described = await loader.expanded(role_of(named), repository, stubs)
        if repository not in described:
            raise TopError(next((want.error for want in expansion.wants), f"nothing is described by {repository}"))
        warnings = tuple(f"repository {url}: {one.broken}" for url, one in described.items() if one.broken)
        return make_plan(repository, named, _generation(described), expansion.wants, rows(tables), warnings)

    async def _session(self) -> Tree:
        return self._place.tree

    async def _stubs(self, age_s: float = 0.0) -> tuple[StubRef, ...]:
        """Those that can be reached, as they were `age_s` ago at most."""
        now = asyncio.get_running_loop().time()
        read_at, stubs = self._listed
        if now - read_at >= age_s:
            found = await self._directory.stubs.all()
            stubs = tuple(StubRef(one.name, one.address, one.domain) for one in found.records if one.address)
            self._listed = now, stubs
        return stubs

    async def _tables(self) -> dict[str, Table]:
        tables: dict[str, Table] = {}
        async for found in self._directory.tables.walk(TOP):
            if isinstance(found, Unreadable):
                raise TopError(f"the table of {found.what or 'the top'}: {found.reason}")
            tables[found.path] = found
        return tables

    # --- apply ----------------------------------------------------------------------------------------------------

    async def apply(
        self,
        plan: Plan,
        *,
        wave: Share | None = None,
        max_failed: Share | None = None,
        resume: bool = False,
        recheck: bool = False,
        prune: bool = True,
        take_over: bool = False,
        on_progress: OnProgress | None = None,
        go_on: GoOn | None = None,
        then: Then | None = None,
    ) -> Result:
        """Bring the plan about. `wave`: so many changes at once; `max_failed`: no further wave above so many failures;
        `go_on`: asked before each further wave. `resume`: try again what was refused or failed. `recheck`: look also at
        what is up to date by its record. `prune`: remove what is not described. Raises TopError when somebody else is
        at it, unless `take_over`: then that one ends."""
        waves = cut(plan.ordered(resume), size_of(wave, max_failed), plan.removed() if prune else ())
        charge = Charge(
            plan.repository,
            directory=self._place.hosts,
            domain=await self._stubs(STUBS_S),
            rollout=f"o-{secrets.token_hex(6)}",
            generation=plan.generation,
        )
        doing = f"apply {plan.repository}"
        async with _alone(at_work(self._place, role_of(plan.roots), charge, doing, over=take_over)) as work:
            host = work.host
            done, halted = waves[0], ""
            for done in waves:
                rollout = Rollout(charge.rollout, done.number, done.until, plan.generation, resume, recheck, prune)
                tell = _telling(on_progress, done, plan)
                settled = await host.roll(rollout, tell)
                tell(settled.counts, settled.problems)
                if done.until != ALL and (halted := too_many(settled.counts, max_failed, len(plan.target))):
                    break
                if done.until != ALL and go_on is not None and not await go_on(done, settled.counts):
                    halted = "it was not told to go on"
                    break
            entries = await host.order(EVERYTHING, "status", STATUS_S)
            result = Result(_sets(plan.target, entries), done.number, done.of, halted)
            if then is not None:
                await then(work, result)
        return result

    def stayer(self, repository: str, say: Callable[[str], None]) -> Stayer:
        """For who stays the top after an `apply` from there: its `keep` is called in `then`, its `follow` after that.
        `say`: hears what happens."""
        return Stayer(self._place, repository, self._stubs, say)

    # --- the tree -------------------------------------------------------------------------------------------------

    async def status(self, pattern: str = EVERYTHING, timeout_s: float = STATUS_S) -> Answer:
        """Ask all managents that match how they are."""
        return await self.command(pattern, "status", timeout_s)

    async def command(self, pattern: str, what: What, timeout_s: float = STATUS_S) -> Answer:
        """Have all managents that match do something; who has not answered after `timeout_s` is unreachable. Raises
        deploy.patterns.BadPattern; TopError for an initiator that is to be uninstalled and cannot remove what is below
        it."""
        wanted = CommandPattern(pattern)
        tables = await self._tables()
        if TOP not in tables:
            return Answer((), Sets())
        there = rows(tables)
        known = [path for path in there if wanted.matches(path)]
        if what == "uninstall":
            _check_nobody_left(there, wanted)
        entries, whole = await self._asked(tables[TOP], pattern, what, timeout_s)
        # Tables are written now and then: an initiator may name children that its table did not have yet. It may also
        # say why nobody below it answers: that counts only where the tables know nobody there.
        more = [one.path for one in entries if wanted.matches(one.path) or not _any_below(known, one.path)]
        target = dict.fromkeys([*known, *more])
        places = {path: place for place, path in enumerate(target)}
        ordered = sorted((one for one in entries if one.path in places), key=lambda one: places[one.path])
        return Answer(tuple(ordered), _sets(tuple(target), entries, whole))

    async def send(self, message: ControlMessage, stub: str, managent: str, timeout_s: float) -> BipAnswer | None:
        """One command of Table 1 from a person to the boot stub with this name, or at this address of the bus; a URL,
        as Figure 9 has it, stands for the boot stub with its host's name. None when it does not answer in time.
        `managent`: for a message that names none. Managents of a tree obey their initiators alone: raises TopError for
        one of these."""
        address = stub if parse_address(stub) is not None else await self._address_of(stub)
        doing = f"{message.verb} {message.managent or managent} by hand"
        asker = Asker(self._place.context, self._place.key, self._place.bind)
        try:
            call = bip_call(
                message, call=secrets.token_hex(8), parent=asker.parent, epoch=1, attempt=1, managent=managent
            )
            if await self.trace(call.managent) is not None:
                raise TopError(
                    f"expected a managent of no tree, found {call.managent} in the table of its initiator; see: "
                    "fabric managent --help"
                )
            record = top_lock.this_process(secrets.token_hex(16), asker.parent.address, doing)
            await top_lock.take(self._client, record, over=False)
            try:
                stat = await self._client.exists(paths.TOP)
                epoch = stat.czxid if stat is not None else 1  # later than any before it, as a claim's would be
                parent = Parent(parent_of(call.managent), asker.parent.address)
                call = msgspec.structs.replace(call, epoch=epoch, parent=parent)
                return await asker.command(address, call, timeout_s)
            finally:
                await top_lock.release(self._client, record)
        except top_lock.Held as held:
            raise TopError(str(held)) from held
        except BadIdentity as error:
            raise TopError(str(error)) from error
        finally:
            asker.close()

    async def _address_of(self, stub: str) -> str:
        name = urlsplit(stub).hostname or "" if "://" in stub else stub
        record = await self._directory.stubs.get(name)
        if record is None or not record.address:
            raise TopError(f"expected a boot stub of the directory, found {name!r}; see: fabric stub list")
        return record.address

    async def trace(self, path: str) -> Traced | None:
        """How this managent was last deployed; None when the directory does not know it."""
        parent = parent_of(path)
        table = await self._directory.tables.load(parent)
        row = next((child for child in table.children if child.name == name_of(path)), None) if table else None
        stat = await self._client.exists(paths.table(parent))
        return Traced(row, stat.mtime_ms) if row is not None and stat is not None else None

    async def _asked(self, table: Table, pattern: str, what: What, timeout_s: float) -> tuple[list[Entry], bool]:
        """Through the top that is at work, else through one of our own. Whether it said all that it had to say."""
        record = await top_lock.holder(self._client)
        if record is None:
            names = tuple(f"/{child.name}" for child in table.children)
            charge = Charge("", directory=self._place.hosts, domain=await self._stubs())
            try:
                async with at_work(self._place, role_of(names), charge, f"{what} {pattern}") as work:
                    return await work.host.order(pattern, what, timeout_s), True
            except top_lock.Held as held:
                record = held.record
        asker = Asker(self._place.context, self._place.key, self._place.bind)
        try:
            gathered = await asker.gather(record.address, pattern, what, timeout_s)
            return gathered.entries, gathered.whole
        finally:
            asker.close()


@asynccontextmanager
async def _alone(work: AbstractAsyncContextManager[Work]) -> AsyncIterator[Work]:
    """Who else is there is an error that says what to do."""
    try:
        async with work as alone:
            yield alone
    except top_lock.Held as held:
        raise TopError(f"one rollout at a time: {held}; wait, or take over from it (--take-over)") from held


# --- parts -----------------------------------------------------------------------------------------------------------


def roots_of(table: Table | None, roots: Sequence[str], only: bool) -> tuple[str, ...]:
    """The paths of the first level that are to be there. Raises TopError."""
    there = tuple(f"/{child.name}" for child in (table.children if table else ()))
    if not roots:
        if not there:
            raise TopError(
                "which managents of the first level? Nothing is deployed yet; expected a root, such as --root /region1"
            )
        return there
    others = [root for root in there if root not in roots]
    if others and not only:
        raise TopError(
            f"expected all managents of the first level to be named, found {', '.join(others)} there, too: name it as "
            "well (--root), or have what is not named removed (--only)"
        )
    return tuple(roots)


def _generation(described: Mapping[str, Described]) -> str:
    """Of the one description, or of all together."""
    told = [f"{url} {one.generation}" for url, one in sorted(described.items())]
    if len(told) == 1:
        return told[0].partition(" ")[2]
    return hashlib.blake2b("\n".join(told).encode(), digest_size=8).hexdigest()


def _sets(target: Sequence[str], entries: Sequence[Entry], whole: bool = True) -> Sets:
    """`whole`: the top said all that it had to say."""
    answered = {entry.through for entry in entries} - {TOP}
    return partition(target, entries, answered | {TOP} if whole else answered)


def _check_nobody_left(there: Mapping[str, Child], wanted: CommandPattern) -> None:
    """Raises TopError."""
    left = left_behind(there, wanted.matches)
    if not left:
        return
    path, count = next(iter(left.items()))
    more = f" (and {len(left) - 1} more like it)" if len(left) > 1 else ""
    raise TopError(
        f"expected nothing left below an initiator that is uninstalled, found {count} of {path}{more}, which is shut "
        f"down and passes nothing on: start it (fabric managent start {path}), shut down and uninstall what is below "
        "it, the lowest level first, and then itself; or have all removed by an apply that does not describe it"
    )


def _any_below(paths: Sequence[str], top: str) -> bool:
    return any(is_within(path, top) for path in paths)


def _telling(on_progress: OnProgress | None, wave: Wave, plan: Plan) -> Callable[[Counts, tuple[Problem, ...]], None]:
    def tell(counts: Counts, problems: tuple[Problem, ...]) -> None:
        if on_progress is not None:
            on_progress(Progress(wave, counts, len(plan.target), problems))

    return tell
