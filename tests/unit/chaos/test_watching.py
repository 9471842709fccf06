"""The judge of samples can fail: doubles, too much on a node, and guesses in an outage, each planted."""

from __future__ import annotations

from fabric.chaos.watching import Watching, watched
from fabric.chaos.world import Outage, Running, Sample
from tests.unit.chaos.planted import DIGEST, RULES, RUNNING, process, sample

DOUBLE = RUNNING | {process("r1c02", 0, pid=900)}
OUTAGE = Outage(10.0, 30.0)


def promises(*samples: Sample, outage: Outage | None = None) -> list[str]:
    return [one.promise for one in watched(RULES, samples, outage)]


def test_nothing_is_found_where_all_is_well() -> None:
    assert promises(sample(1.0), sample(1.2), sample(12.0), sample(12.2), outage=OUTAGE) == []


def test_an_ordinal_on_two_nodes_that_are_present_is_a_double() -> None:
    found = watched(RULES, [sample(1.0), sample(1.2, DOUBLE), sample(1.4, DOUBLE), sample(1.6, DOUBLE)])
    assert [(one.promise, one.at_s) for one in found] == [("exactly", 1.4)]
    assert "runs on r1c01, r1c02 at once" in found[0].text


def test_what_is_seen_once_or_by_turns_is_no_double() -> None:
    assert promises(sample(1.0, DOUBLE), sample(1.2), sample(1.4, DOUBLE)) == []
    other = RUNNING | {process("r1c02", 0, pid=901)}
    assert promises(sample(1.0, DOUBLE), sample(1.2, other)) == [], "another process each time"


def test_a_node_that_is_not_present_does_not_count() -> None:
    away = frozenset({"r1c01", "r2c01"})
    samples = [sample(at, DOUBLE, members=away) for at in (1.0, 1.2, 1.4)]
    assert promises(*samples) == []
    assert promises(*[sample(at, DOUBLE, members=None) for at in (1.0, 1.2)]) == [], "nobody knows who is present"


def test_with_stop_after_it_counts_where_the_node_is_away_but_not_where_a_fault_holds_it() -> None:
    away = frozenset({"r1c01", "r2c01"})
    for held, expected in (({}, ["exactly"]), ({"r1c02": 0.5}, [])):
        watching = Watching(RULES, lambda deployment: 3)
        watching.held = held
        for at in (1.0, 1.2):
            watching.feed(sample(at, DOUBLE, members=away))
        assert [one.promise for one in watching.findings] == expected


def crowd(count: int) -> frozenset[Running]:
    return frozenset(process("r1c02", ordinal, "d-222222", 300 + ordinal) for ordinal in range(count))


def test_more_than_a_node_has_is_found_once() -> None:
    assert promises(sample(1.0, crowd(4)), sample(1.2, crowd(4))) == []
    found = watched(RULES, [sample(at, crowd(5)) for at in (1.0, 1.2, 1.4)])
    assert [(one.promise, one.at_s) for one in found] == [("capacity", 1.2)]
    assert "r1c02 has 4 vcpus" in found[0].text
    assert "runs 5 vcpus" in found[0].text
    assert found[0].text.endswith("d-222222.3, d-222222.4")


def test_what_ends_and_what_begins_during_a_look_were_not_there_at_once() -> None:
    other = (crowd(5) - {process("r1c02", 0, "d-222222", 300)}) | {process("r1c02", 9, "d-222222", 309)}
    assert promises(sample(1.0, crowd(4)), sample(1.2, crowd(5)), sample(1.4, other)) == []


def test_in_an_outage_nothing_may_end_or_move() -> None:
    assert promises(sample(11.5), sample(20.0, frozenset({process("r1c01", 0)})), outage=OUTAGE) == ["outage"]
    moved = frozenset({process("r1c01", 0), process("r1c02", 1)})
    found = watched(RULES, [sample(11.5), sample(20.0, moved)], OUTAGE)
    assert sorted(one.text.split(" while")[0] for one in found) == [
        "d-111111.1 began on r1c02", "d-111111.1 on r2c01 ended",
    ]  # fmt: skip


def test_in_an_outage_an_instance_may_be_restarted_where_it_is() -> None:
    again = frozenset({process("r1c01", 0), process("r2c01", 1, pid=777)})
    assert promises(sample(11.5), sample(20.0, again), outage=OUTAGE) == []


def test_before_and_after_an_outage_things_end() -> None:
    assert promises(sample(5.0), sample(10.5, frozenset()), sample(12.0, frozenset()), outage=OUTAGE) == []
    assert promises(sample(11.5), sample(30.5, frozenset()), outage=OUTAGE) == []


def test_an_outage_excuses_what_a_request_or_a_fault_ends() -> None:
    busy = sample(11.5, busy=frozenset({"d-111111"}))
    assert promises(busy, sample(20.0, frozenset()), outage=OUTAGE) == []
    watching = Watching(RULES)
    watching.outage = OUTAGE
    watching.struck |= {(one.pid, one.started) for one in RUNNING}
    for one in (sample(11.5), sample(20.0, frozenset())):
        watching.feed(one)
    assert watching.findings == []


def test_an_outage_excuses_what_nobody_wanted_and_second_copies() -> None:
    watching = Watching(RULES, wanted=lambda deployment, ordinal: ordinal < 1)
    watching.outage = OUTAGE
    for one in (sample(11.5), sample(20.0, frozenset({process("r1c01", 0)}))):
        watching.feed(one)
    assert watching.findings == [], "ordinal 1 was not wanted any more"
    watching.feed(sample(21.0, frozenset()))
    assert [one.text.split(" while")[0] for one in watching.findings] == ["d-111111.0 on r1c01 ended"]
    assert promises(sample(11.5, DOUBLE), sample(20.0), outage=OUTAGE) == []


def test_how_long_an_image_had_too_few_holders_is_measured() -> None:
    watching = Watching(RULES)
    both, one = frozenset({"r1s01", "r2s01"}), frozenset({"r1s01"})
    for at, nodes in ((1.0, both), (2.0, one), (3.0, one), (5.5, one), (6.0, both), (7.0, one), (8.0, one)):
        watching.feed(sample(at, holders={DIGEST: nodes}))
    assert watching.under_redundant_s == {DIGEST: 3.5}
    assert watching.samples == 7
    assert watching.most_running == 2
