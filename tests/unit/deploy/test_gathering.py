"""Pages of a gathering may come in any order, twice, or never."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deploy.gathering import Gathering
from deploy.identity import TOP, parent_of
from deploy.messages import Entry, TreePage


def page(number: int, last: bool, *paths: str) -> TreePage:
    entries = tuple(Entry(path, "s1", "installed", "active", "done", through=parent_of(path)) for path in paths)
    return TreePage("c1", TOP, TOP, number, entries, last)


PAGES = [page(0, False, "/r"), page(1, False, "/r/a", "/r/b"), page(2, True, "/r/a/1")]


@given(st.permutations(PAGES + PAGES[:2]))
def test_any_order_and_repeats_give_the_same(pages: list[TreePage]) -> None:
    gathering = Gathering("c1")
    assert sum(gathering.take(one) for one in pages) == 3
    assert gathering.whole
    assert gathering.have == 3
    assert [one.path for one in gathering.entries] == ["/r", "/r/a", "/r/b", "/r/a/1"]


def test_a_lost_page_is_asked_for_again_and_the_others_are_true() -> None:
    gathering = Gathering("c1")
    assert not gathering.whole
    for one in (PAGES[2], PAGES[0]):
        gathering.take(one)
    assert (gathering.whole, gathering.have) == (False, 1)
    assert [one.path for one in gathering.entries] == ["/r", "/r/a/1"]


def test_pages_of_another_call_are_not_taken() -> None:
    assert not Gathering("c2").take(PAGES[0])
