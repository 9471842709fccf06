"""One top initiator at a time, on every Tree: who comes second hears who is there, and may take over."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from deploy.records import TopRecord
from deploy.top_lock import Held, hold, holder, release, take, this_process
from fabric.records import encode
from tests.contract.conftest import MakeTree
from zk import paths
from zk.client import TreeClient

ADDRESS = "tcp://127.0.0.1:1/" + "a" * 32
MINE = this_process("a" * 32, ADDRESS, "apply http://r/")
THEIRS = TopRecord("b" * 32, ADDRESS, "elsewhere", 17, 4, "apply http://q/")


def with_two(make_tree: MakeTree, body: Callable[[TreeClient, TreeClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with make_tree() as one, make_tree() as other:
            await body(one.client, other.client)

    asyncio.run(main())


def dead() -> TopRecord:
    """Of a process of this machine that has ended."""
    process = subprocess.run((sys.executable, "-c", "import os; print(os.getpid())"), capture_output=True, check=True)
    return TopRecord("c" * 32, ADDRESS, socket.gethostname(), int(process.stdout), 12345, "apply http://r/")


def test_the_second_one_is_refused_and_hears_who_is_there(make_tree: MakeTree) -> None:
    async def body(mine: TreeClient, theirs: TreeClient) -> None:
        assert await holder(mine) is None
        await take(theirs, THEIRS, over=False)
        assert await holder(mine) == THEIRS
        with pytest.raises(Held, match=r"process 17 on elsewhere, which does: apply http://q/") as held:
            await take(mine, MINE, over=False)
        assert held.value.record == THEIRS
        await release(mine, MINE)  # is not mine: nothing happens
        assert await holder(mine) == THEIRS
        await release(theirs, THEIRS)
        await take(mine, MINE, over=False)
        assert await holder(theirs) == MINE
        await take(mine, MINE, over=False)  # after a lost reply

    with_two(make_tree, body)


def test_taking_over_is_for_who_says_so_and_from_the_dead(make_tree: MakeTree) -> None:
    async def body(mine: TreeClient, theirs: TreeClient) -> None:
        await take(theirs, THEIRS, over=False)
        await take(mine, MINE, over=True)
        assert await holder(theirs) == MINE
        await release(mine, MINE)
        await take(theirs, dead(), over=False)
        assert await holder(mine) is None
        await take(mine, MINE, over=False)
        assert MINE.pid == os.getpid()
        assert await holder(theirs) == MINE

    with_two(make_tree, body)


def test_whoever_does_something_that_takes_long_to_say_is_the_top(make_tree: MakeTree) -> None:
    """A record that could not be read would be nobody's, and the next one would take it."""

    async def body(mine: TreeClient, theirs: TreeClient) -> None:
        await take(theirs, this_process("b" * 32, ADDRESS, f"apply http://r/{'x' * 1000}"), over=False)
        with pytest.raises(Held, match="which does: apply http://r/xxx"):
            await take(mine, MINE, over=False)

    with_two(make_tree, body)


def test_one_that_stays_makes_way_and_sees_that_it_did(make_tree: MakeTree) -> None:
    staying = msgspec.structs.replace(THEIRS, stays=True, doing="stays")

    async def body(mine: TreeClient, theirs: TreeClient) -> None:
        await take(theirs, THEIRS, over=False)
        assert await hold(theirs, staying)
        assert await holder(mine) == staying
        with pytest.raises(Held, match="which does: stays"):
            await take(mine, MINE, over=False, waits=True)  # who would stay, too
        assert await hold(theirs, staying)
        await take(mine, MINE, over=False)
        assert not await hold(theirs, staying)
        await release(mine, MINE)
        assert not await hold(theirs, staying), "somebody was the top meanwhile"
        assert await holder(mine) is None
        await take(theirs, staying, over=False, waits=True)
        assert await holder(mine) == staying

    with_two(make_tree, body)


def test_what_nobody_can_be_is_no_top(make_tree: MakeTree) -> None:
    async def body(mine: TreeClient, theirs: TreeClient) -> None:
        await theirs.create(paths.TOP, b"who?", ephemeral=True)
        assert await holder(mine) is None
        await take(mine, MINE, over=False)
        assert (await theirs.get(paths.TOP)).data == encode(MINE)

    with_two(make_tree, body)
