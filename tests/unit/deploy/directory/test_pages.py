"""How tables lie in pages: nothing lost, nothing twice, whatever is saved after whatever, wherever it is cut short; and
how large it all is at 100,000."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from deploy.directory import pages
from deploy.directory.pages import (
    PAGE_BYTES,
    ROWS_PER_PAGE,
    Batch,
    Layout,
    changes,
    encoded,
    head_of,
    joined,
    page_of,
)
from deploy.identity import MAX_PATH_CHARS
from deploy.records import MAX_CHILDREN, Child, Table
from fabric.records import BadRecord, encode
from tests.deployment import guid_of, row, stub_record, table
from zk import paths

PATH = "/site"
SMALL = {"PAGE_BYTES": 1500, "BATCH_BYTES": 2500}
"""Limits at which few rows take many pages, divided pages and several transactions."""


class Znodes:
    """What is written of one table, transaction by transaction."""

    def __init__(self) -> None:
        self.head = b""
        self.pages: dict[int, bytes] = {}
        self.layout = Layout()

    def save(self, wanted: Table, cut_after: int | None = None) -> int:
        """How many transactions it took. `cut_after`: the owner dies after so many of them."""
        after, batches = changes(wanted, self.layout)
        for batch in batches[:cut_after]:
            self.write(batch)
        if cut_after is None:
            self.layout = after
        else:
            self.load()
        return len(batches)

    def write(self, batch: Batch) -> None:
        self.head = batch.head
        self.pages.update(batch.puts)
        for number in batch.gone:
            del self.pages[number]

    def load(self) -> Table:
        head = head_of(self.head, PATH)
        assert sorted(self.pages) == list(range(1, head.pages)), "the head counts exactly what is there"
        found, self.layout = joined(head, [page_of(self.pages[n], PATH, n) for n in range(1, head.pages)])
        return found


@lru_cache
def some(number: int, long: bool) -> Child:
    return row(number, reason=f"{guid_of(str(number))}{guid_of('-' + str(number))}" * 7 if long else "")


def rows(numbers: set[int], long: bool, attempt: int) -> tuple[Child, ...]:
    return tuple(replace(some(number, long), attempt=attempt) for number in sorted(numbers))


SAVES = st.lists(st.tuples(st.sets(st.integers(0, 60), max_size=40), st.booleans(), st.integers(0, 3)), min_size=1)


@settings(deadline=None, max_examples=60)
@given(SAVES)
def test_whatever_is_saved_is_loaded(saves: list[tuple[set[int], bool, int]]) -> None:
    with patch.multiple(pages, **SMALL):
        znodes = Znodes()
        for turn, (numbers, long, _) in enumerate(saves):
            wanted = table(PATH, children=rows(numbers, long, turn))
            znodes.save(wanted)
            assert znodes.load() == wanted


@settings(deadline=None, max_examples=60)
@given(SAVES)
@example([({0, 1}, False, 0), ({0, 1, 2, 3, 4}, True, 0)])
def test_wherever_a_save_is_cut_short_each_row_is_as_before_or_after(saves: list[tuple[set[int], bool, int]]) -> None:
    with patch.multiple(pages, **SMALL):
        znodes = Znodes()
        before: dict[str, Child] = {}
        for turn, (numbers, long, cut) in enumerate(saves):
            wanted = table(PATH, children=rows(numbers, long, turn))
            after = {one.name: one for one in wanted.children}
            if znodes.save(wanted, cut + 1) <= cut + 1:
                assert znodes.load() == wanted
            found = {one.name: one for one in znodes.load().children}
            for name in before.keys() | after.keys():
                if name in before and name in after:
                    assert found[name] in (before[name], after[name]), "never missing"
                else:
                    assert found.get(name) in (None, before.get(name), after.get(name))
            before = found
        znodes.save(table(PATH, 3))
        assert znodes.load() == table(PATH, 3), "what was left half done does not come back"


def test_a_change_of_one_row_writes_its_page_and_the_head() -> None:
    znodes = Znodes()
    wanted = table(PATH, 1000)
    assert znodes.save(wanted) == 1
    changed = replace(wanted, children=(*wanted.children[:-1], row(999, outcome="failed")))
    _, batches = changes(changed, znodes.layout)
    assert [list(batch.puts) for batch in batches] == [[999 // ROWS_PER_PAGE]]
    _, batches = changes(wanted, znodes.layout)
    assert [list(batch.puts) for batch in batches] == [[]], "the head says at least who owns it"


def test_rows_too_long_for_a_page_are_divided_and_come_together_again() -> None:
    with patch.multiple(pages, PAGE_BYTES=8 * 1024):
        znodes = Znodes()
        znodes.save(table(PATH, ROWS_PER_PAGE, children=rows(set(range(ROWS_PER_PAGE)), False, 1)))
        assert not znodes.pages
        long = table(PATH, children=rows(set(range(ROWS_PER_PAGE)), True, 2))
        assert znodes.save(long) == 1, "what moves from page to page does so in one transaction, if it can"
        assert znodes.load() == long
        assert len(znodes.pages) == 1, "which took half of the rows"
        assert max(len(data) for data in (znodes.head, *znodes.pages.values())) <= 8 * 1024
        znodes.save(table(PATH, 2))
        assert (znodes.load(), znodes.pages) == (table(PATH, 2), {})


def test_tables_that_none_can_be_are_refused() -> None:
    with pytest.raises(ValueError, match="expected each name once"):
        changes(table(PATH, children=(row(1), row(2, name="node1"))), Layout())
    with pytest.raises(ValueError, match=f"at most {MAX_CHILDREN} children"):
        changes(table(PATH, MAX_CHILDREN + 1), Layout())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"z1??", "decompressing"),
        (b"{}", "missing required field"),
        (b'{"path":"/site/../x","guid":"","address":"","rollout":"","pages":1,"children":[]}', "Expected `str`"),
        (encoded(head_of(changes(table("/lab"), Layout())[1][0].head, "/lab")), "expected the table of /site"),
    ],
)
def test_a_bad_head_says_where_and_why(data: bytes, reason: str) -> None:
    with pytest.raises(BadRecord, match=f"(?s){paths.table(PATH)}: .*{reason}"):
        head_of(data, PATH)


def test_the_top_is_named_when_its_table_is_another() -> None:
    with pytest.raises(BadRecord, match="expected the table of the top, found that of /lab"):
        head_of(changes(table("/lab"), Layout())[1][0].head, "")


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_the_sizes_that_the_module_states() -> None:
    (ten,) = changes(table("/site/zone1", 10), Layout())[1]
    assert 2_000 < len(ten.head) < 2_500
    _, batches = changes(table(PATH, MAX_CHILDREN), Layout())
    written = [data for batch in batches for data in (batch.head, *batch.puts.values())]
    assert sum(len(batch.puts) for batch in batches) + 1 == 79
    assert max(map(len, written)) < 6_000
    assert max(sum(map(len, batch.puts.values())) for batch in batches) < 500_000
    assert len(encode(stub_record("r1c001"))) < 200


def test_the_largest_rows_there_can_be_fit_a_znode() -> None:
    largest = tuple(
        row(2**53 - 1 - number, name="n" * 58 + f"{number:06d}", reason="\x01" * 500, generation="\U0001f600" * 64)
        for number in range(2 * ROWS_PER_PAGE)
    )
    _, batches = changes(table(PATH, children=largest), Layout())
    assert max(len(data) for batch in batches for data in (batch.head, *batch.puts.values())) <= PAGE_BYTES


@pytest.mark.parametrize("kind", ["stubs", "tables"])
def test_a_hundred_thousand_are_spread_over_the_shards(kind: str) -> None:
    if kind == "stubs":
        znodes = [paths.stub(f"r{number // 40}c{number % 40:02d}") for number in range(100_000)]
    else:
        znodes = [
            paths.table(f"/site/zone{n // 1000}/group{n // 100 % 10}/part{n // 10 % 10}/m{n % 10}")
            for n in range(100_000)
        ]
    shards = Counter(path.rpartition("/")[0] for path in znodes)
    assert len(shards) == paths.SHARDS
    assert max(shards.values()) < 1.3 * 100_000 / paths.SHARDS
    names = Counter[str]()
    for path in znodes:
        shard, _, name = path.rpartition("/")
        names[shard] += len(name) + 4
    assert max(names.values()) < 24_000, "bytes of a list of children"


def test_paths_and_keys() -> None:
    assert paths.shard("r1c01") == "a0", "it must never change: what was written would not be found"
    assert paths.table("/site/r1").endswith("/:site:r1")
    assert paths.table("").endswith("/top")
    assert paths.table("/top") != paths.table("")
    assert len(paths.table_page("/" + "x" * (MAX_PATH_CHARS - 1), 999)) < 1024
