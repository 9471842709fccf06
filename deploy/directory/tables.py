"""The managent topology model (HPL-2001-321, section 2.3): one table an initiator, a row for each of its children.

Theory of operation. An initiator *claims* its table: it writes itself into the head, and the zxid of that transaction
is its **epoch**, larger than any before. Each save names the version that it replaces, so whoever lost its table to a
later claim is `Fenced` at its next save. Claim, intent, outcomes: three operations for a deployment of any number of
children that fit one transaction (deploy.directory.pages says how many that are).

A lost reply is no case of its own. With an owner's guid only that owner writes: so if the head has another guid, the
table is lost, and if it has the same, whatever moved the version on was a save whose reply was lost: what is there is
read, and what is still missing is written under the new version.

A table that somebody wrote by hand and got wrong is a BadRecord for those who ask for it alone, and an `Unreadable` in
a walk; nothing is written over it. `drop` removes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import msgspec

from deploy.directory.access import Access, in_turn
from deploy.directory.pages import (
    Batch,
    Head,
    Layout,
    Page,
    changes,
    empty_head,
    encoded,
    head_of,
    in_order,
    joined,
    page_of,
)
from deploy.directory.stubs import Unreadable
from deploy.identity import TOP, BadIdentity, join
from deploy.records import Table
from fabric.records import BadRecord
from zk import paths
from zk.tree import BadVersion, Create, Delete, MultiFailed, NodeExists, NoNode, NotEmpty, Set, Written

TABLES_AT_ONCE = 64


class Fenced(Exception):
    """The table is another's now, or gone: whoever asked must not command its children any more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A table in the hands of its owner. `table`: as it is in the directory, with this owner. `version`: what the next
    save replaces."""

    epoch: int
    version: int
    table: Table
    layout: Layout

    @property
    def path(self) -> str:
        return self.table.path


class TableDirectory:
    """Every method may raise the TreeErrors that any operation may (after some tries), besides what it says."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._client = access.client
        self._loads = asyncio.Semaphore(TABLES_AT_ONCE)

    # --- for the owner --------------------------------------------------------------------------------------------

    async def claim(self, path: str, guid: str, address: str) -> Claim:
        """Take the table of the initiator at `path`, whoever has it: one operation when there is none. `guid`: of the
        claimer's incarnation. Raises BadRecord when what is there can't be read; it is left as it is then."""
        znode = paths.table(path)
        fresh = Table(path, guid, address, "")

        async def once() -> Claim:
            try:
                stat = await self._access.create(znode, empty_head(fresh))
                return Claim(stat.mzxid, stat.version, fresh, Layout())
            except NodeExists:
                pass
            got = await self._client.get(znode)
            # After a lost reply it may be mine already. Its epoch has not been used: claimed again, it gets another.
            head = msgspec.structs.replace(head_of(got.data, path), guid=guid, address=address)
            stat = await self._client.set(znode, encoded(head), got.stat.version)
            return Claim(stat.mzxid, stat.version, *await self._whole(head))

        return await self._access.settled(once, NoNode, BadVersion)

    async def save(self, claim: Claim, table: Table) -> Claim:
        """Write what changed; returns the claim to save under next. After a TreeError the same claim may be used again:
        what was done of it is found. Raises Fenced, and ValueError for a table that none can be."""
        if (table.path, table.guid) != (claim.path, claim.table.guid):
            raise ValueError(
                f"save: expected table {claim.path!r} of {claim.table.guid}, found {table.path!r} of {table.guid}"
            )
        wanted = msgspec.structs.replace(table, children=in_order(table.children))
        version, layout, sure = claim.version, claim.layout, True

        async def once() -> Claim:
            nonlocal version, layout, sure
            if not sure:
                there, layout, version = await self._mine(claim)
                if there == wanted:
                    return Claim(claim.epoch, version, wanted, layout)
            after, batches = changes(wanted, layout)
            for batch in batches:
                sure = False  # until all is done: of several transactions, the first may have been
                version = await self._write(_transaction(claim.path, batch, version, len(layout.pages)))
            return Claim(claim.epoch, version, wanted, after)

        return await self._access.settled(once, NoNode, BadVersion, NodeExists)

    async def drop(self, path: str, claim: Claim | None = None) -> None:
        """Remove a table; nothing happens when there is none. With a `claim`, only while it holds: raises Fenced.
        Without one, whatever is there goes, readable or not."""
        znode = paths.table(path)
        known = claim

        async def once() -> None:
            nonlocal known
            guess, known = known, None
            if guess is not None:  # one operation, if nothing has changed
                below = [paths.table_page(path, number) for number in range(1, len(guess.layout.pages))]
                version = guess.version
            else:
                try:
                    got = await self._client.get(znode)
                except NoNode:
                    return
                if claim is not None:
                    _check_mine(head_of(got.data, path), claim)
                names = await self._client.children(znode) if got.stat.children else ()
                below, version = [f"{znode}/{name}" for name in names], got.stat.version
            await self._write([*(Delete(page) for page in below), Delete(znode, version)])

        await self._access.settled(once, NoNode, BadVersion, NotEmpty)

    # --- for everybody ----------------------------------------------------------------------------------------------

    async def load(self, path: str) -> Table | None:
        """As it is, for those who do not own it. Raises BadRecord."""
        znode = paths.table(path)

        async def once() -> Table | None:
            try:
                got = await self._client.get(znode)
                head = head_of(got.data, path)
                further = await self._further(head)
                # Written meanwhile: pages of two times may lack a row that was on the move.
                if further:
                    stat = await self._client.exists(znode)
                    if stat is None or stat.version != got.stat.version:
                        raise BadVersion(znode, "it changes faster than it can be read")
                return joined(head, _all_there(head, further))[0]
            except NoNode:
                return None

        async with self._loads:
            return await self._access.settled(once, BadVersion)

    async def walk(self, top: str = TOP) -> AsyncIterator[Table | Unreadable]:
        """The table of `top` and those of all initiators below it, parents before children; those that have no table
        (yet) are left out."""
        level = [top]
        while level:
            below: list[str] = []
            async for found in in_turn(level, self._load_or_say, TABLES_AT_ONCE):
                if isinstance(found, Table):
                    below += _initiators(found)
                if found is not None:
                    yield found
            level = below

    # --- helpers --------------------------------------------------------------------------------------------------

    async def _load_or_say(self, path: str) -> Table | Unreadable | None:
        try:
            return await self.load(path)
        except BadRecord as error:
            return Unreadable(path, str(error))

    async def _mine(self, claim: Claim) -> tuple[Table, Layout, int]:
        """What is there now, and its version. Raises Fenced when it is not the claimer's any more."""
        znode = paths.table(claim.path)
        try:
            got = await self._client.get(znode)
        except NoNode:
            raise Fenced(f"{znode}: expected the table that was claimed, found that it was removed") from None
        head = head_of(got.data, claim.path)
        _check_mine(head, claim)
        return *await self._whole(head), got.stat.version

    async def _whole(self, head: Head) -> tuple[Table, Layout]:
        """For the owner: nobody else writes pages."""
        return joined(head, _all_there(head, await self._further(head)))

    async def _further(self, head: Head) -> list[Page | None]:
        async def read(number: int) -> Page | None:
            data = await self._access.data(paths.table_page(head.path, number))
            return None if data is None else page_of(data, head.path, number)

        return await asyncio.gather(*(read(number) for number in range(1, head.pages)))

    async def _write(self, ops: list[Create | Set | Delete]) -> int:
        """One transaction; returns the version of the first znode then. Raises the error of the one that failed."""
        first = ops[0]
        if len(ops) == 1 and isinstance(first, Set):
            return (await self._client.set(first.path, first.data, first.version)).version
        if len(ops) == 1 and isinstance(first, Delete):
            await self._client.delete(first.path, first.version)
            return 0
        try:
            written = (await self._client.multi(*ops)).results[0]
        except MultiFailed as failed:
            raise failed.cause from failed
        return written.stat.version if isinstance(written, Written) else 0


def _transaction(path: str, batch: Batch, version: int, there: int) -> list[Create | Set | Delete]:
    """`there`: how many pages there were before the save."""
    ops: list[Create | Set | Delete] = [Set(paths.table(path), batch.head, version)]
    for number, data in batch.puts.items():
        page = paths.table_page(path, number)
        ops.append(Set(page, data) if number < there else Create(page, data))
    return ops + [Delete(paths.table_page(path, number)) for number in batch.gone]


def _check_mine(head: Head, claim: Claim) -> None:
    """Raises Fenced."""
    if head.guid != claim.table.guid:
        raise Fenced(
            f"{paths.table(head.path)}: expected the claim of {claim.table.guid}, found that of {head.guid} "
            f"at {head.address}"
        )


def _all_there(head: Head, further: Iterable[Page | None]) -> list[Page]:
    there = [page for page in further if page is not None]
    if len(there) != head.pages - 1:
        raise BadRecord(
            f"{paths.table(head.path)}: expected {head.pages - 1} pages below it, found {len(there)}: who removed them?"
        )
    return there


def _initiators(table: Table) -> list[str]:
    """Their paths; without rows that can't be, as one too deep that was written by hand."""
    found: list[str] = []
    for row in table.children:
        if row.initiator:
            try:
                found.append(join(table.path, row.name))
            except BadIdentity:
                continue
    return found
