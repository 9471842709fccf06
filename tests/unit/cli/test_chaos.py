"""`fabric chaos`: what it lists and shows, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabric.chaos import named
from fabric.chaos.reading import parse
from fabric.cli.exits import Exit
from fabric.cli.main import main


def test_the_list_has_every_scenario_with_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "list"]) == Exit.DONE
    table = capsys.readouterr().out
    assert main(["chaos", "list", "--format", "json"]) == Exit.DONE
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told] == list(named.names())
    assert all(one["name"] in table and parse(one["lines"], one["name"]).about == one["about"] for one in told)


def test_a_scenario_is_shown_as_lines_that_can_be_run_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["chaos", "run", "storm", "--show", "--for", "20s", "--load", "9/s", "--seed", "4"]) == Exit.DONE
    lines = capsys.readouterr().out
    assert "load 9/s" in lines
    assert "for 20s\n" in lines
    assert "seed 4\n" in lines
    (tmp_path / "mine.txt").write_text(lines)
    assert main(["chaos", "run", str(tmp_path / "mine.txt"), "--show"]) == Exit.DONE
    assert capsys.readouterr().out == lines


def test_random_faults_are_the_same_for_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for seed in ("17", "17", "18"):
        assert main(["chaos", "run", "--random", "--seed", seed, "--for", "2m", "--show"]) == Exit.DONE
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert "for 120s\n" in shown[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chaos", "run"], "expected a scenario, or --random, and not both"),
        (["chaos", "run", "storm", "--random"], "expected a scenario, or --random, and not both"),
        (["chaos", "run", "no-such"], "expected a scenario's name"),
        (["chaos", "run", "storm", "--for", "soon"], "expected a time such as 5s"),
        (["chaos", "run", "storm", "--load", "much"], "expected a rate such as 5/s"),
        (["chaos", "run", "storm", "--seed", "-1"], "expected a whole number from 0"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == Exit.USAGE
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_wrong_line_of_a_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("for 5s\nat 1s tickle api\n")
    assert main(["chaos", "run", str(path)]) == Exit.USAGE
    assert "mine, line 2: expected one of kill" in capsys.readouterr().err


def test_a_fabric_that_is_not_up_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["chaos", "run", "storm", "--dir", str(tmp_path)]) == Exit.ERROR
    assert "no keeper answers" in capsys.readouterr().err
