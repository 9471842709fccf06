"""The directory on every Tree: stubs from three sides, tables with one owner at a time, replies that are lost, and
what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.directory import Claim, Directory, Fenced, NameTaken, Unreadable
from deploy.directory.pages import ROWS_PER_PAGE
from deploy.records import StubRecord, Table
from fabric.records import BadRecord
from tests.contract.conftest import MakeTree
from tests.deployment import guid_of, row, stub_record, table
from tests.zookeeper import Session, eventually
from zk import paths
from zk.client import TreeClient
from zk.tree import Create, Delete, Multi, Op, Outcome, SessionState, Set

SITE, RACK = "/site", "/site/r1"


def with_directory(make_tree: MakeTree, body: Callable[[Session, Directory], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with make_tree() as session:
            await body(session, Directory(session.client))

    asyncio.run(main())


class LosesReply(TreeClient):
    """The reply to the first operation of this kind is lost, and those that follow until the connection breaks."""

    def __init__(self, session: Session, kind: type[Op]) -> None:
        super().__init__(session.tree)
        self.session: Any = session
        self.kind: type[Op] | None = kind

    async def _outcome(self, op: Op) -> Outcome:
        if self.kind is type(op):
            self.kind = None
            self.session.lose_replies()
        return await super()._outcome(op)


def with_lost_reply(
    make_tree: MakeTree,
    kind: type[Op],
    prepare: Callable[[Directory], Coroutine[Any, Any, Any]],
    step: Callable[[Directory, Any], Coroutine[Any, Any, Any]],
    happened: Callable[[Session], Coroutine[Any, Any, bool]],
    check: Callable[[Directory, Any], Coroutine[Any, Any, None]],
) -> None:
    """`step`, of which the first operation of `kind` happens and its reply is lost; `happened` sees that from another
    session."""

    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as other:
            given = await prepare(Directory(s.client))
            under_way = asyncio.ensure_future(step(Directory(LosesReply(s, kind)), given))
            while not await happened(other):
                await asyncio.sleep(0.001)
            assert not under_way.done()
            s.drop()
            await eventually(lambda: s.tree.state is SessionState.CONNECTED)
            await check(Directory(other.client), await under_way)

    asyncio.run(main())


def operations(session: Session) -> int:
    return sum(session.tree.operations.values())


async def claimed(directory: Directory, path: str, owner: str = "one") -> Claim:
    wanted = table(path, owner=owner)
    return await directory.tables.claim(path, wanted.guid, wanted.address)


# --- stubs ----------------------------------------------------------------------------------------------------------


def test_a_stub_registers_with_one_write_and_is_found(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        one, two = stub_record("r1c01"), stub_record("r2c01", domain="/site/r2")
        assert (await directory.stubs.register(two)).record == two
        await s.client.ensure(paths.stub("r1c01").rpartition("/")[0])
        before = operations(s)
        assert (await directory.stubs.register(one)).replaced is None
        assert operations(s) == before + 1
        assert await directory.stubs.get("r1c01") == one
        assert (await directory.stubs.all()).records == (one, two)
        assert (await directory.stubs.all("/site/r2")).records == (two,)
        assert (await directory.stubs.all("/site/r")).records == ()

    with_directory(make_tree, body)


def test_where_nothing_was_ever_registered_nothing_is_found(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        assert (await directory.stubs.all()).records == ()
        assert await directory.stubs.get("r1c01") is None
        assert await directory.stubs.remove("r1c01") is False
        assert await directory.tables.load(SITE) is None
        assert [one async for one in directory.tables.walk()] == []
        await directory.tables.drop(SITE)

    with_directory(make_tree, body)


def test_a_shard_that_somebody_removed_is_made_again(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        await directory.stubs.register(stub_record("r1c01"))
        await directory.stubs.remove("r1c01")
        await s.client.delete(paths.stub("r1c01").rpartition("/")[0])
        assert (await directory.stubs.all()).records == ()
        await directory.stubs.register(stub_record("r1c01"))
        assert (await directory.stubs.all()).records == (stub_record("r1c01"),)

    with_directory(make_tree, body)


def test_a_newer_incarnation_replaces_the_address_and_says_whom(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        old = stub_record("r1c01")
        new = replace(old, guid=guid_of("new"), address="tcp://192.0.2.40:5/" + guid_of("new"))
        assert (await directory.stubs.register(old)).change == "new"
        again = await directory.stubs.register(old)
        assert (again.replaced, again.change) == (None, "same"), "its own reply may have been lost"
        later = await directory.stubs.register(new)
        assert (later.replaced, later.change) == (old, "changed")
        assert await directory.stubs.get("r1c01") == new

    with_directory(make_tree, body)


def test_what_an_operator_listed_stays_and_is_completed_by_the_stub(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        listed = StubRecord("r1c01", "", RACK, "", "", 0, "operator")
        await directory.stubs.register(listed)
        told = await directory.stubs.register(stub_record("r1c01", domain=""))
        assert told.record == stub_record("r1c01", domain=RACK, by="operator")
        assert told.replaced is None
        moved = await directory.stubs.register(replace(listed, domain="/site/r2"))
        assert moved.record == stub_record("r1c01", domain="/site/r2", by="operator"), "its address is kept"
        assert (await directory.stubs.register(stub_record("r1c01"))).record.domain == RACK, "it says so itself"
        assert await directory.stubs.remove("r1c01") is True
        assert await directory.stubs.get("r1c01") is None

    with_directory(make_tree, body)


def test_two_machines_with_one_name_the_one_that_answers_keeps_it(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        first = stub_record("web", host="a")
        second = replace(first, guid=guid_of("b"), address="tcp://192.0.2.41:1/" + guid_of("b"), host="b")
        await directory.stubs.register(first)
        asked: list[StubRecord] = []

        async def answers(record: StubRecord) -> bool:
            asked.append(record)
            return len(asked) == 1

        with pytest.raises(NameTaken, match=r"on b .* on a .*, which answers"):
            await directory.stubs.register(second, alive=answers)
        assert await directory.stubs.get("web") == first
        assert (await directory.stubs.register(second, alive=answers)).replaced == first
        assert await directory.stubs.get("web") == second
        assert asked == [first, first]

    with_directory(make_tree, body)


def test_a_garbled_stub_spoils_nothing_else(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        await directory.stubs.register(stub_record("r1c01"))
        await directory.stubs.register(stub_record("r1c02"))
        await s.client.set(paths.stub("r1c02"), b'{"name": "r1c02"}')
        found = await directory.stubs.all()
        assert [record.name for record in found.records] == ["r1c01"]
        assert [one.what for one in found.unreadable] == ["r1c02"]
        for call in (directory.stubs.get("r1c02"), directory.stubs.register(stub_record("r1c02"))):
            with pytest.raises(BadRecord, match=f"{paths.stub('r1c02')}: expected a StubRecord"):
                await call
        assert await directory.stubs.remove("r1c02")

    with_directory(make_tree, body)


def test_thousands_of_stubs_are_listed_with_one_read_each(make_tree: MakeTree) -> None:
    count = 2000

    async def body(s: Session, directory: Directory) -> None:
        records = [stub_record(f"r{number // 40}c{number % 40:02d}") for number in range(count)]
        await directory.stubs.register(records[0])
        await asyncio.gather(*(directory.stubs.register(record) for record in records))
        before = operations(s)
        found = await directory.stubs.all()
        assert operations(s) - before <= count + paths.SHARDS + 1
        assert len(found.records) == count
        shards = await s.client.children(paths.STUBS)
        sizes = [len(await s.client.children(f"{paths.STUBS}/{shard}")) for shard in shards]
        assert max(sizes) < 6 * count / paths.SHARDS

    with_directory(make_tree, body)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_claim_intent_and_outcomes_are_three_operations(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        await s.client.ensure(paths.table(RACK).rpartition("/")[0])
        before = operations(s)
        claim = await claimed(directory, RACK)
        assert claim.table == replace(table(RACK), rollout="", repository="")
        wanted = table(RACK, 10)
        intent = await directory.tables.save(claim, wanted)
        outcomes = replace(
            wanted, children=tuple(replace(one, outcome="failed", reason="no") for one in wanted.children)
        )
        final = await directory.tables.save(intent, outcomes)
        assert operations(s) == before + 3
        assert (claim.epoch, intent.epoch) == (final.epoch, final.epoch)
        assert [claim.version, intent.version, final.version] == [0, 1, 2]
        assert await directory.tables.load(RACK) == outcomes

    with_directory(make_tree, body)


def test_a_later_claim_has_a_higher_epoch_and_fences_the_earlier(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        first = await directory.tables.save(await claimed(directory, RACK), table(RACK, 3))
        second = await claimed(directory, RACK, "two")
        assert second.epoch > first.epoch
        assert second.table == table(RACK, 3, "two"), "what the first left"
        for claim in (first, first):
            with pytest.raises(Fenced, match=f"found that of {guid_of('two')}"):
                await directory.tables.save(claim, table(RACK, 4))
        with pytest.raises(Fenced):
            await directory.tables.drop(RACK, first)
        third = await directory.tables.save(second, table(RACK, 4, "two"))
        assert await directory.tables.load(RACK) == table(RACK, 4, "two")
        again = await claimed(directory, RACK, "two")
        assert again.epoch > third.epoch, "the same incarnation too gets another"
        await directory.tables.drop(RACK, again)
        with pytest.raises(Fenced, match="removed"):
            await directory.tables.save(again, table(RACK, 4, "two"))
        assert await directory.tables.load(RACK) is None

    with_directory(make_tree, body)


def test_of_many_that_claim_at_once_the_last_one_has_it(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        owners = [f"owner {number}" for number in range(6)]
        claims = await asyncio.gather(*(claimed(directory, RACK, owner) for owner in owners))
        assert len({claim.epoch for claim in claims}) == len(claims)
        last = max(claims, key=lambda claim: claim.epoch)
        for claim in claims:
            if claim is not last:
                with pytest.raises(Fenced):
                    await directory.tables.save(claim, claim.table)
        await directory.tables.save(last, last.table)

    with_directory(make_tree, body)


def test_the_top_has_a_table_too_and_a_walk_follows_the_initiators(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        racks = [row(number, name=f"r{number}", initiator=True) for number in range(3)]
        tables = {
            "": table("", children=(row(0, name="site", initiator=True),)),
            SITE: table(SITE, children=(*racks, row(9, initiator=True, name="not-yet"))),
            **{f"{SITE}/r{number}": table(f"{SITE}/r{number}", 4) for number in range(3)},
        }
        for path, wanted in tables.items():
            await directory.tables.save(await claimed(directory, path), wanted)
        assert [one async for one in directory.tables.walk()] == list(tables.values())
        assert [one async for one in directory.tables.walk(RACK)] == [tables[RACK]]
        await s.client.set(paths.table(RACK), b"z1garbage")
        found = [one async for one in directory.tables.walk()]
        assert [one.path for one in found if isinstance(one, Table)] == ["", SITE, f"{SITE}/r0", f"{SITE}/r2"]
        assert [one.what for one in found if isinstance(one, Unreadable)] == [RACK]

    with_directory(make_tree, body)


def test_a_garbled_table_is_said_and_left_alone_until_it_is_dropped(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        claim = await directory.tables.save(await claimed(directory, RACK), table(RACK, 3 * ROWS_PER_PAGE))
        page = paths.table_page(RACK, 2)
        await s.client.set(page, b"[]")
        for call in (claimed(directory, RACK, "two"), directory.tables.load(RACK)):
            with pytest.raises(BadRecord, match=f"{page}: expected a Page"):
                await call
        await s.client.delete(page)
        with pytest.raises(BadRecord, match="expected 2 pages below it, found 1"):
            await directory.tables.load(RACK)
        await s.client.set(paths.table(RACK), b"?")
        with pytest.raises(BadRecord, match=f"{paths.table(RACK)}: expected a Head"):
            await claimed(directory, RACK, "two")
        with pytest.raises(BadRecord):
            await directory.tables.drop(RACK, claim)
        await directory.tables.drop(RACK)
        assert await s.client.exists(paths.table(RACK)) is None
        assert (await claimed(directory, RACK, "two")).table.children == ()

    with_directory(make_tree, body)


def test_a_large_table_is_pages_of_which_a_change_writes_one(make_tree: MakeTree) -> None:
    async def body(s: Session, directory: Directory) -> None:
        wanted = table(SITE, 5000)
        claim = await directory.tables.save(await claimed(directory, SITE), wanted)
        pages = await s.client.children(paths.table(SITE))
        assert len(pages) == -(-5000 // ROWS_PER_PAGE) - 1
        stat = {page: await s.client.exists(f"{paths.table(SITE)}/{page}") for page in pages}
        assert await directory.tables.load(SITE) == wanted
        changed = replace(
            wanted, children=(*wanted.children[:3000], row(3000, outcome="failed"), *wanted.children[3001:])
        )
        before = operations(s)
        claim = await directory.tables.save(claim, changed)
        assert operations(s) == before + 1
        now = {page: await s.client.exists(f"{paths.table(SITE)}/{page}") for page in pages}
        assert [page for page in pages if stat[page] != now[page]] == [f"{3000 // ROWS_PER_PAGE:03d}"]
        successor = await claimed(directory, SITE, "two")
        assert successor.table == replace(changed, guid=guid_of("two"), address=successor.table.address)
        few = table(SITE, 20, "two")
        successor = await directory.tables.save(successor, few)
        assert await s.client.children(paths.table(SITE)) == ()
        successor = await directory.tables.save(successor, table(SITE, 300, "two"))
        before = operations(s)
        await directory.tables.drop(SITE, successor)
        assert operations(s) == before + 1
        assert await s.client.exists(paths.table(SITE)) is None

    with_directory(make_tree, body)


def test_a_reader_sees_a_table_as_it_was_before_a_save_or_after(make_tree: MakeTree) -> None:
    """One that is slower than the owner's saves reads again."""

    async def body(s: Session, directory: Directory) -> None:
        wanted = table(SITE, 2 * ROWS_PER_PAGE)
        claim = await directory.tables.save(await claimed(directory, SITE), wanted)
        for turn in range(5):
            half = replace(wanted, children=wanted.children[turn::2])
            claim, found = await asyncio.gather(directory.tables.save(claim, half), directory.tables.load(SITE))
            assert found is not None
            assert found in (wanted, half)
            wanted = half

    with_directory(make_tree, body)


# --- replies that are lost ------------------------------------------------------------------------------------------


def test_a_registration_whose_reply_is_lost_is_there_once(make_tree: MakeTree) -> None:
    record = stub_record("r1c01")

    async def prepare(directory: Directory) -> None:
        await directory.stubs.register(record)
        await directory.stubs.remove("r1c01")

    async def happened(other: Session) -> bool:
        return await other.client.exists(paths.stub("r1c01")) is not None

    async def check(directory: Directory, result: Any) -> None:
        assert (result.record, result.replaced) == (record, None)
        assert (await directory.stubs.all()).records == (record,)

    with_lost_reply(make_tree, Create, prepare, lambda directory, _: directory.stubs.register(record), happened, check)


def test_a_removal_whose_reply_is_lost_was_one(make_tree: MakeTree) -> None:
    async def happened(other: Session) -> bool:
        return await other.client.exists(paths.stub("r1c01")) is None

    async def check(directory: Directory, result: Any) -> None:
        assert result is True

    with_lost_reply(
        make_tree,
        Delete,
        lambda directory: directory.stubs.register(stub_record("r1c01")),
        lambda directory, _: directory.stubs.remove("r1c01"),
        happened,
        check,
    )


@pytest.mark.parametrize("kind", [Create, Set])
def test_a_claim_whose_reply_is_lost_is_made(make_tree: MakeTree, kind: type[Op]) -> None:
    async def prepare(directory: Directory) -> None:
        claim = await claimed(directory, RACK, "other")
        if kind is Create:
            await directory.tables.drop(RACK, claim)

    async def happened(other: Session) -> bool:
        found = await Directory(other.client).tables.load(RACK)
        return found is not None and found.guid == guid_of("one")

    async def check(directory: Directory, claim: Claim) -> None:
        there = await directory.tables.load(RACK)
        assert there == claim.table
        await directory.tables.save(claim, table(RACK, 3))

    with_lost_reply(make_tree, kind, prepare, lambda directory, _: claimed(directory, RACK), happened, check)


@pytest.mark.parametrize("rows", [10, 6000])
def test_a_save_whose_reply_is_lost_is_not_fenced_by_itself(make_tree: MakeTree, rows: int) -> None:
    """6,000 rows that don't pack well take several transactions, of which the first may be in doubt."""
    children = tuple(
        row(number, reason="".join(guid_of(f"{number}{part}") for part in range(8))) for number in range(rows)
    )
    wanted = table(RACK, children=children)

    async def happened(other: Session) -> bool:
        stat = await other.client.exists(paths.table(RACK))
        return stat is not None and stat.version > 0

    async def check(directory: Directory, claim: Claim) -> None:
        assert await directory.tables.load(RACK) == wanted
        assert claim.version >= (1 if rows == 10 else 3), "one transaction, or several"
        after = await directory.tables.save(claim, table(RACK, 5))
        assert after.version == claim.version + 1
        assert await directory.tables.load(RACK) == table(RACK, 5)

    with_lost_reply(
        make_tree,
        Set if rows == 10 else Multi,
        lambda directory: claimed(directory, RACK),
        lambda directory, claim: directory.tables.save(claim, wanted),
        happened,
        check,
    )


def test_a_save_whose_reply_is_lost_before_another_claims_is_fenced(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s, make_tree() as other:
            mine, theirs = Directory(s.client), Directory(other.client)
            claim = await claimed(mine, RACK)
            s.lose_replies()
            under_way = asyncio.ensure_future(mine.tables.save(claim, table(RACK, 3)))
            while (found := await theirs.tables.load(RACK)) is None or not found.children:
                await asyncio.sleep(0.001)
            successor = await claimed(theirs, RACK, "two")
            assert len(successor.table.children) == 3
            s.drop()
            with pytest.raises(Fenced):
                await under_way

    asyncio.run(main())


def test_a_drop_whose_reply_is_lost_is_done(make_tree: MakeTree) -> None:
    async def prepare(directory: Directory) -> Claim:
        return await directory.tables.save(await claimed(directory, RACK), table(RACK, 300))

    async def happened(other: Session) -> bool:
        return await other.client.exists(paths.table(RACK)) is None

    async def check(directory: Directory, result: Any) -> None:
        assert await directory.tables.load(RACK) is None

    with_lost_reply(
        make_tree, Multi, prepare, lambda directory, claim: directory.tables.drop(RACK, claim), happened, check
    )


def test_during_an_outage_calls_wait_and_go_on(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree(shaky=True) as s:
            directory = Directory(s.client)
            claim = await claimed(directory, RACK)
            s.disconnect()
            await eventually(lambda: s.tree.state is SessionState.SUSPENDED)
            under_way = asyncio.ensure_future(directory.tables.save(claim, table(RACK, 3)))
            s.reconnect()
            assert (await under_way).version == 1

    asyncio.run(main())


def test_a_session_that_is_over_does_not_end_a_claim(make_tree: MakeTree) -> None:
    async def main() -> None:
        async with make_tree() as s:
            directory = Directory(s.client)
            claim = await claimed(directory, RACK)
            await s.expire()
            await eventually(lambda: SessionState.LOST in s.states())
            assert (await directory.tables.save(claim, table(RACK, 3))).version == 1

    asyncio.run(main())
