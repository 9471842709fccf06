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
    ],
)
def test_wrong_arguments_are_refused(
    argv: tuple[str, ...], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*argv) == 64
    assert wanted in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--help") == 0
    assert "python -m fabric.sim --seed 4711 --transcript" in capsys.readouterr().out
