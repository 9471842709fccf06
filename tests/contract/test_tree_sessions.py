"""What every Tree does: ephemerals, watches, and the life and death of sessions. See test_tree.py for the rest."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from tests.contract.conftest import MakeTree
from tests.zookeeper import Session, eventually
from zk.tree import (
    Children,
    Create,
    Created,
    Delete,
    Existed,
    Exists,
    Get,
    Outcome,
    Overloaded,
    SessionChanged,
    SessionExpired,
    SessionState,
    Set,
)


async def settle(session: Session) -> None:
    """Whatever fires because of changes that were made before this call has fired after it."""
    await session.client.exists("/")


# --- ephemerals ---------------------------------------------------------------------------------------------------


def test_an_ephemeral_belongs_to_its_session_and_vanishes_when_it_closes(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree() as watcher:
            async with make_tree() as owner:
                made = await owner.client.create("/e", ephemeral=True)
                assert made.stat is not None
                assert made.stat.owner == owner.tree.session_id != watcher.tree.session_id
                await owner.client.multi(Create("/in-multi", ephemeral=True))
                assert await watcher.client.exists("/e", watch=True) is not None
            assert await watcher.client.exists("/e") is None, "closing ends the session before it returns"
            assert await watcher.client.exists("/in-multi") is None
            await eventually(lambda: watcher.fired() == ["/e"])

    asyncio.run(main())


def test_what_was_sent_before_the_close_is_done_and_answered(make_tree: MakeTree) -> None:
    async def main() -> None:
        outcomes: list[Outcome] = []
        async with make_tree() as other:
            async with make_tree() as s:
                for number in range(50):
                    s.tree.submit(Create(f"/n{number}"), outcomes.append)
            assert [type(outcome) for outcome in outcomes] == [Created] * 50
            assert await other.client.exists("/n49") is not None

    asyncio.run(main())


def test_after_close_every_call_is_refused_and_no_event_comes(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree() as s:
            pass
        assert len(s.events) == 1
        with pytest.raises(SessionExpired):
            await s.client.get("/")

    asyncio.run(main())


# --- watches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "change"),
    [
        (Get("/a", watch=True), Set("/a", b"x")),
        (Get("/a", watch=True), Delete("/a")),
        (Exists("/a", watch=True), Set("/a", b"x")),
        (Exists("/a", watch=True), Delete("/a")),
        (Exists("/new", watch=True), Create("/new")),
        (Children("/p", watch=True), Create("/p/c")),
        (Children("/p", watch=True), Delete("/p/old")),
    ],
    ids=str,
)
def test_a_watch_fires_once(make_tree: MakeTree, arm: Any, change: Any) -> None:
    async def main() -> None:
        async with make_tree() as watcher, make_tree() as other:
            for path in ("/a", "/p", "/p/old"):
                await other.client.create(path)
            await watcher.client._outcome(arm)
            await watcher.client._outcome(arm)  # armed twice, it still fires once
            assert watcher.fired() == []
            await other.client._outcome(change)
            await eventually(lambda: watcher.fired() == [arm.path])
            await other.client.ensure(arm.path)
            await other.client.set(arm.path, b"again")
            await other.client.create(f"{arm.path}/again")
            await settle(watcher)
            assert watcher.fired() == [arm.path]
            assert other.fired() == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arm", "change"),
    [
        (Get("/a"), Set("/a", b"x")),
        (Children("/p", watch=True), Set("/p", b"x")),
        (Children("/p", watch=True), Set("/p/old", b"x")),
        (Get("/p", watch=True), Create("/p/c")),
        (Get("/none", watch=True), Create("/none")),
    ],
    ids=str,
)
def test_a_watch_does_not_fire_for_other_changes(make_tree: MakeTree, arm: Any, change: Any) -> None:
    async def main() -> None:
        async with make_tree() as watcher, make_tree() as other:
            for path in ("/a", "/p", "/p/old"):
                await other.client.create(path)
            await watcher.client._outcome(arm)
            await other.client._outcome(change)
            await settle(watcher)
            assert watcher.fired() == []

    asyncio.run(main())


def test_a_watch_comes_before_the_answer_that_shows_the_change(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree() as watcher, make_tree() as other:
            await other.client.create("/a", b"0")
            await watcher.client.get("/a", watch=True)
            await other.client.set("/a", b"1")
            await eventually(lambda: watcher.fired())
            assert (await watcher.client.get("/a")).data == b"1"

    asyncio.run(main())


# --- sessions -----------------------------------------------------------------------------------------------------


def test_an_expired_session_is_lost_and_followed_by_a_new_one(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree() as s, make_tree() as other:
            first = s.tree.session_id
            await s.client.create("/e", ephemeral=True)
            await s.client.exists("/e", watch=True)
            await s.expire()
            await eventually(lambda: s.states()[-2:] == [SessionState.LOST, SessionState.CONNECTED])
            assert s.tree.session_id != first
            assert [e.session_id for e in s.events if isinstance(e, SessionChanged)] == [
                first,
                first,
                first,
                s.tree.session_id,
            ]
            assert s.states()[1:3] == [SessionState.SUSPENDED, SessionState.LOST]
            await eventually(lambda: "/e" in s.fired(), what="armed watches say: look again")
            assert await other.client.exists("/e") is None
            again = await s.client.create("/e", ephemeral=True)
            assert again.stat is not None
            assert again.stat.owner == s.tree.session_id
            assert (await s.client.exists("/e")) == Existed(again.stat).stat

    asyncio.run(main())


def test_no_operation_crosses_into_the_next_session(make_tree: MakeTree) -> None:
    """Ephemerals named by the session that asked for them, while sessions expire: none may belong to another one."""

    async def main() -> None:
        async with make_tree() as s, make_tree() as other:
            await other.client.create("/mine")
            outcomes: list[Outcome] = []
            going = True

            def ask(outcome: Outcome | None = None) -> None:
                if outcome is not None:
                    outcomes.append(outcome)
                if going and s.tree.state is not SessionState.LOST:
                    s.tree.submit(Create(f"/mine/{s.tree.session_id}-", ephemeral=True, sequence=True), ask)

            def made() -> int:
                return sum(isinstance(outcome, Created) for outcome in outcomes)

            for round_ in range(1, 5):
                session_id = s.tree.session_id
                for _ in range(20):
                    ask()
                await eventually(lambda enough=100 * round_: made() >= enough)  # type: ignore[misc]
                await s.expire()
                await eventually(partial(has_new_session, s, session_id))
            going = False
            await settle(s)
            assert sum(isinstance(outcome, SessionExpired) for outcome in outcomes) > 0
            for name in await other.client.children("/mine"):
                stat = await other.client.exists(f"/mine/{name}")
                assert stat is None or stat.owner == int(name.rsplit("-", 1)[0])

    asyncio.run(main())


def has_new_session(session: Session, old: int) -> bool:
    return session.tree.state is SessionState.CONNECTED and session.tree.session_id != old


def test_more_waiting_calls_than_the_bound_are_overload(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(window=4, max_waiting=16) as s:
            outcomes: list[Outcome] = []
            for _ in range(30):
                s.tree.submit(Exists("/"), outcomes.append)
            await eventually(lambda: len(outcomes) == 30)
            assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 30 - 4 - 16
            assert isinstance(await s.client._outcome(Exists("/")), Existed)

    asyncio.run(main())
