"""Room that was there, and was not found, is seen; and nothing else is taken for it."""

from __future__ import annotations

import msgspec

from fabric.chaos.room import Rooms, with_room
from fabric.chaos.watching import Watching
from fabric.chaos.world import Running, Sample
from fabric.load.history import Asked, Kind
from tests.unit.chaos.planted import RULES, asked, attempt, process, sample

TINY = msgspec.structs.replace(RULES, flavor="Tiny")
"""Of three nodes with room for four each; two of these twelve run."""


def rooms(*samples: Sample, held: tuple[str, ...] = ()) -> list[int]:
    found = Rooms(TINY)
    for one in samples:
        found.feed(one, held)
    return [places for _, places in found.seen()]


def crowd(node: str, count: int) -> frozenset[Running]:
    return frozenset(process(node, ordinal, "d-222222", 300 + ordinal) for ordinal in range(count))


def change(
    number: int, sent_s: float, end_s: float, count: int, state: str = "running", kind: Kind = "create"
) -> Asked:
    one = asked(attempt(number, kind=kind, sent_s=sent_s, answered_s=sent_s, count=count), state=state)
    assert one.end is not None
    return msgspec.structs.replace(one, end=msgspec.structs.replace(one.end, at_s=end_s))


def test_room_is_what_processes_leave_of_the_nodes_that_can_be_asked() -> None:
    assert rooms(sample(1.0)) == [10]
    assert rooms(sample(1.0, crowd("r1c01", 4) | crowd("r1c02", 3))) == [5]
    assert rooms(sample(1.0, crowd("r1c01", 5))) == [8], "too many on one node are no room on others"
    assert rooms(sample(1.0, members=frozenset({"r1c01"}))) == [3]
    assert rooms(sample(1.0), held=("r1c02",)) == [6]
    assert rooms(sample(1.0, members=None)) == [], "nobody knows who is here"


def test_the_watch_keeps_it_without_nodes_that_a_fault_holds() -> None:
    watching = Watching(TINY)
    watching.feed(sample(1.0))
    watching.held = {"r1c02": 1.1}
    watching.feed(sample(1.2))
    assert watching.rooms.seen() == ((1.0, 10), (1.2, 6))


SEEN = ((1.0, 3), (1.2, 3), (1.4, 3), (1.6, 3))


def test_a_create_that_failed_with_room_for_all_of_it_counts() -> None:
    assert with_room([change(1, 1.25, 1.3, 3, "failed")], SEEN) == 1
    assert with_room([change(1, 1.25, 1.3, 4, "failed")], SEEN) == 0
    assert with_room([change(1, 1.25, 1.3, 3)], SEEN) == 0
    assert with_room([change(1, 1.25, 1.3, 3, "failed", "scale")], SEEN) == 0


def test_the_least_room_around_it_is_what_there_was() -> None:
    failed = [change(1, 1.25, 1.3, 3, "failed")]
    assert with_room(failed, ((1.0, 0), *SEEN[1:3], (1.6, 0))) == 1
    assert with_room(failed, (SEEN[0], (1.2, 2), *SEEN[2:])) == 0, "what was there before it may have ended late"
    assert with_room(failed, (*SEEN[:2], (1.4, 2), SEEN[3])) == 0, "what was reserved may run only now"
    assert with_room([change(1, 1.25, 1.5, 3, "failed")], (*SEEN[:2], (1.4, 2), SEEN[3])) == 0


def test_what_others_may_have_reserved_is_no_room() -> None:
    failed = change(1, 1.25, 1.3, 3, "failed")
    assert with_room([failed, change(2, 0.5, 1.28, 1)], SEEN) == 0
    assert with_room([failed, change(2, 0.5, 1.21, 1)], SEEN) == 0, "it may not be in the sample before"
    assert with_room([failed, change(2, 0.5, 1.1, 1), change(3, 1.5, 1.6, 1)], SEEN) == 1
    assert with_room([failed, change(2, 0.5, 1.28, 0, "deleted", "delete")], SEEN) == 1


def test_where_nobody_looked_nothing_is_said() -> None:
    failed = [change(1, 9.0, 9.1, 1, "failed")]
    assert with_room(failed, SEEN) == 0
    assert with_room(failed, ()) == 0
    assert with_room(failed, (*SEEN, (30.0, 3))) == 0
    assert with_room(failed, (*SEEN, (8.9, 3), (9.2, 3))) == 1
