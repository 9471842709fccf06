"""What one that stays says, and when it does not go on."""

from __future__ import annotations

from typing import cast

from deploy.at_work import Workplace
from deploy.messages import Counts, Problem
from deploy.records import Child, StubRef, Table
from deploy.staying import Stayer, _Found

STUB = StubRef("s1", "tcp://127.0.0.1:1/" + "a" * 32)
HERE, THERE = "http://here/", "http://there/"


async def nobody() -> tuple[StubRef, ...]:
    return ()


def stayer(said: list[str]) -> Stayer:
    return Stayer(cast("Workplace", None), HERE, nobody, said.append)


def table(repository: str, *generations: str) -> Table:
    rows = tuple(Child(f"r{number}", number, STUB, generation=one) for number, one in enumerate(generations))
    return Table("", "a" * 32, STUB.address, "o", rows, repository)


def test_it_goes_on_with_what_was_applied_from_its_repository_alone() -> None:
    one = stayer([])
    assert one._left(None) == one._left(table(HERE)) == "nothing is deployed any more"
    assert one._left(table(THERE, "g")) == f"what is there was applied from {THERE}, and not from {HERE}"
    assert one._left(table(HERE, "new", "old", "new")) == _Found(("/r0", "/r1", "/r2"), "new")


def test_it_says_who_is_not_well_once_and_that_all_are_again() -> None:
    said: list[str] = []
    one = stayer(said)
    one._counted(Counts(4, 4), ())
    lost = Problem("/r", "unreachable", "boot stub s1 does not answer")
    for _ in range(2):
        one._counted(Counts(4, 3, unreachable=1), (lost,))
    one._counted(Counts(4, 3, pending=1), ())
    one._counted(Counts(4, 4), ())
    one._counted(Counts(4, 4), ())
    one._said()
    assert said == [
        "1 of 4 are not as they were told to be: /r is unreachable: boot stub s1 does not answer",
        "all 4 are as they were told to be",
    ]


def test_what_was_noted_ends_in_that_all_are_well() -> None:
    said: list[str] = []
    one = stayer(said)
    one._noted("warning", "/r is placed on s2")
    one._counted(Counts(4, 3, pending=1), ())
    one._counted(Counts(4, 4), ())
    one._said()
    assert said == ["/r is placed on s2", "all 4 are as they were told to be"]
