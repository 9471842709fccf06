"""A table of children as znodes: which row stands in which page, and the bytes of each.

Theory of operation. Page 0 is the *head*: the znode of the table itself, with its owner and its first rows. Tables of
up to ROWS_PER_PAGE children, which is most of them, are that one znode. Further rows stand in pages 1, 2, … below it;
the head says how many there are. Rows never move by themselves: one that is there stays in its page, a new one goes
to the first page with room, the last pages go when they are empty. So a change of one row writes one page and the
head, and the head's version stands for all pages: each transaction that writes any page replaces the head too, under
the version that it had.

A page that is too large in spite of few rows (long reasons) gives half of them to a new page at the end. Where a save
takes more than one transaction, the pages at the end are written first: so a row on the move stands twice for a moment,
never nowhere, and the later page is right.

Sizes, as JSON and as they are written (packed over 4 KB, see fabric.records), of rows with an address, three prints
and no reason; a test computes them:

    an initiator of 10 children       one znode of 2.3 KB
    of 128                            one znode of 27 KB, packed 5.5
    of 10,000                         79 such znodes, all in one transaction of 430 KB
    100,000 managents, ten each       11,111 tables: 43 in a shard
    100,000 stubs                     znodes of 0.2 KB: 390 in a shard, whose names together take 4 KB
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from deploy.identity import Path
from deploy.records import MAX_CHILDREN, Child, Table, Url
from fabric.records import Address, BadRecord, Guid, Label, pack, unpack
from zk import paths

ROWS_PER_PAGE = 128
PAGE_BYTES = 64 * 1024
"""Of a page as written; over it, it is divided. A row of 1.5 KB is unusual, one of 6 KB the largest."""
BATCH_BYTES = 512 * 1024
"""Of all pages in one transaction; ZooKeeper takes 1 MB."""
MAX_PAGES = 1_000

Rows = Mapping[str, Child]
P = TypeVar("P", bound=msgspec.Struct)


class Head(msgspec.Struct, frozen=True):
    """Page 0 as it is written. `pages` counts itself."""

    path: Path
    guid: Guid
    address: Address
    rollout: Label
    pages: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGES)]
    children: Annotated[tuple[Child, ...], msgspec.Meta(max_length=ROWS_PER_PAGE)]
    repository: Url = ""


class Page(msgspec.Struct, frozen=True):
    """A further page."""

    children: Annotated[tuple[Child, ...], msgspec.Meta(max_length=ROWS_PER_PAGE)]


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows by name, page by page, as they are in the directory. The first is the head's."""

    pages: tuple[Rows, ...] = ({},)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction writes: the head always, and pages by number; `gone` are deleted."""

    head: bytes
    puts: Mapping[int, bytes]
    gone: tuple[int, ...] = ()


def head_of(data: bytes, path: str) -> Head:
    """Raises BadRecord."""
    head = _decoded(data, Head, paths.table(path))
    if head.path != path:
        raise BadRecord(f"{paths.table(path)}: expected the table of {path or 'the top'}, found that of {head.path}")
    return head


def page_of(data: bytes, path: str, number: int) -> Page:
    """Raises BadRecord."""
    return _decoded(data, Page, paths.table_page(path, number))


def joined(head: Head, pages: Iterable[Page]) -> tuple[Table, Layout]:
    """The table, its children by index; and where each row stands. A row that stands twice was on the move: the later
    page has it, but the layout has both, so that the next save ends the move. Raises BadRecord when there are more
    rows than a table may have."""
    every = [head.children, *(page.children for page in pages)]
    layout = Layout(tuple({row.name: row for row in children} for children in every))
    rows: dict[str, Child] = {}
    for page in layout.pages:
        rows.update(page)
    if len(rows) > MAX_CHILDREN:
        raise BadRecord(f"{paths.table(head.path)}: expected at most {MAX_CHILDREN} children, found {len(rows)}")
    children = in_order(rows.values())
    return Table(head.path, head.guid, head.address, head.rollout, children, head.repository), layout


def empty_head(table: Table) -> bytes:
    """Of a table that has no rows yet."""
    return encoded(_head(table, 1, {}))


def in_order(children: Iterable[Child]) -> tuple[Child, ...]:
    """By index, as `joined` has them."""
    return tuple(sorted(children, key=lambda row: (row.index, row.name)))


def changes(table: Table, was: Layout) -> tuple[Layout, list[Batch]]:
    """How `table` is written where `was` is: the layout then, and the transactions, in order; one at least. Raises
    ValueError for a table that none can be: a name twice, or too many children."""
    pages = _placed(table, was)
    written: dict[int, bytes] = {}
    for number, rows in enumerate(pages):  # grows meanwhile: what is cut off a page is looked at in its turn
        if number == 0 or number >= len(was.pages) or rows != was.pages[number]:
            while len(data := _page_bytes(table, number, rows, MAX_PAGES)) > PAGE_BYTES and len(rows) > 1:
                pages.append(_half_of(rows))
            written[number] = data
    if len(pages) > MAX_PAGES:
        raise ValueError(f"table of {table.path}: expected at most {MAX_PAGES} pages, found {len(pages)}")
    # Until the last transaction the head counts every page that is there: those to come do not matter, as it never
    # counts one that is not. And it keeps its rows: one that moves to a page that is not yet written would be nowhere.
    gone = tuple(range(len(pages), len(was.pages)))
    batches: list[Batch] = []
    there = len(was.pages)
    batch: dict[int, bytes] = {}
    size = 0
    for number in sorted(written.keys() - {0}, key=lambda n: (n < len(was.pages), n)):
        if batch and size + len(written[number]) > BATCH_BYTES:
            batches.append(Batch(_page_bytes(table, 0, was.pages[0], there), batch))
            batch, size = {}, 0
        batch[number] = written[number]
        size += len(written[number])
        there = max(there, number + 1)
    batches.append(Batch(_page_bytes(table, 0, pages[0], len(pages)), batch, gone))
    return Layout(tuple(pages)), batches


def _placed(table: Table, was: Layout) -> list[dict[str, Child]]:
    """Rows that were there stay where they are; new ones go where there is room."""
    rows = {row.name: row for row in table.children}
    if len(rows) != len(table.children):
        raise ValueError(f"table of {table.path}: expected each name once, found one twice")
    if len(rows) > MAX_CHILDREN:
        raise ValueError(f"table of {table.path}: expected at most {MAX_CHILDREN} children, found {len(rows)}")
    pages: list[dict[str, Child]] = []
    for page in reversed(was.pages):  # of a row that stands twice, the later page is right
        pages.insert(0, {name: rows.pop(name) for name in page if name in rows})
    at = 0
    for name, row in rows.items():
        while at < len(pages) and len(pages[at]) >= ROWS_PER_PAGE:
            at += 1
        if at == len(pages):
            pages.append({})
        pages[at][name] = row
    while len(pages) > 1 and not pages[-1]:
        pages.pop()
    return pages


def _half_of(rows: dict[str, Child]) -> dict[str, Child]:
    """Takes the later half out of `rows`."""
    return {name: rows.pop(name) for name in list(rows)[(len(rows) + 1) // 2 :]}


def _page_bytes(table: Table, number: int, rows: Rows, pages: int) -> bytes:
    return encoded(Page(tuple(rows.values())) if number else _head(table, pages, rows))


def _head(table: Table, pages: int, rows: Rows) -> Head:
    return Head(table.path, table.guid, table.address, table.rollout, pages, tuple(rows.values()), table.repository)


def encoded(record: Head | Page) -> bytes:
    return pack(msgspec.json.encode(record))


def _decoded(data: bytes, kind: type[P], where: str) -> P:
    try:
        return msgspec.json.decode(unpack(data), type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError, zlib.error) as error:
        raise BadRecord(f"{where}: expected a {kind.__name__} of a table as JSON, found: {error}") from error
