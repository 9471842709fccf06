"""A top initiator in this process over real buses and a directory in memory: a tree of initiators in one boot stub that
is played, what a program awaits, and how each wait ends."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from deploy.configuration import Children, InitiatorRole
from deploy.directory import Directory, Fenced, Unreadable
from deploy.hosted import MakeMachine
from deploy.hosting import HostedInitiator, InitiatorCharge
from deploy.identity import depth
from deploy.initiator.effects import Activate, ClaimTable, Effect, Input, Progress, Roll, Settled
from deploy.initiator_host import InitiatorFailed, TopHost, new_initiator
from deploy.messages import (
    AdoptCall,
    AnyDeployMessage,
    BipAnswer,
    BipCall,
    Charge,
    Counts,
    ManagentBeat,
    Rollout,
    StubBeat,
    StubPing,
    deploy_codec,
)
from deploy.records import Prints, StubRef
from deploy.settings import Settings
from fabric.records import BadRecord
from fabric.runtime.bus import Bus, SocketContext, new_context
from tests.deployment import guid_of
from tests.zookeeper import MemorySession, memory_servers, memory_session
from zk import paths
from zk.tree import Tree

KEY = b"k" * 32
BIND = "tcp://127.0.0.1:0"
PRINTS = Prints("a" * 16, "b" * 16, "c" * 16)
LEVELS = 3
"""The top's children, theirs, and the leaves."""
WIDTH = 3
QUICK = Settings(command_repeat_s=0.2, call_repeat_s=0.2, report_s=0.05, save_s=0.1)


class PlayedStub:
    """Deploys whatever it is told to, at once; what is above the leaves is an initiator. Their home, too."""

    def __init__(self, context: SocketContext, tree: Tree) -> None:
        self.guid = guid_of("stub")
        self.loop = asyncio.get_running_loop()
        self.bus: Bus[AnyDeployMessage] = Bus(context, deploy_codec(KEY), self.guid, BIND, on_message=self._heard)
        self.address = self.bus.address
        self.ref = StubRef("box", self.address, "")
        self.deployed: Counter[str] = Counter()
        self.initiators: dict[str, HostedInitiator] = {}
        self.ended: list[str] = []
        self._beats: dict[str, tuple[str, ManagentBeat]] = {}
        self._charges: dict[str, InitiatorCharge] = {}
        self._tree = tree
        self._make = new_initiator(QUICK)

    def send(self, to: str, message: AnyDeployMessage) -> None:
        self.bus.send(to, message)

    async def tree(self, directory: str) -> Tree:
        return self._tree

    def log(self, level: str, text: str) -> None:
        pass

    def failed(self, path: str, reason: str) -> None:
        self.ended.append(f"{path}: {reason}")

    def close(self) -> None:
        for initiator in self.initiators.values():
            initiator.close()
        self.bus.close()

    def _heard(self, sender: str, message: AnyDeployMessage) -> None:
        if isinstance(message, BipCall):
            self._command(sender, message)
        elif isinstance(message, AdoptCall | StubPing):
            if isinstance(message, AdoptCall):
                self._adopted(message)
            mine = tuple(beat for parent, beat in self._beats.values() if parent == message.parent.path)
            self.send(sender, StubBeat(message.parent.path, self.ref, self.guid, True, mine))
        elif (initiator := self.initiators.get(getattr(message, "to", ""))) is not None:
            initiator.take(sender, message)

    def _adopted(self, call: AdoptCall) -> None:
        for path in call.managents:
            _, beat = self._beats[path]
            self._beats[path] = call.parent.path, replace(beat, epoch=call.epoch)
            if path in self.initiators:
                self._charges[path] = dataclasses.replace(self._charges[path], parent=call.parent, epoch=call.epoch)
                self.initiators[path].charged(self._charges[path])

    def _command(self, sender: str, call: BipCall) -> None:
        path = call.managent
        leads = depth(path) < LEVELS
        if call.verb == "deploy" and path not in self._beats:
            self.deployed[path] += 1
            beat = ManagentBeat(path, call.epoch, call.attempt, "installed", "active", "ok")
            self._beats[path] = call.parent.path, beat
            if leads:
                assert call.charge is not None
                role = InitiatorRole((Children("count", WIDTH, prefix="m"),))
                mine = InitiatorCharge(path, call.parent, call.epoch, call.attempt, role, call.charge)
                self._charges[path] = mine
                self.initiators[path] = self._make(self, mine)
                self.initiators[path].activate()
        answer = BipAnswer(call.call, call.parent.path, path, "box", "done", "installed", "active", PRINTS, leads)
        self.send(sender, answer)


class World:
    def __init__(self, context: SocketContext, session: MemorySession, stub: PlayedStub) -> None:
        self.context, self.session, self.stub = context, session, stub
        self.role = InitiatorRole((Children("names", names=("site",)),))
        self.charge = Charge("http://repo", directory="memory", domain=(stub.ref,), generation="g1")

    @asynccontextmanager
    async def top(self, make: MakeMachine | None = None) -> AsyncIterator[TopHost]:
        host = TopHost(self.context, KEY, BIND, self.session.tree, make)
        try:
            yield host
        finally:
            host.close()


def in_world(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        context = new_context(max_sockets=64)
        try:
            async with memory_session(memory_servers()) as session:
                stub = PlayedStub(context, session.tree)
                try:
                    await body(World(context, session, stub))
                    assert stub.ended == []
                finally:
                    stub.close()
        finally:
            context.term()

    asyncio.run(main())


ALL = 1 + WIDTH + WIDTH**2


def test_a_tree_is_brought_about_gathered_and_found_again_by_the_next_top() -> None:
    async def body(world: World) -> None:
        told: list[Counts] = []
        async with world.top() as top:
            await top.start(world.role, world.charge)
            rollout = Rollout("o-1", 1, "", "g1")
            settled = await top.roll(rollout, lambda counts, problems: told.append(counts))
            assert (settled.counts.targeted, settled.counts.active, settled.problems) == (ALL, ALL, ())
            entries = await top.order("/**", "status", 5.0)
            assert len({entry.path for entry in entries}) == len(entries) == ALL
            assert {entry.life for entry in entries} == {"active"}
            assert [entry.path for entry in await top.order("/site/m1", "status", 5.0)] == ["/site/m1"]
        assert world.stub.deployed == dict.fromkeys(world.stub.deployed, 1)
        directory = Directory(world.session.client)
        tables = [one async for one in directory.tables.walk()]
        assert not [one for one in tables if isinstance(one, Unreadable)]
        assert len(tables) == 1 + 1 + WIDTH
        async with world.top() as top:
            await top.start(world.role, world.charge)
            settled = await top.roll(Rollout("o-2", 1, "", "g1"), lambda counts, problems: None)
            assert settled.counts.active == ALL
        assert sum(world.stub.deployed.values()) == ALL, "nothing is deployed twice"

    in_world(body)


def test_a_top_whose_table_another_claims_says_so() -> None:
    async def body(world: World) -> None:
        async with world.top() as first, world.top() as second:
            await first.start(world.role, world.charge)
            await second.start(world.role, world.charge)
            with pytest.raises(Fenced):
                await first.roll(Rollout("o-1", 1, "", "g1"), lambda counts, problems: None)
            with pytest.raises(Fenced):
                await first.order("/**", "status", 5.0)
            assert not world.stub.deployed, "an intent that is not saved is not carried out"

    in_world(body)


def test_a_table_that_cannot_be_read_keeps_a_top_from_starting() -> None:
    async def body(world: World) -> None:
        await world.session.client.ensure(paths.table(""))
        async with world.top() as top:
            with pytest.raises(BadRecord, match=paths.table("")):
                await top.start(world.role, world.charge)

    in_world(body)


class Played:
    """A top initiator that reports progress, or fails, when it is to bring something about."""

    def __init__(self, bug: bool) -> None:
        self.bug = bug

    def handle(self, now: float, news: Input, /) -> list[Effect]:
        match news:
            case Activate():
                return [ClaimTable()]
            case Roll(rollout):
                if self.bug:
                    raise RuntimeError("this is a bug")
                return [Progress(rollout.id, rollout.seq, Counts(), ()), Settled(rollout.id, rollout.seq, Counts(), ())]
            case _:
                return []

    def tick(self, now: float) -> list[Effect]:
        return []

    def next_deadline(self) -> float | None:
        return None


def test_a_bug_of_the_top_ends_what_is_awaited() -> None:
    async def body(world: World) -> None:
        async with world.top(lambda *given: Played(bug=True)) as top:
            await top.start(world.role, world.charge)
            with pytest.raises(InitiatorFailed, match="RuntimeError: this is a bug"):
                await top.roll(Rollout("o-1", 1, "", "g1"), lambda counts, problems: None)
            with pytest.raises(InitiatorFailed):
                await top.order("/**", "status", 5.0)

    in_world(body)


def test_what_a_program_raises_when_told_of_progress_is_its_own() -> None:
    async def body(world: World) -> None:
        async with world.top(lambda *given: Played(bug=False)) as top:
            await top.start(world.role, world.charge)

            def stop(*given: object) -> None:
                raise KeyError("enough")

            with pytest.raises(KeyError):
                await top.roll(Rollout("o-1", 1, "", "g1"), stop)
            told: list[Counts] = []
            await top.roll(Rollout("o-1", 2, "", "g1"), lambda counts, problems: told.append(counts))
            assert told == [Counts()]

    in_world(body)
