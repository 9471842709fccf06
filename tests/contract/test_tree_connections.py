"""What every Tree does when its connection is hurt: what is in doubt, what waits, when it is over, who is told."""

from __future__ import annotations

import asyncio

from tests.contract.conftest import MakeTree
from tests.zookeeper import Session, eventually
from zk.tree import ConnectionLost, Create, Created, Exists, Op, Outcome, SessionExpired, SessionState, Set

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST


def submit(session: Session, *ops: Op) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for op in ops:
        session.tree.submit(op, outcomes.append)
    return outcomes


async def seen(observer: Session, path: str) -> None:
    """Wait until that znode is there."""
    while await observer.client.exists(path) is None:
        await asyncio.sleep(0.001)


def test_while_the_connection_is_lost_calls_wait_and_the_session_goes_on(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as other:
            first = s.tree.session_id
            await s.client.create("/e", ephemeral=True)
            s.disconnect()
            await eventually(lambda: s.tree.state is SUSPENDED)
            sent = s.tree.operations
            waiting = submit(s, Create("/b"), Exists("/b"))
            assert s.tree.operations == sent, "nothing is sent while SUSPENDED"
            s.reconnect()
            await eventually(lambda: len(waiting) == 2)
            assert [type(outcome).__name__ for outcome in waiting] == ["Created", "Existed"]
            assert s.states() == [CONNECTED, SUSPENDED, CONNECTED]
            assert s.tree.session_id == first
            stat = await other.client.exists("/e")
            assert stat is not None
            assert stat.owner == first, "the ephemeral outlived it"

    asyncio.run(main())


def test_a_write_whose_reply_is_lost_is_done(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as other:
            await s.client.create("/a", b"0")
            s.lose_replies()
            outcomes = submit(s, Create("/e", ephemeral=True), Set("/a", b"1"), Exists("/"))
            await seen(other, "/e")
            assert outcomes == []
            s.drop()
            await eventually(lambda: len(outcomes) == 3)
            assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
            assert [outcome.path for outcome in outcomes] == ["/e", "/a", "/"]
            await eventually(lambda: s.tree.state is CONNECTED)
            stat = await s.client.exists("/e")
            assert stat is not None
            assert stat.owner == s.tree.session_id
            assert s.states() == [CONNECTED, SUSPENDED, CONNECTED]

    asyncio.run(main())


def test_calls_in_flight_are_answered_before_suspended_is_said_and_the_watches_after(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as other:
            await s.client.exists("/none", watch=True)
            s.lose_replies()
            said: list[object] = []
            s.tree.listen(said.append)
            s.tree.submit(Create("/a"), said.append)
            await seen(other, "/a")
            s.drop()
            await eventually(lambda: s.states()[1:] == [SUSPENDED, CONNECTED])
            assert [type(each).__name__ for each in said] == [
                "ConnectionLost",
                "SessionChanged",
                "WatchFired",
                "SessionChanged",
            ]

    asyncio.run(main())


def test_armed_watches_say_look_again_after_a_lost_connection_once(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as other:
            await s.client.exists("/none", watch=True)
            await s.client.children("/", watch=True)
            s.drop()
            await eventually(lambda: sorted(s.fired()) == ["/", "/none"])
            assert s.states()[:2] == [CONNECTED, SUSPENDED]
            await other.client.create("/none")
            await s.client.exists("/")
            assert len(s.fired()) == 2, "they were disarmed"
            await s.client.exists("/none", watch=True)
            await other.client.set("/none", b"1")
            await eventually(lambda: len(s.fired()) == 3)

    asyncio.run(main())


def test_a_session_that_ended_while_it_was_away_is_lost_when_it_comes_back(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as other:
            first = s.tree.session_id
            await s.client.create("/e", ephemeral=True)
            await other.client.exists("/e", watch=True)
            s.disconnect()
            await eventually(lambda: s.tree.state is SUSPENDED)
            waiting = submit(s, Create("/a", ephemeral=True), Exists("/"))
            await s.expire()
            await eventually(other.fired)
            assert await other.client.exists("/e") is None
            assert s.tree.state is SUSPENDED, "it has not been told"
            assert waiting == []
            s.reconnect()
            await eventually(lambda: len(waiting) == 2)
            assert [type(outcome) for outcome in waiting] == [SessionExpired] * 2
            await eventually(lambda: s.tree.state is CONNECTED)
            assert s.states() == [CONNECTED, SUSPENDED, LOST, CONNECTED]
            assert s.tree.session_id != first
            assert await s.client.exists("/a") is None

    asyncio.run(main())


def test_the_servers_end_a_session_after_its_timeout_and_not_before(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True, session_timeout_s=1.0) as s, make_tree() as other:
            loop = asyncio.get_running_loop()
            await s.client.create("/e", ephemeral=True)
            await other.client.exists("/e", watch=True)
            began = loop.time()
            s.disconnect()
            await eventually(other.fired)
            assert 0.6 <= loop.time() - began <= 5.0, "1 s after the last ping, which was a third of it ago at most"
            s.reconnect()
            await eventually(lambda: s.states() == [CONNECTED, SUSPENDED, LOST, CONNECTED])
            assert isinstance(await s.client._outcome(Create("/e", ephemeral=True)), Created)

    asyncio.run(main())


def test_closing_without_a_connection_is_quick_and_answers_what_waits(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s:
            s.disconnect()
            await eventually(lambda: s.tree.state is SUSPENDED)
            waiting = submit(s, Exists("/"))
        assert [type(outcome) for outcome in waiting] == [SessionExpired]
        assert s.states() == [CONNECTED, SUSPENDED]

    asyncio.run(main())
