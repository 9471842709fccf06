"""Election by sessions on every Tree: who leads, who follows whom, and what lost replies do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import zookeeper_server
from tests.contract.conftest import MakeTree
from tests.waiting import wait_until
from tests.zookeeper import LOCAL, Proxy, Session, eventually, server_session
from zk.election import Candidacy, Request
from zk.server import Server
from zk.tree import Create, Op, Outcome, SessionChanged, SessionState, TreeEvent, WatchFired

DIRECTORY, LEADER = "/candidates/compute/r1", "/leaders/compute/r1"


class Elector:
    """A candidacy on a session: what an agent does with it, and nothing else."""

    def __init__(self, session: Session, guid: str) -> None:
        self.session = session
        self.tree = session.tree
        self.role = Candidacy("compute", "r1", guid, guid.encode())
        self.sent: list[Request] = []
        self.tree.listen(self._on_event)
        self._perform(self.role.on_session(SessionChanged(SessionState.CONNECTED, self.tree.session_id)))

    def _on_event(self, event: TreeEvent) -> None:
        if isinstance(event, WatchFired):
            self._perform(self.role.on_watch(event.path))
        else:
            self._perform(self.role.on_session(event))

    def _perform(self, requests: list[Request]) -> None:
        for request in requests:
            self.sent.append(request)
            self.tree.submit(request.op, partial(self._on_outcome, request.token))
        loop = asyncio.get_running_loop()
        if (deadline := self.role.next_deadline) is not None:
            loop.call_at(max(deadline, loop.time()), lambda: self._perform(self.role.on_tick(loop.time())))

    def _on_outcome(self, token: str, outcome: Outcome) -> None:
        self._perform(self.role.on_outcome(token, outcome))

    def update(self, data: bytes) -> None:
        self._perform(self.role.update(data))

    def resign(self) -> None:
        self._perform(self.role.resign())


@asynccontextmanager
async def standing_in_turn(
    make_tree: MakeTree, count: int
) -> AsyncIterator[tuple[list[Elector], list[AsyncExitStack]]]:
    """`count` electors, each with a session and a stack that closes it, queued in order, the first leading."""
    stacks = [AsyncExitStack() for _ in range(count)]
    electors: list[Elector] = []
    async with AsyncExitStack() as all_of_them:
        for number, stack in enumerate(stacks):
            await all_of_them.enter_async_context(stack)
            # Guids against the order of arrival, so that an order by name would show.
            electors.append(Elector(await stack.enter_async_context(make_tree()), f"n{9 - number}"))
            await eventually(lambda: electors[-1].role._watched if len(electors) > 1 else electors[0].role.may_award)
        yield electors, stacks


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with zookeeper_server(tmp_path / "zk") as server:
        yield server


def test_leaders_close_one_by_one_and_each_wakes_its_successor_alone(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with standing_in_turn(make_tree, 5) as (electors, stacks):
            epochs = []
            for number, (elector, stack) in enumerate(zip(electors, stacks, strict=True)):
                await eventually(lambda elector=elector: elector.role.may_award)  # type: ignore[misc]
                got = await elector.session.client.get(LEADER)
                assert got.data == f"n{9 - number}".encode()
                assert got.stat.owner == elector.tree.session_id
                assert got.stat.czxid == elector.role.epoch
                epochs.append(elector.role.epoch)
                assert [each.role.leads for each in electors[number:]].count(True) == 1
                sent = [len(each.sent) for each in electors]
                await stack.aclose()
                if number < 4:
                    await eventually(lambda number=number: electors[number + 1].role.leads)  # type: ignore[misc]
                    woken = [each for each, before in zip(electors, sent, strict=True) if len(each.sent) > before]
                    assert woken == [electors[number + 1]], "a death wakes one candidate, not the herd"
                    assert len(electors[number + 1].sent) - sent[number + 1] <= 5
            assert epochs == sorted(set(epochs)), "epochs grow"

    asyncio.run(main())


def test_an_expired_leader_is_followed_and_stands_again_at_the_end(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with standing_in_turn(make_tree, 3) as (electors, _):
            first, second, third = electors
            epoch, session_id = first.role.epoch, first.tree.session_id
            await first.session.expire()
            await eventually(lambda: second.role.may_award)
            assert second.role.epoch is not None
            assert epoch is not None
            assert second.role.epoch > epoch
            await eventually(lambda: not first.role.leads and first.role._watched)
            assert first.tree.session_id != session_id
            assert first.role._watched == third.role._candidate, "it queues behind the last"
            assert not third.role.leads
            names = await third.session.client.children(DIRECTORY)
            assert sorted(name.split(".")[0] for name in names) == ["n7", "n8", "n9"]

    asyncio.run(main())


def test_a_leader_that_hangs_past_its_session_is_followed_and_its_epoch_is_older(make_tree: MakeTree) -> None:
    """What kill -9, a power cut or a long pause looks like from outside: nothing more is heard of the leader."""

    async def main() -> None:
        async with make_tree(shaky=True, session_timeout_s=1.0) as s, make_tree() as t:
            old = Elector(s, "old")
            await eventually(lambda: old.role.may_award)
            new = Elector(t, "new")
            await eventually(lambda: new.role._watched)
            began = asyncio.get_running_loop().time()
            s.disconnect()
            await eventually(lambda: not old.role.may_award)
            assert old.role.leads, "for all it knows"
            await eventually(lambda: new.role.may_award)
            took = asyncio.get_running_loop().time() - began
            assert took < 5.0, "1 s of session, ticks of the server, and a slow machine"
            assert new.role.epoch is not None
            assert old.role.epoch is not None
            assert new.role.epoch > old.role.epoch
            assert not old.role.may_award
            s.reconnect()
            await eventually(lambda: not old.role.leads and old.role._watched)
            assert new.role.may_award

    asyncio.run(main())


def test_a_connection_lost_and_found_keeps_leader_and_epoch(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as t:
            elector = Elector(s, "n1")
            await eventually(lambda: elector.role.may_award)
            other = Elector(t, "n2")
            epoch = elector.role.epoch
            s.disconnect()
            await eventually(lambda: not elector.role.may_award)
            assert (elector.role.leads, elector.role.epoch) == (True, epoch)
            elector.update(b"while away")
            s.reconnect()
            await eventually(lambda: elector.role.may_award)
            assert elector.role.epoch == epoch
            await eventually(lambda: elector.role._written == b"while away")
            assert (await t.client.get(LEADER)).data == b"while away"
            assert not other.role.leads

    asyncio.run(main())


@pytest.mark.parametrize("lost", ["candidate", "leader"])
def test_a_create_whose_reply_is_lost_is_found_again(make_tree: MakeTree, lost: str) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as observer:
            await observer.client.ensure(DIRECTORY)
            where = LEADER if lost == "leader" else DIRECTORY
            submit = s.tree.submit

            def spy(op: Op, done: Callable[[Outcome], None]) -> None:
                if isinstance(op, Create) and op.path.startswith(where):
                    s.lose_replies()
                submit(op, done)

            s.tree.submit = spy
            elector = Elector(s, "n1")
            while await observer.client.exists(LEADER) is None and not (
                lost == "candidate" and await observer.client.children(DIRECTORY)
            ):
                await asyncio.sleep(0.001)
            s.tree.submit = submit
            made = await observer.client.children(DIRECTORY)
            assert len(made) == 1
            assert (await observer.client.exists(LEADER) is not None) == (lost == "leader")
            assert not elector.role.may_award
            s.drop()
            await eventually(lambda: elector.role.may_award)
            assert await observer.client.children(DIRECTORY) == made, "found, not made twice"
            got = await observer.client.get(LEADER)
            assert (got.stat.czxid, got.stat.owner) == (elector.role.epoch, s.tree.session_id)
            assert s.states() == [SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.CONNECTED]

    asyncio.run(main())


def test_a_flapping_network_leaves_one_candidate_each_and_one_leader(server: Server) -> None:
    async def main(proxy: Proxy) -> None:
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(server_session(proxy.hosts)) for _ in range(5)]
            electors = [Elector(session, f"n{n}") for n, session in enumerate(sessions)]
            for round_ in range(10):
                swallowed = proxy.swallowed_bytes
                proxy.swallow_replies = round_ % 2 == 0
                for elector in electors:
                    elector.update(b"%d" % round_)
                if proxy.swallow_replies and any(elector.role._token for elector in electors):
                    await asyncio.to_thread(wait_until, lambda before=swallowed: proxy.swallowed_bytes > before)
                proxy.cut()
                await eventually(lambda: all(each.tree.state is SessionState.CONNECTED for each in electors))
            await eventually(lambda: sum(each.role.may_award for each in electors) == 1)
            await eventually(lambda: sum(bool(each.role._watched) for each in electors) == 4)
            (leader,) = [each for each in electors if each.role.leads]
            await eventually(lambda: leader.role._written == b"9")
            names = await leader.session.client.children(DIRECTORY)
            assert sorted(name.split(".")[0] for name in names) == [f"n{n}" for n in range(5)]
            assert (await leader.session.client.get(LEADER)).data == b"9"

    with Proxy((LOCAL, server.port)) as proxy:
        asyncio.run(main(proxy))


def test_resigning_hands_over_at_once_and_leaves_nothing(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with standing_in_turn(make_tree, 3) as (electors, _):
            first, second, third = electors
            third.resign()
            first.resign()
            await eventually(lambda: first.role.resigned and third.role.resigned and second.role.may_award)
            (name,) = await second.session.client.children(DIRECTORY)
            assert name.startswith("n8.")
            second.resign()
            await eventually(lambda: second.role.resigned)
            assert await first.session.client.children(DIRECTORY) == ()
            assert await first.session.client.exists(LEADER) is None

    asyncio.run(main())


def test_a_leader_znode_deleted_by_hand_comes_back_with_the_next_hint(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with standing_in_turn(make_tree, 2) as (electors, _):
            leader, other = electors
            epoch = leader.role.epoch
            await other.session.client.delete(LEADER)
            leader.update(b"load 2")
            await eventually(lambda: leader.role.leads and leader.role.epoch != epoch)
            assert (await other.session.client.get(LEADER)).data == b"load 2"
            assert not other.role.leads

    asyncio.run(main())
