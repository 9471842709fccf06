"""The command line itself, with deployment's sub-commands: usage, help, exit codes, errors of one line, pipes that
close, Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cli.main import GROUPS, main
from fabric.cli.exits import Exit
from fabric.cli.parser import build
from tests.unit.cli.api_server import ApiServer, Reply, deployment
from tests.unit.cli.conftest import Fabric
from tests.waiting import wait_until

COMMAND = (sys.executable, "-m", "deploy.cli.main")
DEPLOY = ("deploy", "web", "--flavor", "Large")


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every parser of a command, without those that only hold others."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from leaves(child)


def test_the_exit_codes_are_frozen() -> None:
    assert [int(code) for code in Exit] == [0, 1, 2, 3, 4, 64, 130]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("deplyo",),
        ("deploy",),
        DEPLOY,
        (*DEPLOY, "--count", "fifty"),
        (*DEPLOY, "--count", "0"),
        (*DEPLOY, "--count", "-1"),
        (*DEPLOY, "--count", "10001"),
        (*DEPLOY, "--count", "1", "--policy", "random"),
        (*DEPLOY, "--count", "1", "--env", "novalue"),
        (*DEPLOY, "--count", "1", "--timeout", "nan"),
        (*DEPLOY, "--count", "1", "--lost-after", "8d"),
        (*DEPLOY, "--count", "1", "--stop-after", "1w"),
        (*DEPLOY, "--coun", "1"),
        ("show",),
        ("scale", "d-1", "x"),
        ("image",),
        ("image", "push", "x"),
        ("list", "--format", "xml"),
        ("logs", "d-1.0", "--bytes", "0"),
        ("list", "--api", "127.0.0.1:8420"),
        ("list", "--api", "http://[::1"),
        ("managent",),
        ("managent", "aply"),
        ("managent", "apply", "--wave", "0.5"),
        ("managent", "apply", "--wave", "101%"),
        ("managent", "apply", "--max-failed", "-1"),
        ("managent", "deactivate"),
        ("managent", "status", "--timeout", "0"),
    ],
)
def test_wrong_usage_is_one_line_and_64(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fabric")


def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(leaves(build(GROUPS)))
    assert len(found) >= 35
    for parser in found:
        text = parser.format_help()
        assert "examples:" in text, parser.prog
        assert f"  {parser.prog}" in text.partition("examples:")[2], parser.prog
        assert max(len(line) for line in text.splitlines()) <= 120
    assert main(["deploy", "--help"]) == 0
    assert "--min-count" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    heavy = ("asyncio", "httpx", "rich", "msgspec", "pydantic", "fastapi", "kazoo", "zmq", "blake3")
    code = (
        "import sys; from deploy.cli.main import main; main(['--help']);"
        f"print(sorted(set(sys.modules) & set({heavy!r})), file=sys.stderr)"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == "[]\n"
    assert "deploy" in done.stdout
    assert "managent" in done.stdout


def test_an_unreachable_api_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound, but nobody listens: refused
        taken.bind(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for arguments in (("list",), (*DEPLOY, "--count", "1"), ("image", "push", __file__, "web"), ("logs", "d-1.0")):
            assert main(["--api", where, *arguments]) == 1
            captured = capsys.readouterr()
            assert where in captured.err
            assert captured.err.count("\n") == 1


def test_what_is_no_fabric_api_is_one_line(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", "/v1/deployments/d-1", Reply(b"<html>hello</html>"), Reply(b"<html>no</html>", 404))
    for _ in range(2):
        ended = fabric("show", "d-1")
        assert ended.code == 1
        assert ended.err.count("\n") == 1


def test_the_api_is_where_the_option_says_before_the_environment(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABRIC_API", "http://127.0.0.1:1")
    api.on("GET", "/v1/deployments/d-1", deployment())
    assert main(["show", "d-1", "--api", api.url + "/"]) == 0
    assert main(["--api", api.url, "show", "d-1"]) == 0
    assert main(["show", "d-1"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(api: ApiServer) -> None:
    """`fabric show … | head -c 0`, with more output than a pipe holds."""
    api.on("GET", "/v1/deployments/d-1", deployment(reasons=["x" * 100] * 5000))
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        (*COMMAND, "--api", api.url, "show", "d-1"), stdout=write_end, stderr=subprocess.PIPE, timeout=30, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_stops_watching_and_not_the_deployment(api: ApiServer, tmp_path: Path) -> None:
    api.on("GET", "/v1/deployments/d-1r2k0q9x4ab", deployment(state="starting"))
    with open(tmp_path / "err", "wb") as err:
        process = subprocess.Popen((*COMMAND, "--api", api.url, "show", "d-1r2k0q9x4ab", "--wait"), stderr=err)
    wait_until(lambda: any("wait" in request.query for request in list(api.requests)), what="it watches")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    told = (tmp_path / "err").read_text()
    assert "fabric show d-1r2k0q9x4ab --wait" in told
    assert "Traceback" not in told
    assert {request.method for request in api.requests} == {"GET"}
