"""What every Tree does: each operation, each error, versions, transactions. See test_tree_sessions.py for the rest.

The suite knows a tree by the fixture `make_tree` alone: a factory of sessions (tests.zookeeper.Session).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from tests.contract.conftest import MakeTree
from tests.zookeeper import Session, eventually
from zk import paths
from zk.tree import (
    MAX_DATA_BYTES,
    BadVersion,
    Check,
    Checked,
    Children,
    Create,
    Created,
    Delete,
    Deleted,
    Exists,
    Get,
    MultiFailed,
    NodeExists,
    NoNode,
    NotEmpty,
    Outcome,
    Refused,
    SessionChanged,
    SessionState,
    Set,
    Written,
)


def in_session(make_tree: MakeTree, body: Callable[[Session], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        async with make_tree(**options) as session:
            await body(session)

    asyncio.run(main())


# --- one operation ------------------------------------------------------------------------------------------------


def test_opening_makes_the_roots_and_says_connected(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        for root in paths.ROOTS:
            assert await s.client.exists(root) is not None
        assert s.tree.state is SessionState.CONNECTED
        assert s.events == [SessionChanged(SessionState.CONNECTED, s.tree.session_id, s.tree.session_timeout_s)]
        assert s.tree.session_id != 0

    in_session(make_tree, body)


def test_create_then_get_returns_data_and_stat(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        made = await s.client.create("/a", b"one")
        assert made.path == "/a"
        assert made.stat is not None
        got = await s.client.get("/a")
        assert got.data == b"one"
        assert got.stat == made.stat
        assert (got.stat.version, got.stat.children, got.stat.owner) == (0, 0, 0)
        assert got.stat.czxid == got.stat.mzxid > 0
        assert got.stat.ctime_ms == got.stat.mtime_ms > 1_600_000_000_000
        await s.client.create("/a/empty")
        assert (await s.client.get("/a/empty")).data == b""
        assert (await s.client.get("/a")).stat.children == 1

    in_session(make_tree, body)


def test_create_errors(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        await s.client.create("/a")
        with pytest.raises(NodeExists) as exists:
            await s.client.create("/a")
        assert exists.value.path == "/a"
        with pytest.raises(NoNode) as parent:
            await s.client.create("/no/child")
        assert parent.value.path == "/no/child"
        await s.client.create("/e", ephemeral=True)
        with pytest.raises(Refused):
            await s.client.create("/e/child")

    in_session(make_tree, body)


def test_sequences_count_up_per_parent_and_keep_the_name(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        await s.client.create("/q")
        names = [(await s.client.create(f"/q/{name}-", sequence=True)).path for name in ("z", "a", "m")]
        assert names == ["/q/z-0000000000", "/q/a-0000000001", "/q/m-0000000002"]
        await s.client.delete(names[2])
        assert (await s.client.create("/q/z-", sequence=True)).path == "/q/z-0000000003"

    in_session(make_tree, body)


def test_set_raises_the_version_and_mzxid_and_honours_the_version(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        made = (await s.client.create("/a", b"0")).stat
        assert made is not None
        first = await s.client.set("/a", b"1")
        assert (first.version, first.czxid) == (1, made.czxid)
        assert first.mzxid > made.mzxid
        second = await s.client.set("/a", b"2", version=1)
        assert second.version == 2
        with pytest.raises(BadVersion) as bad:
            await s.client.set("/a", b"3", version=1)
        assert bad.value.path == "/a"
        with pytest.raises(NoNode):
            await s.client.set("/b", b"")
        assert (await s.client.get("/a")).data == b"2"

    in_session(make_tree, body)


def test_delete_and_its_errors(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        await s.client.create("/a")
        await s.client.create("/a/b")
        with pytest.raises(NotEmpty):
            await s.client.delete("/a")
        with pytest.raises(BadVersion):
            await s.client.delete("/a/b", version=3)
        await s.client.delete("/a/b", version=0)
        await s.client.delete("/a")
        with pytest.raises(NoNode):
            await s.client.delete("/a")
        assert await s.client.exists("/a") is None

    in_session(make_tree, body)


def test_reads_of_what_is_not_there(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        assert await s.client.exists("/none") is None
        with pytest.raises(NoNode):
            await s.client.get("/none")
        with pytest.raises(NoNode):
            await s.client.children("/none")

    in_session(make_tree, body)


def test_children_are_names_in_order(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        await s.client.create("/p")
        assert await s.client.children("/p") == ()
        for name in ("c", "a", "b"):
            await s.client.create(f"/p/{name}")
        assert await s.client.children("/p") == ("a", "b", "c")
        assert "members" in await s.client.children("/")

    in_session(make_tree, body)


def test_ensure_makes_missing_parents_once(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        await s.client.ensure("/x/y/z")
        made = await s.client.exists("/x/y/z")
        await s.client.ensure("/x/y/z")
        assert await s.client.exists("/x/y/z") == made is not None

    in_session(make_tree, body)


@pytest.mark.parametrize(
    "op",
    [
        Create("relative"),
        Get("/a//b"),
        Exists("/a/"),
        Children("/a/../b"),
        Delete("/a/./b"),
        Create("/line\nbreak"),
        Create("/half\ud800"),
        Create("/" + "x" * 2000),
        Create("/a", b"x" * (MAX_DATA_BYTES + 1)),
        Set("/a", b"", version=2**31),
    ],
    ids=lambda op: f"{type(op).__name__} {op.path[:12]!a}",
)
def test_malformed_operations_are_refused_and_cost_nothing(make_tree: MakeTree, op: Any) -> None:
    async def body(s: Session) -> None:
        outcomes: list[Outcome] = []
        sent = s.tree.operations
        s.tree.submit(op, outcomes.append)
        assert outcomes == [], "done must never be called from inside submit"
        await eventually(lambda: outcomes)
        assert isinstance(outcomes[0], Refused)
        assert outcomes[0].path == op.path
        assert "expected" in str(outcomes[0])
        assert s.tree.operations == sent
        assert len(s.events) == 1

    in_session(make_tree, body)


def test_the_largest_data_go_through(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        await s.client.create("/big", b"x" * MAX_DATA_BYTES)
        assert len((await s.client.get("/big")).data) == MAX_DATA_BYTES

    in_session(make_tree, body)


def test_operations_are_counted_by_kind(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        before = s.tree.operations
        await s.client.create("/a")
        await s.client.get("/a")
        await s.client.exists("/a")
        await s.client.children("/a")
        await s.client.set("/a", b"")
        await s.client.multi(Delete("/a"))
        counted = {kind: count - before.get(kind, 0) for kind, count in s.tree.operations.items()}
        expected = dict.fromkeys(("create", "get", "exists", "children", "set", "multi"), 1)
        assert {kind: count for kind, count in counted.items() if count} == expected

    in_session(make_tree, body)


def test_outcomes_come_in_the_order_of_the_submits(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        order: list[int] = []

        def keep(number: int, outcome: Outcome) -> None:
            order.append(number)

        for number in range(300):  # more than the window
            op = Create(f"/n{number}") if number % 2 else Exists("/")
            s.tree.submit(op, partial(keep, number))
        await eventually(lambda: len(order) == 300)
        assert order == list(range(300))

    in_session(make_tree, body)


# --- transactions -------------------------------------------------------------------------------------------------


def test_multi_does_all_in_one_transaction(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        for path in ("/set", "/check", "/delete"):
            await s.client.create(path)
        done = await s.client.multi(
            Create("/new", b"n"), Set("/set", b"s"), Check("/check", 0), Delete("/delete"), Create("/q-", sequence=True)
        )
        created, written, checked, deleted, sequenced = done.results
        assert created == Created("/new", None)
        assert isinstance(written, Written)
        assert checked == Checked()
        assert deleted == Deleted()
        assert isinstance(sequenced, Created)
        assert sequenced.path.startswith("/q-")
        new = await s.client.get("/new")
        assert new.data == b"n"
        assert new.stat.czxid == written.stat.mzxid, "all of one Multi share one zxid"
        assert (await s.client.get(sequenced.path)).stat.czxid == written.stat.mzxid
        assert await s.client.exists("/delete") is None

    in_session(make_tree, body)


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (Create("/there"), NodeExists),
        (Create("/no/parent"), NoNode),
        (Set("/there", b"", 7), BadVersion),
        (Set("/none", b""), NoNode),
        (Delete("/full"), NotEmpty),
        (Delete("/there", 7), BadVersion),
        (Check("/there", 7), BadVersion),
        (Check("/none", 0), NoNode),
    ],
    ids=str,
)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_multi_does_nothing_when_one_fails(make_tree: MakeTree, bad: Any, cause: type, index: int) -> None:
    async def body(s: Session) -> None:
        for path in ("/there", "/full", "/full/child"):
            await s.client.create(path)
        ops: list[Any] = [Create("/one"), Set("/there", b"changed")]
        ops.insert(index, bad)
        with pytest.raises(MultiFailed) as failed:
            await s.client.multi(*ops)
        assert failed.value.index == index
        assert type(failed.value.cause) is cause
        assert failed.value.path == failed.value.cause.path == bad.path
        assert await s.client.exists("/one") is None
        assert (await s.client.get("/there")).data == b""

    in_session(make_tree, body)


def test_multi_sees_its_own_changes(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        await s.client.multi(Create("/p"), Create("/p/c"), Set("/p", b"1"), Check("/p", 1), Delete("/p/c"))
        assert (await s.client.get("/p")).data == b"1"
        assert await s.client.children("/p") == ()

    in_session(make_tree, body)


def test_a_multi_too_large_for_the_server_is_refused(make_tree: MakeTree) -> None:
    async def body(s: Session) -> None:
        with pytest.raises(Refused, match="1000000 bytes"):
            await s.client.multi(*(Create(f"/{n}", b"x" * MAX_DATA_BYTES) for n in range(4)))
        assert await s.client.exists("/0") is None

    in_session(make_tree, body)
