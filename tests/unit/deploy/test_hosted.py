"""The host of an initiator, by scripts that stand for one: the directory, deadlines, and bugs that stay alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deploy.configuration import InitiatorRole
from deploy.directory import Directory
from deploy.hosted import Hosted, News
from deploy.hosting import InitiatorCharge
from deploy.initiator.effects import (
    Activate,
    Charged,
    Claimed,
    ClaimTable,
    Deactivate,
    DropTable,
    Effect,
    FindStubs,
    Input,
    Note,
    Received,
    Saved,
    SaveTable,
    Send,
    StubsKnown,
    TreeFailed,
)
from deploy.messages import AnyDeployMessage, Charge, Parent, StubPing
from deploy.records import StubRef, Table
from tests.deployment import stub_record, table
from tests.zookeeper import MemorySession, eventually, memory_servers, memory_session
from zk import paths
from zk.connect import Unreachable
from zk.tree import SessionState, Tree

PATH = "/site/r1"
PARENT = Parent("/site", "tcp://127.0.0.1:1/" + "a" * 8)
PING = StubPing("c", PARENT)
ANSWERS: tuple[type[Input], ...] = (Claimed, Saved, TreeFailed, StubsKnown)


class Script:
    """Asks for what it is told to (`next`) at the next input, and keeps what it was given."""

    def __init__(self, charge: InitiatorCharge, address: str, guid: str) -> None:
        self.guid, self.address, self.path = guid, address, charge.path
        self.next: list[Effect] = []
        self.given: list[Input] = []
        self.deadline: float | None = None
        self.ticks: list[float] = []
        self.on_tick: Callable[[float], None] = lambda now: None
        self.bug = False

    def handle(self, now: float, given: Input) -> list[Effect]:
        if self.bug:
            raise RuntimeError("this is a bug")
        self.given.append(given)
        effects, self.next = self.next, []
        return effects

    def tick(self, now: float) -> list[Effect]:
        self.ticks.append(now)
        self.deadline = None
        self.on_tick(now)
        return []

    def next_deadline(self) -> float | None:
        return self.deadline

    def table(self, rows: int) -> Table:
        return table(self.path, rows, guid=self.guid, address=self.address)


class Home:
    def __init__(self, tree: Tree) -> None:
        self.address = "tcp://127.0.0.1:2/" + "b" * 8
        self.loop = asyncio.get_running_loop()
        self.sent: list[tuple[str, AnyDeployMessage]] = []
        self.logged: list[tuple[str, str]] = []
        self.ended: list[tuple[str, str]] = []
        self.trees = 0
        self.away = False
        self._tree = tree

    def send(self, to: str, message: AnyDeployMessage) -> None:
        self.sent.append((to, message))

    async def tree(self, directory: str) -> Tree:
        self.trees += 1
        if self.away:
            raise Unreachable(directory, 1.0)
        return self._tree

    def log(self, level: str, text: str) -> None:
        self.logged.append((level, text))

    def failed(self, path: str, reason: str) -> None:
        self.ended.append((path, reason))


class Stage:
    """One home, and initiators in it."""

    def __init__(self, session: MemorySession) -> None:
        self.session = session
        self.home = Home(session.tree)
        self.scripts: list[Script] = []
        self.news: list[News] = []

    def initiator(self, path: str = PATH, directory: str = "192.0.2.1:2181") -> tuple[Hosted, Script]:
        charge = InitiatorCharge(path, PARENT, 1, 1, InitiatorRole(()), Charge("http://repo", directory=directory))

        def make(charge: InitiatorCharge, address: str, guid: str) -> Script:
            self.scripts.append(Script(charge, address, guid))
            return self.scripts[-1]

        hosted = Hosted(self.home, charge, make, report=self.news.append)
        return hosted, self.scripts[-1]

    async def asked(self, hosted: Hosted, script: Script, *effects: Effect) -> Input:
        """Have it ask the directory; what came of it."""
        script.next = list(effects)
        before = len(script.given)
        hosted.take("route:1", PING)
        await eventually(lambda: any(isinstance(one, ANSWERS) for one in script.given[before:]), what="an answer")
        return next(one for one in script.given[before:] if isinstance(one, ANSWERS))


def on_stage(body: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        async with memory_session(memory_servers()) as session:
            await body(Stage(session))

    asyncio.run(main())


def test_inputs_and_effects_pass_through() -> None:
    async def body(stage: Stage) -> None:
        hosted, script = stage.initiator()
        script.next = [Send("tcp://x", PING), Note("info", "hello")]
        hosted.activate()
        hosted.take("route:1", PING)
        hosted.deactivate()
        assert script.given == [Activate(), Received("route:1", PING), Deactivate()]
        assert stage.home.sent == [("tcp://x", PING)]
        assert stage.home.logged == [("info", "hello")]
        assert stage.home.trees == 0, "no session is opened before it is needed"
        hosted.close()
        hosted.take("route:1", PING)
        assert len(script.given) == 3

    on_stage(body)


def test_a_table_is_claimed_saved_found_by_a_successor_and_then_fenced() -> None:
    async def body(stage: Stage) -> None:
        first, one = stage.initiator()
        claimed = await stage.asked(first, one, ClaimTable())
        assert isinstance(claimed, Claimed)
        assert claimed.table is None
        assert stage.news == [claimed]
        assert await stage.asked(first, one, SaveTable(one.table(3))) == Saved()
        assert await Directory(stage.session.client).tables.load(PATH) == one.table(3)
        second, two = stage.initiator()
        again = await stage.asked(second, two, ClaimTable())
        assert isinstance(again, Claimed)
        assert again.table == two.table(3)
        assert again.epoch > claimed.epoch
        assert await stage.asked(first, one, SaveTable(one.table(4))) == TreeFailed("fenced")
        assert await stage.asked(first, one, SaveTable(one.table(4))) == TreeFailed("it is not claimed")
        assert "expected the claim of" in stage.home.logged[0][1]
        assert await stage.asked(second, two, DropTable()) == Saved()
        assert await Directory(stage.session.client).tables.load(PATH) is None

    on_stage(body)


def test_trouble_with_the_directory_is_said_once_and_passes() -> None:
    async def body(stage: Stage) -> None:
        hosted, script = stage.initiator()
        stage.home.away = True
        for _ in range(3):
            failed = await stage.asked(hosted, script, ClaimTable())
            assert isinstance(failed, TreeFailed)
            assert "no ZooKeeper server answered" in failed.reason
        assert len(stage.home.logged) == 1
        stage.home.away = False
        assert isinstance(await stage.asked(hosted, script, ClaimTable()), Claimed)
        without, script = stage.initiator(directory="")
        failed = await stage.asked(without, script, ClaimTable())
        assert isinstance(failed, TreeFailed)
        assert "expected a directory in its charge" in failed.reason

    on_stage(body)


def test_a_garbled_table_is_said_and_left_alone() -> None:
    async def body(stage: Stage) -> None:
        await stage.session.client.ensure(paths.table(PATH))
        hosted, script = stage.initiator()
        failed = await stage.asked(hosted, script, ClaimTable())
        assert isinstance(failed, TreeFailed)
        assert f"{paths.table(PATH)}: expected a Head" in failed.reason
        assert stage.home.logged[0][0] == "error"
        assert (await stage.session.client.get(paths.table(PATH))).data == b""

    on_stage(body)


def test_while_the_connection_is_lost_it_goes_on_with_what_needs_no_directory() -> None:
    async def body(stage: Stage) -> None:
        hosted, script = stage.initiator()
        await stage.asked(hosted, script, ClaimTable())
        stage.session.disconnect()
        await eventually(lambda: stage.session.tree.state is SessionState.SUSPENDED)
        script.next = [SaveTable(script.table(3))]
        hosted.take("route:1", PING)
        script.next = [Send("tcp://x", PING)]
        hosted.take("route:2", PING)
        assert stage.home.sent == [("tcp://x", PING)]
        assert Saved() not in script.given
        stage.session.reconnect()
        await eventually(lambda: Saved() in script.given)

    on_stage(body)


def test_stubs_are_looked_up_one_search_at_a_time() -> None:
    async def body(stage: Stage) -> None:
        directory = Directory(stage.session.client)
        one, two, listed = stub_record("a"), stub_record("b"), stub_record("c", address="", by="operator")
        for record in (one, two, listed):
            await directory.stubs.register(record)
        hosted, script = stage.initiator()
        script.next = [FindStubs(("a", "c", "none"))]
        hosted.take("route:1", PING)
        await eventually(lambda: stage.home.trees)  # under way
        script.next = [FindStubs(("b",)), FindStubs(("b", "a"))]
        hosted.take("route:1", PING)
        await eventually(lambda: len([x for x in script.given if isinstance(x, StubsKnown)]) == 2)
        refs = [StubRef(record.name, record.address, record.domain) for record in (one, two)]
        found = [given.stubs for given in script.given if isinstance(given, StubsKnown)]
        assert found == [(refs[0],), (refs[1], refs[0])]
        gone = [given.gone for given in script.given if isinstance(given, StubsKnown)]
        assert gone == [("none",), ()], "listed without an address is not gone"
        assert await stage.asked(hosted, script, FindStubs(("a",))) == StubsKnown((refs[0],))
        await stage.session.client.set(paths.stub("b"), b"who?")
        assert await stage.asked(hosted, script, FindStubs(("b",))) == StubsKnown(()), "nor is what can't be read"

    on_stage(body)


def test_it_is_called_at_its_deadline_and_not_before() -> None:
    async def body(stage: Stage) -> None:
        hosted, script = stage.initiator()
        loop = asyncio.get_running_loop()
        script.deadline = early = loop.time() + 0.02
        hosted.activate()
        script.deadline = late = early + 0.03
        hosted.take("route:1", PING)
        await eventually(lambda: script.ticks)
        assert script.ticks[0] >= late
        script.deadline = loop.time() + 3600
        hosted.take("route:1", PING)
        script.deadline = soon = loop.time() + 0.01
        hosted.take("route:1", PING)
        await eventually(lambda: len(script.ticks) == 2)
        assert script.ticks[1] >= soon
        hosted.close()

    on_stage(body)


def test_a_deadline_that_stays_in_the_past_does_not_stop_the_loop() -> None:
    async def body(stage: Stage) -> None:
        hosted, script = stage.initiator()

        def again(now: float) -> None:
            script.deadline = 0.0

        script.on_tick = again
        script.deadline = 0.0
        hosted.activate()
        await eventually(lambda: len(script.ticks) > 3)
        apart = [later - sooner for sooner, later in zip(script.ticks, script.ticks[1:], strict=False)]
        assert min(apart) > 0.0005
        hosted.close()

    on_stage(body)


@pytest.mark.parametrize("where", ["input", "deadline", "answer", "report"])
def test_a_bug_ends_that_initiator_alone_and_its_home_is_told(where: str) -> None:
    async def body(stage: Stage) -> None:
        hosted, script = stage.initiator()
        other, healthy = stage.initiator("/site/r2")

        def bug(*given: Any) -> None:
            raise RuntimeError("this is a bug")

        if where == "input":
            script.bug = True
            hosted.activate()
        elif where == "deadline":
            script.on_tick = bug
            script.deadline = 0.0
            hosted.activate()
        elif where == "answer":
            script.next = [ClaimTable()]
            hosted.activate()
            script.bug = True
        else:
            hosted._report = bug
            script.next = [ClaimTable()]
            hosted.activate()
        await eventually(lambda: stage.home.ended)
        assert stage.home.ended == [(PATH, "its initiator failed: RuntimeError: this is a bug")]
        assert stage.home.logged[-1][0] == "error"
        assert "Traceback" in stage.home.logged[-1][1]
        assert hosted.closed
        count = len(script.given)
        hosted.take("route:1", PING)
        assert len(script.given) == count
        assert isinstance(await stage.asked(other, healthy, ClaimTable()), Claimed)

    on_stage(body)


def test_closed_in_the_middle_it_hears_no_more() -> None:
    async def body(stage: Stage) -> None:
        hosted, script = stage.initiator()
        script.next = [ClaimTable(), FindStubs(("a",))]
        hosted.activate()
        hosted.close()
        other, successor = stage.initiator()
        assert isinstance(await stage.asked(other, successor, ClaimTable()), Claimed)
        assert script.given == [Activate()]

    on_stage(body)


def test_its_directory_stays_the_one_that_it_began_with() -> None:
    async def body(stage: Stage) -> None:
        hosted, script = stage.initiator()
        charge = InitiatorCharge(PATH, PARENT, 1, 2, InitiatorRole(()), Charge("http://repo", directory="192.0.2.9:1"))
        hosted.charged(charge)
        assert script.given == [Charged(charge)]
        assert "its directory stays 192.0.2.1:2181" in stage.home.logged[0][1]

    on_stage(body)


def test_hundreds_of_initiators_share_a_session_at_three_operations_each() -> None:
    count = 300

    async def body(stage: Stage) -> None:
        await stage.session.client.ensure(*(f"{paths.MANAGENTS}/{shard:02x}" for shard in range(paths.SHARDS)))
        before = sum(stage.session.tree.operations.values())
        pairs = [stage.initiator(f"/site/r{number}") for number in range(count)]

        async def deploy(hosted: Hosted, script: Script) -> None:
            await stage.asked(hosted, script, ClaimTable())
            for _ in range(2):
                assert await stage.asked(hosted, script, SaveTable(script.table(10))) == Saved()

        await asyncio.gather(*(deploy(*pair) for pair in pairs))
        assert sum(stage.session.tree.operations.values()) - before == 3 * count

    on_stage(body)
