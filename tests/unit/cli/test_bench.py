"""`fabric bench`: how it refuses, how it compares, and what people see of a result."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from fabric.cli import loading
from fabric.cli.exits import Exit, Failure
from fabric.cli.main import main
from fabric.load.plotting import CannotPlot, ready
from fabric.load.results import Check, encode
from tests.unit.load.given import RESULT, result

LOAD = ["bench", "load"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected --clients N (closed loop) or --rate N/s (open loop), and not both"),
        (["--clients", "2", "--rate", "5/s"], "expected --clients N (closed loop) or --rate N/s (open loop)"),
        (["--clients", "0"], "expected a whole number from 1 to 1000, found '0'"),
        (["--rate", "much"], "expected a rate such as 20/s"),
        (["--rate", "20"], "expected a rate such as 20/s"),
        (["--rate", "0/s"], "expected a rate such as 20/s"),
        (["--rate", "10000/s", "--for", "1h"], "expected at most 2000000 requests in one run"),
        (["--clients", "1", "--for", "soon"], "expected a time such as 5s"),
        (["--clients", "1", "--for", "0s"], "--for: expected a time above 0"),
        (["--clients", "1", "--mix", "create=1,move=2"], "expected weights such as create=1,scale=2,delete=1"),
        (["--clients", "1", "--mix", "create=nan"], "expected weights such as create=1,scale=2,delete=1"),
        (["--clients", "1", "--mix", "create=0"], "not all of them 0"),
        (["--clients", "1", "--keep", "5"], "--keep: expected --mix beside it"),
        (["--clients", "9", "--keep", "5", "--mix", "create=1"], "found 5 for 9 clients"),
        (["--clients", "1", "--racks", "2", "--api", "http://127.0.0.1:1"], "or --racks (one to bring up), found both"),
        (["--clients", "1", "--dir", "/x", "--api", "http://127.0.0.1:1"], "expected --api or --dir, found both"),
        (["--clients", "1", "--driver", "qemu"], "invalid choice"),
        (["--clients", "1", "--plot", "a.pdf"], "expected a name that ends in .png or .svg"),
        (["--clients", "1", "--output", "/no/such/folder/a.json"], "expected a folder that can be written"),
        (["--clients", "1", "--output", "/"], "expected a file that can be written at /, found a folder"),
        (["--clients", "1", "--api", "http://127.0.0.1:99999"], "found 'http://127.0.0.1:99999' (Port out of range"),
        (["--clients", "1", "--api", "http://"], "expected http(s)://HOST[:PORT]"),
        (["--clients", "1", "--api", "http://a..b"], "expected http(s)://HOST[:PORT]"),
        (["--clients", "1", "--api", "http://127.0.0.1:1/x y"], "expected http(s)://HOST[:PORT]"),
        (["--clients", "1", "--image-size", "much"], "expected a size such as 4MiB"),
        (["--clients", "1", "--image-size", "2GiB"], "--image-size: expected at most 1024 MiB, found 2048 MiB"),
        (["--clients", "1", "--racks", "1"], "expected a whole number from 2 to 200, found '1'"),
        (["--clients", "1", "--racks", "200", "--compute", "1000"], "expected 1 to 5000 agents"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LOAD, *arguments]) == Exit.USAGE
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_without_an_api_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LOAD, "--clients", "1", "--api", "http://127.0.0.1:1"]) == Exit.ERROR
    assert "no connection to 127.0.0.1:1" in capsys.readouterr().err


def test_without_matplotlib_a_picture_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(CannotPlot):
        ready(Path("a.png"))
    assert main([*LOAD, "--clients", "1", "--plot", "a.png"]) == Exit.USAGE
    assert "install the extra 'bench'" in capsys.readouterr().err


def test_the_help_says_how_the_loops_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LOAD, "--help"]) == Exit.DONE
    said = capsys.readouterr().out
    for words in ("Closed loop", "Open loop", "count from when", "examples:", "fabric bench load --racks 25"):
        assert words in said


def written(folder: Path, **changes: object) -> tuple[str, str]:
    (folder / "A.json").write_bytes(encode(RESULT))
    (folder / "B.json").write_bytes(encode(result(**changes)))
    return str(folder / "A.json"), str(folder / "B.json")


def test_comparing_two_files_says_what_got_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path, per_s={"create": 4.0, "delete": 5.0, "all": 9.0}, machine="4 cores")
    assert main(["bench", "compare", a, b]) == Exit.FOUND
    said = capsys.readouterr()
    row = next(line for line in said.out.splitlines() if line.startswith("create: requests a second"))
    assert "0.80" in row
    assert row.endswith("WORSE")
    assert "1 figure worse by more than 10 %" in said.out
    assert "not alike: machine: 2 cores / 4 cores" in said.err
    assert main(["bench", "compare", a, b, "--worse", "25%"]) == Exit.DONE
    assert "nothing is worse by more than 25 %" in capsys.readouterr().out
    assert main(["bench", "compare", a, b, "--format", "json"]) == Exit.FOUND
    told = json.loads(capsys.readouterr().out)
    assert [row["figure"] for row in told["rows"] if row["worse"]] == ["create: requests a second"]


@pytest.mark.parametrize(
    ("worse", "code", "says"), [("ten", Exit.USAGE, "expected a part such as 10%"), ("10%", Exit.ERROR, "No such file")]
)
def test_comparing_what_can_not_be_is_one_line(
    worse: str, code: Exit, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / "gone.json")
    assert main(["bench", "compare", gone, gone, "--worse", worse]) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_result_is_shown_with_what_broke(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Check("no request is lost", False, "1 lost: d-7")
    loading.show(result(checks=(broken,), unsent=4, due=104, interrupted=True))
    said = capsys.readouterr().out
    for words in (
        "closed, 2 clients", "4 instances of Small", "create 5.0, delete 5.0, all 10.0", "10.0 s (interrupted)",
        "create settled", "4 of 104 that were due were not sent", "discussion", "load generator", "3.4 transactions",
        "failed: no room", "BROKEN: no request is lost (1 lost: d-7)",
    ):  # fmt: skip
        assert words in said, words


def test_a_result_that_can_not_be_written_is_shown_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(Failure, match=r"A\.json: can't be written: No space left"):
        loading._tell(Namespace(output=tmp_path / "A.json", plot=None, format="table"), RESULT)
    assert "create settled" in capsys.readouterr().out
