"""Pages of a gathering may come in any order, twice, or never."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deploy.gathering import Gathering
from deploy.identity import TOP
from deploy.messages import Entry, TreePage


def page(origin: str, number: int, last: bool, *paths: str) -> TreePage:
    entries = tuple(Entry(path, "s1", "installed", "active", "done", through=origin) for path in paths)
    return TreePage("c1", TOP, origin, number, entries, last)


PAGES = [
    page("/r/a", 0, True, "/r/a/1"),
    page("/r", 0, False, "/r/a"),
    page("/r", 1, True, "/r/b"),
    page(TOP, 0, True, "/r"),
]


@given(st.permutations(PAGES + PAGES[:2]))
def test_any_order_and_repeats_give_the_same(pages: list[TreePage]) -> None:
    gathering = Gathering("c1")
    assert sum(gathering.take(one) for one in pages) == 4
    assert gathering.whole
    assert gathering.answered == {TOP, "/r", "/r/a"}
    assert sorted(one.path for one in gathering.entries) == ["/r", "/r/a", "/r/a/1", "/r/b"]


def test_a_lost_page_leaves_its_initiator_unanswered_and_its_other_words_true() -> None:
    gathering = Gathering("c1")
    for one in (PAGES[2], PAGES[3]):
        gathering.take(one)
    assert gathering.answered == {TOP}
    assert [one.path for one in gathering.entries] == ["/r/b", "/r"]


def test_pages_of_another_call_are_not_taken() -> None:
    assert not Gathering("c2").take(PAGES[0])
