"""Pages: no item is shown twice or left out, also when items come and go between two pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fabric.api.paging import page


@given(st.sets(st.text("abc", min_size=1, max_size=6)), st.integers(1, 10))
def test_all_pages_together_are_the_list(names: set[str], limit: int) -> None:
    items = sorted(names)
    seen: list[str] = []
    after = ""
    while True:
        found = page(items, limit, after, str)
        assert len(found.items) <= limit
        seen.extend(found.items)
        if found.next is None:
            break
        after = found.next
    assert seen == items


def test_a_full_last_page_has_no_next() -> None:
    assert page(["a", "b"], 2, "", str).next is None
    assert page(["a", "b"], 1, "", str).next == "a"


def test_an_item_that_vanished_is_still_a_place_to_go_on_from() -> None:
    assert page(["a", "c", "d"], 2, "b", str).items == ("c", "d")


def test_an_empty_list_is_one_empty_page() -> None:
    found = page([], 5, "", str)
    assert (found.items, found.next) == ((), None)
