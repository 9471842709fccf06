"""The simulator's command line: what it says, and its exit codes."""

from __future__ import annotations

import json

import pytest

from fabric.sim.__main__ import main


def code_of(*argv: str) -> int:
    try:
        return main(argv)
    except SystemExit as leave:
        return int(leave.code or 0)


def test_some_seeds_are_run_and_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--seeds", "0..1", "--nodes", "12", "--workers", "1", "--format", "json") == 0
    summed = json.loads(capsys.readouterr().out)
    assert summed["seeds"] == 2
    assert summed["failures"] == []
    assert summed["messages"] > 100


def test_a_transcript_is_a_story_of_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--seed", "3", "--nodes", "12", "--transcript") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("create /leaders/compute/r1" in line for line in lines)
    assert lines[-1].startswith("seed 3")


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (("--seeds", "9..1"), "a range such as 0..999"),
        (("--seed", "x"), "a whole number"),
        (("--nodes", "2"), "6 to 5000 nodes"),
        (("--without", "gravity"), "names of capacity"),
        (("--transcript",), "give --seed or --scenario"),
        (("--scenario", "pigs"), "list, or one of deploy, coordinator-dies"),
        (("--by-date",), "give --seconds"),
        (("--by-date", "--seconds", "nan"), "seconds, above 0"),
        (("--by-date", "--seconds", "-1"), "seconds, above 0"),
        (("--stop-at", "0"), "from 1 on"),
        (("--seed", "²"), "a whole number"),
        (("--seeds", "0..²"), "a range such as 0..999"),
    ],
)
def test_wrong_arguments_are_refused(
    argv: tuple[str, ...], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*argv) == 64
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [(("--seed", "3"), ""), (("--seeds", "0..1", "--workers", "1"), "no seed was finished in 0 s (interrupted)\n")],
)
def test_interrupted_before_any_seed_is_no_success(
    argv: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fabric.sim.__main__.simulate", interrupted)
    monkeypatch.setattr("fabric.sim.runner.simulate", interrupted)
    assert code_of(*argv) == 130
    assert capsys.readouterr().out == told


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--help") == 0
    assert "python -m fabric.sim --seed 4711 --transcript" in capsys.readouterr().out
