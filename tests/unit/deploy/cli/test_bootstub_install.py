"""`fabric bootstub install`: what is refused before any host is asked, and what is shown in the end."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from deploy.cli import bootstub, bootstub_install, installing
from deploy.ssh.fleet import Outcome, Step
from deploy.ssh.hosts import Host
from fabric.cli.exits import Exit, Failure
from fabric.cli.parser import Parser


def parse(*words: str) -> Namespace:
    parser = Parser()
    bootstub_install.register(parser.add_subparsers())
    return parser.parse_args(words)


@pytest.fixture(autouse=True)
def _no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FABRIC_ZK", raising=False)


@pytest.fixture
def hosts(tmp_path: Path) -> str:
    file = tmp_path / "hosts.txt"
    file.write_text("h1\n")
    return str(file)


@pytest.fixture
def key(tmp_path: Path) -> str:
    file = tmp_path / "key"
    file.write_text("ab" * 32)
    file.chmod(0o600)
    return str(file)


def test_without_a_command_a_boot_stub_runs() -> None:
    parser = Parser()
    bootstub.register(parser.add_subparsers())
    for words, run in (
        (["--name", "r1c01"], "deploy.cli.bootstub:run"),
        (["install", "--hosts", "f"], "deploy.cli.bootstub_install:install"),
        (["uninstall", "--hosts", "f"], "deploy.cli.bootstub_install:uninstall"),
    ):
        assert parser.parse_args(["bootstub", *words]).run == run


def test_it_is_found_by_name() -> None:
    assert parse("install", "--hosts", "f").run == "deploy.cli.bootstub_install:install"
    assert parse("uninstall", "--hosts", "f").run == "deploy.cli.bootstub_install:uninstall"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--key-file", "/none"], "--key-file: cluster_key_file: expected a readable file"),
        (["--listen", "0.0.0.0:1"], "--key-file: expected the cluster's key, since the boot stubs can be reached"),
        (["--directory", "192.0.2.1:2181"], "--key-file: expected the cluster's key, since the boot stubs can be"),
        (["--listen", "nowhere"], "--listen: expected"),
        (["--listen", "127.0.0.1:0", "--domain", "site"], "--domain: managent id: expected a path"),
        (["--listen", "127.0.0.1:0", "--directory", "a:b"], "--directory: "),
        (["--listen", "127.0.0.1:0", "--python-env", "/e", "--python", "a\nb"], "--python: expected the path"),
    ],
)
def test_bad_arguments_are_wrong_usage(hosts: str, words: list[str], said: str) -> None:
    with pytest.raises(Failure) as raised:
        bootstub_install.install(parse("install", "--hosts", hosts, *words))
    assert said in str(raised.value)
    assert raised.value.code == Exit.USAGE


def test_a_key_that_others_may_read_is_refused(hosts: str, key: str) -> None:
    Path(key).chmod(0o644)
    with pytest.raises(Failure, match="expected that only its owner may read") as raised:
        bootstub_install.install(parse("install", "--hosts", hosts, "--key-file", key))
    assert "abab" not in str(raised.value)


def test_what_comes_after_two_dashes_is_the_boot_stubs() -> None:
    args = parse("install", "--hosts", "f", "--allow-root", "/a", "--allow-root", "/b", "--", "--log-level", "debug")
    assert (args.allow_root, args.more) == (["/a", "/b"], ["--log-level", "debug"])
    assert parse("install", "--hosts", "f").more == []


def test_a_bad_hosts_file_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "hosts.txt"
    for content, said in (
        (b"a\n-b\n", "hosts.txt, line 2: expected a host's name"),
        (b"\xff\n", "--hosts: expected text in UTF-8"),
        (b"", "expected a host a line"),
    ):
        file.write_bytes(content)
        with pytest.raises(Failure) as raised:
            bootstub_install.uninstall(parse("uninstall", "--hosts", str(file)))
        assert said in str(raised.value)
        assert raised.value.code == Exit.USAGE
    with pytest.raises(Failure, match=r"expected a readable file, found .*none: No such file"):
        bootstub_install.uninstall(parse("uninstall", "--hosts", str(tmp_path / "none")))


@pytest.mark.parametrize(
    "words",
    [
        ["install"],
        ["install", "--hosts", "f", "--wheels", "d", "--python-env", "e"],
        ["install", "--hosts", "f", "--parallel", "0"],
        ["install", "--hosts", "f", "--time-limit", "0"],
        ["install", "--hosts", "f", "--ssh-option", "nonsense"],
        ["uninstall", "--hosts", "f", "--check"],
    ],
)
def test_wrong_usage_ends_with_64(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(*words)
    assert raised.value.code == Exit.USAGE


OUTCOMES = (
    Outcome(Host("h1", "root", name="r1c01"), "installed", steps=(Step("key", "key written", 1.5),), pid=7, took_s=1.0),
    Outcome(Host("h2"), "unchanged"),
    Outcome(Host("::1", port=22), "failed", "expected x, found [bold]y[/]", ("last line",)),
    Outcome(Host("h4"), "unreachable", "Connection refused", tries=3),
)


def test_people_see_each_host_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    installing.show(OUTCOMES, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:4] == ["root@h1", "r1c01", "installed", "1.0"]
    assert lines[-4:] == [
        "[::1]:22: expected x, found [bold]y[/]",
        "  last line",
        "h4: Connection refused",
        "4 hosts: 1 installed, 1 unchanged, 1 failed, 1 unreachable",
    ]


def test_programs_see_exact_sets(capsys: pytest.CaptureFixture[str]) -> None:
    installing.show(OUTCOMES, True)
    said = json.loads(capsys.readouterr().out)
    assert said["targeted"] == sum(len(names) for names in said["sets"].values()) == 4
    assert said["sets"]["failed"] == ["[::1]:22"]
    assert said["hosts"][0]["steps"] == [{"name": "key", "done": "key written", "ms": 1.5}]
    assert said["hosts"][3]["tries"] == 3


def test_the_exit_code_is_that_of_the_worst() -> None:
    results = {
        ("installed", "unchanged", "removed", "absent"): Exit.DONE,
        ("unchanged", "differs"): Exit.FOUND,
        ("differs", "failed"): Exit.ERROR,
        ("installed", "unreachable"): Exit.ERROR,
        ("failed", "interrupted"): Exit.INTERRUPTED,
    }
    for names, code in results.items():
        assert installing.exit_code([Outcome(Host(name), name) for name in names]) == code  # type: ignore[arg-type]
