"""Each scenario happens as its golden transcript tells it. A change that is meant is written down, and reviewed."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from fabric.sim.__main__ import main
from fabric.sim.scenarios import BOUND_S, SCENARIOS, Stage, play
from fabric.sim.world import Options
from tests.sim.conftest import REWRITE

GOLDEN = Path(__file__).parent / "golden"
MAX_LINES = 200
"""More than that nobody reads."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_happens_as_it_is_told(name: str, rewrites_golden: bool) -> None:
    result = play(name, Options(story=True))
    assert result.failure is None, f"{result.failure.promise}: {result.failure.found}"
    told, file = [f"{line}\n" for line in result.story], GOLDEN / f"{name}.txt"
    assert 5 < len(told) <= MAX_LINES
    if rewrites_golden:
        file.write_text("".join(told))
    golden = file.read_text().splitlines(keepends=True) if file.exists() else []
    changes = "".join(difflib.unified_diff(golden, told, str(file), "what happens now"))
    assert not changes, f"{changes}\nif that is meant: pytest tests/sim {REWRITE}, then read the difference in git"


def test_every_golden_transcript_is_of_a_scenario() -> None:
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(SCENARIOS)


def test_a_transcript_makes_no_difference() -> None:
    told, silent = play("drain", Options(story=True)), play("drain", Options())
    assert (told.events, told.virtual_s, silent.story) == (silent.events, silent.virtual_s, ())


def test_what_never_becomes_so_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(stage: Stage) -> None:
        stage.until("pigs fly", lambda: False)

    monkeypatch.setitem(SCENARIOS, "waits", waits)
    failure = play("waits", Options()).failure
    assert failure is not None
    assert failure.found == f"in {BOUND_S:g} s it was never so that pigs fly"
    assert failure.command == "python -m fabric.sim --scenario waits --transcript"


def test_they_are_listed_and_played_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scenario", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(SCENARIOS)
    assert main(["--scenario", "rot", "--transcript"]) == 0
    told = capsys.readouterr().out
    assert told.startswith((GOLDEN / "rot.txt").read_text())
    assert told.splitlines()[-1].startswith("scenario rot: no promise was broken")
