"""`fabric chaos matrix` and `steps`: what they show, and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Self

import pytest

from fabric.chaos import matrix
from fabric.chaos.cells import Cell
from fabric.cli.exits import Exit
from fabric.cli.main import main
from fabric.steps import STEPS, Step

GOOD = Cell("agent.started", "r1c02", "running", "", 2150, 40)
BAD = Cell("agent.offered", "r2c01", "running", "", 900, -1, ("orphans: d-1.0 runs, and its deployment is gone",))


class Staged:
    """A matrix whose cells are told by the test."""

    told: tuple[Cell, ...] = ()
    asked: tuple[object, ...] = ()

    def __init__(self, *asked: object) -> None:
        Staged.asked = asked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, steps: Iterable[Step]) -> Iterator[Cell]:
        wanted = [step.name for step in steps]
        return iter([cell for cell in Staged.told if cell.step in wanted])


@pytest.fixture(autouse=True)
def _staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "Matrix", Staged)


def test_a_matrix_that_holds_is_shown_and_ends_well(capsys: pytest.CaptureFixture[str]):
    Staged.told = (GOOD,)
    assert main(["chaos", "matrix", "--roles", "agent", "--action", "stop", "--back", "now"]) == Exit.DONE
    assert Staged.asked == ("stop", "now", 1)
    out, err = capsys.readouterr()
    shown = next(line for line in out.splitlines() if line.startswith("agent.started"))
    assert shown.split() == ["agent.started", "r1c02", "running", "2.1", "s", "0.0", "s", "yes"]
    assert "1 of 1 cells hold" in out
    assert "agent.started: running" in err


def test_one_that_does_not_hold_says_why_and_ends_with_an_error(capsys: pytest.CaptureFixture[str]):
    Staged.told = (BAD, GOOD)
    assert main(["chaos", "matrix"]) == Exit.ERROR
    out, _ = capsys.readouterr()
    shown = next(line for line in out.splitlines() if line.startswith("agent.offered"))
    assert "never" in shown
    assert "NO" in shown
    assert "its deployment is gone" in shown
    assert "1 of 2 cells hold" in out


def test_as_json_it_has_every_cell(capsys: pytest.CaptureFixture[str]):
    Staged.told = (BAD, GOOD)
    assert main(["chaos", "matrix", "--format", "json"]) == Exit.ERROR
    told = json.loads(capsys.readouterr().out)
    assert [(cell["step"], cell["ended_ms"]) for cell in told["cells"]] == [
        ("agent.offered", 900),
        ("agent.started", 2150),
    ]
    assert told["action"] == "kill"


def test_steps_are_listed_with_what_each_is(capsys: pytest.CaptureFixture[str]):
    assert main(["chaos", "steps", "--format", "json"]) == Exit.DONE
    told = json.loads(capsys.readouterr().out)
    assert [one["step"] for one in told] == [step.name for step in STEPS]
    assert main(["chaos", "steps", "--steps", "holder.*"]) == Exit.DONE
    assert "it has sent a chunk" in capsys.readouterr().out


@pytest.mark.parametrize("choice", [["--roles", "leader"], ["--steps", "agent.sleeping"]])
def test_what_there_is_not_is_wrong_usage(choice: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["chaos", "matrix", *choice]) == Exit.USAGE
    assert "expected" in capsys.readouterr().err
