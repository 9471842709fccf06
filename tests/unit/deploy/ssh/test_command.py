"""The command line of ssh, and the program on the other side: always the same words, whatever things are called."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy.ssh import host as host_package
from deploy.ssh.command import MODULES, REMOTE_COMMAND, SshSettings, may_pass, opening, ssh_words
from deploy.ssh.host.orders import MARK, NO_PYTHON, Order
from deploy.ssh.hosts import Host

HOSTILE = "a'b\"c $(touch x) `touch y` ;&|<>\\ %s"
SHELLS = [shell for shell in ("sh", "dash", "bash", "zsh", "fish", "tcsh") if shutil.which(shell)]


def remote(shell: str, given: bytes) -> subprocess.CompletedProcess[bytes]:
    """As sshd runs a command: by the user's login shell."""
    return subprocess.run([shell, "-c", REMOTE_COMMAND], input=given, capture_output=True, timeout=30)


def test_the_destination_is_the_last_word_but_one_and_no_option() -> None:
    words = ssh_words(Host("2001:db8::1", "root", 2222), SshSettings())
    assert words[-7:] == ["-p", "2222", "-l", "root", "--", "2001:db8::1", REMOTE_COMMAND]
    assert ssh_words(Host("alias"), SshSettings())[-3:] == ["--", "alias", REMOTE_COMMAND]
    assert "-l" not in ssh_words(Host("alias"), SshSettings())


def test_it_asks_nothing_and_forwards_nothing() -> None:
    words = ssh_words(Host("a"), SshSettings(connect_s=7))
    options = {words[at + 1] for at, word in enumerate(words) if word == "-o"}
    assert {"BatchMode=yes", "ConnectTimeout=7", "ForwardAgent=no", "ClearAllForwardings=yes"} <= options


def test_an_operators_options_come_before_ours() -> None:
    """Of an option that is given twice ssh takes the first."""
    words = ssh_words(Host("a"), SshSettings(config="my config", options=("ConnectTimeout=1", "User=x; id")))
    assert words[:7] == ["ssh", "-F", "my config", "-o", "ConnectTimeout=1", "-o", "User=x; id"]


def test_the_remote_command_means_the_same_to_every_shell() -> None:
    assert REMOTE_COMMAND.startswith("exec /bin/sh -c '")
    assert REMOTE_COMMAND.endswith("'")
    assert REMOTE_COMMAND.count("'") == 2
    assert "!" not in REMOTE_COMMAND, "csh would take it for history"
    assert "\n" not in REMOTE_COMMAND


@pytest.mark.parametrize("shell", SHELLS)
def test_a_login_shell_starts_the_program(shell: str) -> None:
    source = b"import sys; print(sys.stdin.buffer.readline())"
    ran = remote(shell, b"%s\n%d\n%sthe order\n" % (sys.executable.encode(), len(source), source))
    assert (ran.returncode, ran.stdout) == (0, b"b'the order\\n'\n")


def test_the_wanted_python_is_a_name_and_no_command(tmp_path: Path) -> None:
    python = tmp_path / HOSTILE.replace("/", "")
    python.symlink_to(sys.executable)
    source = b"print(42)"
    ran = remote("sh", b"%s\n%d\n%s" % (str(python).encode(), len(source), source))
    assert (ran.returncode, ran.stdout) == (0, b"42\n")
    assert [path.name for path in tmp_path.iterdir()] == [python.name]


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    python.chmod(0o755)
    ran = remote("sh", opening(str(python)))
    assert ran.returncode == NO_PYTHON
    assert ran.stderr.decode().strip() == f"{python}: Python 3.9.2"


def test_a_path_of_two_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the path of a Python"):
        opening("/usr/bin/python3\nrm")


def test_what_is_sent_runs_without_any_package(tmp_path: Path) -> None:
    """Neither ours nor others: isolated, without site packages."""
    order = Order("check", folder=str(tmp_path / "new"), python_env=str(tmp_path))
    first, _, rest = opening("").split(b"\n", 2)
    assert first == b""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; exec(sys.stdin.buffer.read())"],
        input=rest + b"\nraise SystemExit(99)",
        capture_output=True,
        timeout=30,
        cwd=tmp_path,
    )
    assert ran.returncode == 1, "the operator is gone before there is an order"
    assert ran.stderr == b""
    with subprocess.Popen(
        ["sh", "-c", REMOTE_COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(opening(sys.executable) + json.dumps(asdict(order)).encode() + b"\n")
        process.stdin.flush()
        said = [json.loads(line.removeprefix(MARK.encode())) for line in process.stdout]
    assert [one["kind"] for one in said] == ["hello", "begin", "step", "begin", "end"]
    assert "expected the absolute path of an environment" in said[-1]["text"]
    assert not list(tmp_path.iterdir())


def test_what_is_sent_imports_the_standard_library_and_itself() -> None:
    folder = Path(host_package.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *MODULES}, "all of it is sent"
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.startswith("deploy.ssh.host") or name.partition(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize(
    ("errors", "passes"),
    [
        ("ssh: connect to host a port 22: Connection refused", True),
        ("ssh: connect to host a port 22: Connection timed out", True),
        ("kex_exchange_identification: Connection closed by remote host", True),
        ("ssh: Could not resolve hostname a: Temporary failure in name resolution", True),
        ("ssh: Could not resolve hostname a: Name or service not known", False),
        ("root@a: Permission denied (publickey).", False),
        ("Host key verification failed.", False),
        ("command-line: line 0: Bad configuration option: nonsense", False),
        ("", True),
    ],
)
def test_only_what_may_pass_is_tried_again(errors: str, passes: bool) -> None:
    assert may_pass(errors) is passes
