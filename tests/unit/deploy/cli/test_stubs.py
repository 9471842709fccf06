"""`fabric stub`: what an operator may write, and what is told of it when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy.cli.main import main
from deploy.cli.stub_commands import listed, read_list, sorted_out
from deploy.records import StubRecord
from fabric.cli.exits import Exit, Failure
from tests.deployment import guid_of, stub_record

ADDRESS = f"tcp://192.0.2.7:4000/{guid_of('web2')}"


def test_a_list_says_what_it_knows(tmp_path: Path) -> None:
    path = tmp_path / "machines"
    path.write_text(f"# ours\nweb1 /site/r1\n\n  web2 - {ADDRESS}  # moved\nweb3\n")
    assert read_list(path) == (
        StubRecord("web1", "", "/site/r1", "", "", 0, "operator"),
        StubRecord("web2", ADDRESS, "", guid_of("web2"), "", 0, "operator"),
        StubRecord("web3", "", "", "", "", 0, "operator"),
    )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "expected at least one boot stub"),
        ("web1\nweb1\n", ":2: expected each name once, found web1 again"),
        ("web1 /site a b", ":1: expected NAME DOMAIN ADDRESS, found 4 words"),
        ("../web1", r":1: name: expected up to 64 letters"),
        ("web1 site", ":1: domain: managent id: expected a path like"),
        ("web1 /site/../x", ":1: domain: managent id: expected parts"),
        ("\n\nweb1 /site tcp://x:1", ":3: address: expected tcp://host:port/incarnation"),
        ("caf\u00e9", ":1: name: expected"),
    ],
)
def test_what_is_wrong_in_a_list_is_told_with_its_line(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "machines"
    path.write_text(text)
    with pytest.raises(Failure, match=wrong) as told:
        read_list(path)
    assert told.value.code is Exit.USAGE
    assert str(path) in str(told.value)


def test_a_list_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="expected a text file that can be read"):
        read_list(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(Failure, match="expected a text file that can be read"):
        read_list(tmp_path / "binary")


def test_a_name_is_checked_before_anything_is_asked() -> None:
    with pytest.raises(Failure, match=r"name: expected up to 64 letters.* found '/stubs'"):
        listed("/stubs", "", "")


def test_of_two_that_take_one_name_none_is_chosen() -> None:
    one, two, other = stub_record("a"), stub_record("a", guid=guid_of("x"), host="h2"), stub_record("b")
    answers = sorted_out([one, two, other])
    assert answers.records == (replace(other, by="discovery"),)
    assert [[record.host for record in rivals] for rivals in answers.rivals.values()] == [["a", "h2"]]


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["add"], "Expected NAME, or --file LIST"),
        (["add", "web1", "--file", "x"], "Expected NAME, or --file LIST"),
        (["add", "--file", "x", "--domain", "/site"], "expected in the lines of --file"),
        (["add", "web1", "--domain", "site"], "domain: managent id: expected a path"),
        (["list", "--domain", "site"], "--domain: managent id: expected a path"),
        (["remove", "../x"], "name: expected"),
        (["ping", "web1", "--parent", "x"], "--parent: managent id"),
        (["discover", "--group", "192.0.2.1:1", "--interface", "127.0.0.1"], "--group: expected a multicast group"),
        (["discover", "--group", "239.255.76.1:7601", "--interface", "lo"], "--interface: expected the IPv4 address"),
        (["discover", "--group", "239.255.76.1:7601", "--interface", "127.0.0.1"], "expected the cluster's key"),
    ],
)
def test_wrong_usage_is_one_line_and_its_exit_code(
    arguments: list[str], wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABRIC_ZK", "127.0.0.1:1")
    monkeypatch.delenv("FABRIC_CLUSTER_KEY_FILE", raising=False)
    assert main(["stub", *arguments]) == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert wrong in err
    assert len(err.splitlines()) == 1
