"""Over-commitment is seen from plans alone, at the moment it was, and never where it was not."""

from __future__ import annotations

from fabric.load.booking import Books
from fabric.resources import Resources

NEED = Resources(4, 8192, 0)
NODES = {"a": Resources(8, 1 << 20, 0), "b": Resources(16, 1 << 20, 0)}


def test_what_ran_at_a_time_is_added_up_by_node() -> None:
    books = Books()
    books.runs("one", {"a": 1, "b": 2}, 3)
    books.runs("two", {"a": 1, "b": 2}, 3)
    assert books.overcommitted(NEED, NODES) == []
    books.runs("three", {"a": 1}, 1)
    books.leaves("three")
    assert books.overcommitted(NEED, NODES) == ["a ran 3 instances at a time, and holds 2"]


def test_one_after_the_other_is_no_over_commitment() -> None:
    books = Books()
    for number in range(10):
        books.runs(f"d-{number}", {"a": 2}, 2)
        books.leaves(f"d-{number}")
    books.runs("scaled", {"b": 1}, 1)
    books.runs("scaled", {"b": 4}, 4)
    assert books.overcommitted(NEED, NODES) == []
    assert books.most == {"a": 2, "b": 4}
    assert books.now == {"a": 0, "b": 4}


def test_a_plan_that_is_not_what_was_asked_for_and_a_node_that_nobody_knows() -> None:
    books = Books()
    books.runs("short", {"a": 1}, 2)
    books.runs("astray", {"c": 1}, 1)
    assert books.miscounted == ["short"]
    assert books.overcommitted(NEED, NODES) == ["c ran 1 instances at a time, and holds 0"]
