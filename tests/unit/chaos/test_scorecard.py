"""Figures, the verdict, and what is printed of them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from fabric.chaos.figures import Figures, figures
from fabric.chaos.scorecard import Scorecard, expected, show, told, unknown_figures
from fabric.chaos.script import Expect
from fabric.chaos.stage import Deed
from fabric.chaos.verdict import MAX_SHOWN, Finding, verdict
from fabric.load.history import Attempt, Clock, End, History, requests
from tests.unit.chaos.planted import D1, asked, attempt


def test_a_promise_is_held_broken_or_not_tried() -> None:
    found = verdict([Finding("exactly", 3.0, "a double")], ["exactly", "capacity"])
    grades = {one.promise: one.grade for one in found.judged}
    assert (grades["exactly"], grades["capacity"], grades["outage"]) == ("broken", "held", "not tried")
    assert not found.holds
    assert verdict([], ["exactly"]).holds


def test_of_many_findings_the_earliest_are_shown_and_all_are_counted() -> None:
    found = verdict([Finding("orphans", float(at), f"orphan {at}") for at in range(30, 0, -1)], [])
    orphans = next(one for one in found.judged if one.promise == "orphans")
    assert orphans.found == 30
    assert [one.at_s for one in orphans.first] == [float(at) for at in range(1, MAX_SHOWN + 1)]


def test_figures_are_counted_from_the_history() -> None:
    these = [
        asked(attempt(1)),
        asked(attempt(2, 503, answered_s=10.1), attempt(2, sent_s=12.0, answered_s=13.0)),
        asked(attempt(3, 422)),
        asked(attempt(4, 0)),
        asked(attempt(5), state="failed", reason="full"),
    ]
    deeds = [Deed("kill", ("api",), 1.0), Deed("fill", ("r1c01",), 1.0, skipped="no right")]
    found = figures(these, [Finding("orphans", 1.0, "one")], deeds, settle_s=4.0)
    assert (found.requests, found.accepted, found.refused, found.lost, found.failed) == (5, 3, 1, 1, 1)
    assert (found.tried_again, found.orphans, found.faults, found.not_done) == (2, 1, 1, 1)
    assert (found.wait_max_s, found.rest_max_s, found.settle_s) == (3.0, 2.0, 4.0)


def test_expectations_are_compared() -> None:
    found = Figures(failed=2, settle_s=10.0)
    good = (Expect("failed", "=", 2.0), Expect("settle_s", "<", 11.0), Expect("failed", ">", 1.0))
    assert expected(good, found) == []
    bad = (Expect("failed", "=", 0.0), Expect("settle_s", "<", 10.0), Expect("failed", ">", 2.0))
    assert [one.text for one in expected(bad, found)] == [
        "expected failed = 0, found 2", "expected settle_s < 10, found 10", "expected failed > 2, found 2",
    ]  # fmt: skip
    assert unknown_figures((Expect("joy", "=", 1.0), Expect("lost", "=", 0.0))) == ["joy"]


def a_card() -> Scorecard:
    found = verdict([Finding("exactly", 3.0, "d-1.0 runs on a, b at once")], ["durable"])
    deeds = (Deed("fill", ("r1c01",), 2.0, skipped="run it as root"),)
    return Scorecard("mine", "for 10s\n", False, found, Figures(requests=7, lost=1), deeds)


def test_the_table_says_what_is_broken_and_what_was_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    show(a_card(), False)
    out = capsys.readouterr().out
    assert "3.00 s  exactly: d-1.0 runs on a, b at once" in out
    assert "not done: fill r1c01: run it as root" in out
    assert "requests   7 in 0 s: 0 accepted, 0 refused, 1 lost" in out
    assert out.splitlines()[-1] == "mine: broken"


def test_the_json_is_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    show(a_card(), True)
    read = json.loads(capsys.readouterr().out)
    assert msgspec.convert(read, Scorecard) == a_card()


def test_images_are_told_of_only_when_they_lacked_holders() -> None:
    assert not [line for line in told(Figures()) if line.startswith("images")]
    assert [line for line in told(Figures(redundancy_s=18.2)) if "under-redundant for 18.2 s" in line]


def test_a_history_is_written_line_by_line_and_put_together_by_request(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.note(attempt(1, 503))
    history.note(attempt(1))
    history.note(End(1, "create", D1, 12.0, "running", 2))
    history.close()
    lines = path.read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=Attempt | End) for line in lines] == [*history.attempts, *history.ends]
    (one,) = requests(history.attempts, history.ends)
    assert (len(one.attempts), one.deployment, one.waited_s) == (2, D1, 0.5)
    assert one.end is not None
    assert one.end.state == "running"
    assert Clock().now() < 1.0
