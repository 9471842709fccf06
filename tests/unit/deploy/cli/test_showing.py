"""What people and programs see of plans and outcomes: tables that are cut, JSON that is whole, sums that add up."""

from __future__ import annotations

import asyncio
import json

import pytest
from rich.console import Console

from deploy.cli import applying, showing, waiting
from deploy.cli.applying import Watching, sentence
from deploy.messages import Counts, Entry
from deploy.plan import Change, Plan
from deploy.sets import Sets, Unfit
from deploy.top import Answer, Progress, Result
from deploy.waves import Wave
from fabric.cli import output

MANY = tuple(Change(f"/r/{number}", "add", "not there") for number in range(50))
PLAN = Plan("http://r/", ("/r",), "g1", tuple(one.path for one in MANY), MANY, 0)
SETS = Sets(
    active=("/r",),
    refused=(Unfit("/r/a", "it must be configured, it is active", "/r", "s1"),),
    unreachable=(Unfit("/r/b", "its initiator did not answer (/r/b)", "/r"),),
    surplus=("/r/old",),
)


def test_a_plan_for_people_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    showing.show_plan(PLAN)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["CHANGE", "MANAGENT", "REASON"]
    assert lines[2].split() == ["add", "/r/0", "not", "there"]
    assert lines[-2] == "... and 10 more (all: --format json)"
    assert lines[-1] == "50 managents: 50 to add"


def test_what_lies_in_the_repository_has_no_address_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("http://r:8430", "http://r:8430/", "http://r:8430/repository"):
        assert showing.shortened("x (http://r:8430/a.xml, http://s:1/b.xml)", url) == "x (a.xml, http://s:1/b.xml)"
    change = Change("/r", "reconfigure", "managent configuration 1 -> 2 (http://r/a.xml)")
    showing.show_plan(Plan("http://r/", ("/r",), "g1", ("/r",), (change,), 0))
    assert "(a.xml)" in capsys.readouterr().out


def test_a_plan_for_programs_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    showing.emit(showing.plan_view(PLAN))
    found = json.loads(capsys.readouterr().out)
    assert len(found.pop("changes")) == 50
    assert found == {
        "repository": "http://r/",
        "generation": "g1",
        "targeted": 50,
        "unchanged": 0,
        "counts": {"add": 50},
        "warnings": [],
    }


def test_nothing_to_do_is_said() -> None:
    assert showing.summary(Plan("http://r/", ("/r",), "g1", ("/r",), (), 1)) == "1 managent: 1 unchanged; nothing to do"


def test_who_is_not_active_is_named_with_the_reason_and_the_sum_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    showing.show_sets(SETS, "2 managents are not active")
    out = capsys.readouterr().out
    assert out.splitlines()[2].split(None, 4) == ["refused", "/r/a", "s1", "/r", "it must be configured, it is active"]
    assert "there, and not described: /r/old" in out
    assert "halted: 2 managents are not active" in out
    assert out.splitlines()[-1] == "3 targeted = 1 active + 1 refused + 1 unreachable"


def test_an_outcome_for_programs_has_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    showing.emit(showing.applied_view(PLAN, Result(SETS, 1, 2, "too many"), 1.5))
    found = json.loads(capsys.readouterr().out)
    assert (found["wave"], found["of"], found["halted"], found["took_s"]) == (1, 2, "too many", 1.5)
    assert found["sets"]["refused"] == [
        {"path": "/r/a", "reason": "it must be configured, it is active", "through": "/r", "stub": "s1"}
    ]
    assert found["sets"]["active"] == ["/r"]
    showing.emit(showing.applied_view(PLAN, None, 0.1))
    assert json.loads(capsys.readouterr().out)["sets"] is None


def test_status_lists_who_answered_and_then_who_did_not(capsys: pytest.CaptureFixture[str]) -> None:
    entries = (
        Entry("/r", "s1", "installed", "active", "done"),
        Entry("/r/a", "s1", "installed", "active", "refused", "it must be configured, it is active", through="/r"),
    )
    answer = Answer(entries, SETS)
    showing.show_entries(answer.entries)
    showing.show_sets(answer.sets, listed=True)
    out = capsys.readouterr().out
    assert out.count("/r/a") == 1
    assert out.count("/r/b") == 2
    showing.emit(showing.answer_view(answer))
    found = json.loads(capsys.readouterr().out)
    assert found["entries"][1]["outcome"] == "refused"
    assert found["sets"]["counts"]["targeted"] == 3


def test_progress_is_one_sentence() -> None:
    counts = Counts(targeted=10, active=6, passive=1, failed=1, pending=2)
    assert sentence(Progress(Wave(2, 5, "/r/9", ()), counts, 50, ())) == "wave 2 of 5: 7 of 50 active, 1 not"
    assert sentence(Progress(Wave(1, 1, "", ()), Counts(active=50), 50, ())) == "50 of 50 active"


def test_a_question_between_waves_has_the_screen_for_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A live line would be written over it."""

    async def asked(question: str) -> bool:
        assert not live.is_started
        return question == "go on? [y/N] "

    monkeypatch.setattr(output, "Console", lambda **kinds: Console(**kinds, force_terminal=True))
    monkeypatch.setattr(applying, "_agreed", asked)
    with output.Progress() as shown:
        assert shown._live
        live = shown._live
        assert asyncio.run(Watching(shown).ask(Wave(1, 2, "/r/9", ()), Counts(targeted=3, active=3)))
        assert live.is_started
    assert "wave 1 of 2 is settled: 3 targeted = 3 active" in capsys.readouterr().err


def test_what_takes_long_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def told() -> str:
        said = ""
        async with asyncio.timeout(10), waiting.Waiting("the directory") as it:
            it.now("answers")
            while not said:
                await asyncio.sleep(0)
                said = capsys.readouterr().err
        return said

    monkeypatch.setattr(waiting, "QUIET_S", 0.0)
    assert asyncio.run(told()) == "waiting for answers\n"


def test_what_does_not_take_long_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    async def quick() -> None:
        async with waiting.Waiting("the directory"):
            await asyncio.sleep(0)

    asyncio.run(quick())
    assert capsys.readouterr().err == ""


def test_progress_without_a_terminal_is_a_line_a_wave_and_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with output.Progress() as shown:
        watching = Watching(shown)
        for wave, active in ((1, 0), (1, 1), (1, 2), (2, 3), (2, 4)):
            watching.show(Progress(Wave(wave, 2, "/r/9", ()), Counts(targeted=5, active=active), 5, ()))
    assert capsys.readouterr().err.splitlines() == ["wave 1 of 2: 0 of 5 active", "wave 2 of 2: 3 of 5 active"]
