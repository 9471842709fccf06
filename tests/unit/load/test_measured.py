"""What belongs to the window, what counts as a failure, and the seconds of a run."""

from __future__ import annotations

from fabric.load.history import NO_ANSWER
from fabric.load.measured import Window, ended, failures, latencies, lateness, seconds
from fabric.load.results import Second
from tests.unit.load.given import asked

WINDOW = Window(2.0, 5.0, 6.0)


def test_a_request_counts_where_it_was_due_and_its_time_from_then_on() -> None:
    found = [
        asked(1, "create", 1.9, 2.5),  # of the warm-up
        asked(2, "create", 2.0, 2.5),
        asked(3, "create", 4.9, 5.9, sent_s=5.5),  # sent late, ended after the window
        asked(4, "delete", 3.0, 3.1),
        asked(5, "create", 5.0, 5.1),
    ]
    told = latencies(found, [], WINDOW)
    assert told["create settled"].count == 2
    assert told["create settled"].max_ms == 1000
    assert told["create accepted"].max_ms == 610
    assert told["delete settled"].p50_ms == 100
    assert "scale settled" not in told
    assert lateness(found, WINDOW).max_ms == 600
    assert ended(found, WINDOW) == {"create": 2, "delete": 1}


def test_what_has_no_end_waited_until_the_last_look() -> None:
    found = [
        asked(1, "create", 2.0, 2.1),
        asked(2, "create", 3.0),
        asked(3, "create", 4.0, status=NO_ANSWER),
        asked(4, "create", 4.0, status=422),
        asked(5, "create", 4.0, 4.1, state="failed"),
    ]
    told = latencies(found, [1.0, 4.5], WINDOW)
    assert (told["create settled"].count, told["create settled"].open) == (4, 3)
    assert told["create settled"].max_ms == 3000
    assert (told["create accepted"].count, told["create accepted"].open) == (5, 2)


def test_failures_are_told_apart_by_what_and_why_the_most_frequent_first() -> None:
    found = [
        asked(1, "create", 1.0, 1.1),
        asked(2, "create", 1.0, status=NO_ANSWER, detail="broke off"),
        asked(3, "create", 1.0, status=422, detail="no room"),
        asked(4, "create", 1.0),
        asked(5, "create", 1.0, 1.2, state="failed", reason="nobody has room"),
        asked(6, "create", 1.0, 1.2, state="failed", reason="nobody has room"),
        asked(7, "create", 1.0, 1.2, placed=1, reason="r1 is full"),
        asked(8, "delete", 1.0, 1.2, placed=0),
    ]
    assert [(one.what, one.why, one.times, one.first) for one in failures(found)] == [
        ("failed", "failed: nobody has room", 2, "d-5"),
        ("lost", "broke off", 1, "d-2"),
        ("refused", "422 no room", 1, "d-3"),
        ("not at rest", "it was accepted, and not at rest by the end of the run", 1, "d-4"),
        ("short", "1 of 3 placed: r1 is full", 1, "d-7"),
    ]


def test_many_kinds_of_failures_are_counted_together_at_the_end() -> None:
    found = [asked(n, "create", 1.0, status=422, detail=f"why {n}") for n in range(15)]
    told = failures(found)
    assert len(told) == 11
    assert (told[-1].what, told[-1].why, told[-1].times) == ("others", "5 further reasons", 5)


def test_each_second_of_the_run_is_there_also_where_nothing_ended() -> None:
    found = [
        asked(1, "create", 0.0, 0.2),
        asked(2, "create", 2.1, 2.2),
        asked(3, "delete", 2.3, 2.4),
        asked(4, "create", 4.1, 4.2, state="failed"),
        asked(5, "create", 4.1, status=422),
        asked(6, "create", 4.1, 5.5),
    ]
    assert seconds(found, WINDOW) == (
        Second(-2, create=1), Second(-1), Second(0, create=1, delete=1), Second(1), Second(2, failed=2),
    )  # fmt: skip


def test_a_second_that_the_run_began_in_is_no_whole_one() -> None:
    """Without a warm-up the first request is due a moment before the window begins: that is no second of nothing."""
    found = [asked(1, "create", 1.997, 2.2), asked(2, "create", 2.3, 2.4)]
    assert seconds(found, WINDOW)[0] == Second(0, create=2)
