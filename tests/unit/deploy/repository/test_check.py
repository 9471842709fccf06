"""`fabric repository check` and `serve`, `fabric managent explain`, and loading whole descriptions."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.cli.main import main
from deploy.described import Described
from deploy.repository.check import Unmatched, check
from deploy.repository.description import description_of, load_description
from deploy.repository.digests import digest_of
from deploy.repository.folder import Folder
from deploy.resolved import Unresolved
from tests.unit.deploy.repository.world import (
    INFORMATION,
    INITIATOR,
    LEAF,
    answer,
    described,
    run,
    says,
    scripted,
    serving_at,
    stack,
)


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def fabric(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def go(*arguments: str) -> Ended:
        code = main(arguments)
        said = capsys.readouterr()
        return Ended(int(code), said.out, said.err)

    return go


def overriding(root: Path) -> Path:
    """Every leaf gets leaf.xml, and those of r1 another document after it."""
    more = b'<entry><pattern path="/r1/*"/><ref url="r1.xml"/></entry></managent-config>'
    information = INFORMATION.replace(b"</managent-config>", more)
    return described(root, repository_xml=information, r1_xml=LEAF.replace(b"1", b"2"))


# --- check -----------------------------------------------------------------------------------------------------------


def test_a_good_directory_is_good_and_what_is_not_used_is_told(tmp_path: Path) -> None:
    root = described(tmp_path / "d", notes_txt=b"x")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_bytes(b"")
    found = check(root, ("/r1", "/r1/n1"))
    assert found.good
    assert found.unused == ("notes.txt",)
    assert (found.unmatched, found.elsewhere) == ((), ())
    assert check(root, ("/r1",)).unmatched == (
        Unmatched("code", 1, 'xpath="/*/*"'),
        Unmatched("install", 1, 'xpath="/*/*"'),
        Unmatched("managent", 2, 'xpath="/*/*"'),
    )


def test_what_is_wrong_with_an_identifier_is_told(tmp_path: Path) -> None:
    found = check(described(tmp_path / "d"), ("/a/b/c", "/a/../b", "/r1"))
    assert not found.good
    assert [(identifier, wrong[:50]) for identifier, wrong in found.identifiers] == [
        ("/a/b/c", "/a/b/c: expected an entry of managent-code that ma"),
        ("/a/../b", "managent id: expected parts of 1 to 64 letters, di"),
        ("/r1", ""),
    ]


def test_references_elsewhere_are_not_looked_at_and_excuse_a_missing_role(tmp_path: Path) -> None:
    information = INFORMATION.replace(b"sub/initiator.xml", b"http://other/initiator.xml")
    found = check(described(tmp_path / "d", repository_xml=information), ("/r1",))
    assert found.good
    assert found.elsewhere == ("http://other/initiator.xml",)


def test_the_command_check_ends_with_1_when_something_is_wrong(tmp_path: Path, fabric: Callable[..., Ended]) -> None:
    root = described(tmp_path / "d", notes_txt=b"x")
    good = fabric("repository", "check", str(root), "--id", "/r1")
    assert good.code == 0
    assert good.out.splitlines()[:2] == ["good: /r1", "not used: notes.txt"]
    (root / "leaf.py").unlink()
    bad = fabric("repository", "check", str(root))
    assert bad.code == 1
    assert bad.out.startswith("wrong: repository.xml, managent-code entry 1: leaf.py: leaf.py: expected a file")
    told = json.loads(fabric("repository", "check", str(root), "--format", "json").out)
    assert told["generation"] == ""
    assert len(told["problems"]) == 1


# --- serve -----------------------------------------------------------------------------------------------------------


def test_the_command_serve_says_where_serves_and_ends_when_told(tmp_path: Path) -> None:
    root = described(tmp_path / "d")
    command = [sys.executable, "-m", "deploy.cli.main", "repository", "serve", str(root), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()

        async def ask() -> None:
            async with stack(tmp_path / "cache") as all:
                assert (await all.resolve("/r1", url)).managent.initiator is not None

        run(ask())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "told to stop, after 2 requests" in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{root}", "--listen", "nowhere"], 64, "--listen: expected"),
        (["{root}", "--listen", "0.0.0.0:0"], 1, "listens on 0.0.0.0: expected also a URL at which others reach it"),
        (["{root}", "--listen", "127.0.0.1:{taken}"], 1, "can't listen on 127.0.0.1:{taken}: Address already in use"),
        (["{root}", "--listen", "127.0.0.1:0", "--url", "ftp://x"], 1, "expected a URL such as http://192.0.2.1:8430"),
        (["{root}/gone", "--listen", "127.0.0.1:0"], 1, "repository.xml: expected a file that can be read"),
    ],
)
def test_a_server_that_can_not_begin_says_why(
    tmp_path: Path, fabric: Callable[..., Ended], arguments: list[str], code: int, said: str
) -> None:
    root = described(tmp_path / "d")

    async def taken() -> None:
        async with serving_at(root) as served:
            filled = [one.format(root=root, taken=served.port) for one in arguments]
            ended = await asyncio.to_thread(fabric_in_child, *filled)
            assert ended.returncode == code
            assert said.format(taken=served.port) in ended.stderr

    run(taken())


def fabric_in_child(*arguments: str) -> subprocess.CompletedProcess[str]:
    """It takes over signals and the log, which are the tests' own here."""
    command = [sys.executable, "-m", "deploy.cli.main", "repository", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


# --- explain and whole descriptions ----------------------------------------------------------------------------------


def test_explain_says_which_entry_and_document_gave_which_value(tmp_path: Path, fabric: Callable[..., Ended]) -> None:
    root = overriding(tmp_path / "d")
    told = json.loads(fabric("managent", "explain", "/r1/n1", "--repository", str(root), "--format", "json").out)
    assert [(one["list"], one["entry"], one["pattern"], one["url"]) for one in told["given"]] == [
        ("managent-code", 1, 'xpath="/*/*"', "http://localhost/leaf.py"),
        ("install-config", 1, 'xpath="/*/*"', "http://localhost/leaf.xml"),
        ("managent-config", 2, 'xpath="/*/*"', "http://localhost/leaf.xml"),
        ("managent-config", 3, 'path="/r1/*"', "http://localhost/r1.xml"),
    ]
    value = told["settings"][-1]
    assert (value["name"], value["value"], value["entry"], value["url"]) == ("env A", "2", 3, "http://localhost/r1.xml")
    assert value["overridden"] == [{"value": "1", "url": "http://localhost/leaf.xml"}]
    assert not told["initiator"]
    shown = fabric("managent", "explain", "/r1/n1", "--repository", str(root))
    assert "managent-config entry 3: r1.xml" in shown.out
    assert "1 (leaf.xml)" in shown.out
    assert "/r1/n1: no initiator" in shown.out


def test_explain_cuts_identifiers_by_a_domains_scope(tmp_path: Path, fabric: Callable[..., Ended]) -> None:
    root = described(tmp_path / "d")
    arguments = ["--repository", str(root), "--scope", "/MA/M7"]
    assert "/MA/M7/M-PA: an initiator" in fabric("managent", "explain", "/MA/M7/M-PA", *arguments).out
    wrong = fabric("managent", "explain", "/MA/M8", *arguments)
    assert (wrong.code, "expected one below /MA/M7" in wrong.err) == (64, True)


@pytest.mark.parametrize(
    ("path", "repository", "code", "said"),
    [
        ("r1", "{root}", 64, "expected a path like"),
        ("/r1", "", 64, "which description?"),
        ("/r1", "http://127.0.0.1:1", 1, "expected to connect to 127.0.0.1:1"),
        ("/r1", "{root}/sub", 1, "repository.xml: expected a file that can be read"),
        ("/a/b/c", "{root}", 0, ""),
    ],
)
def test_what_can_not_be_explained_is_told(
    tmp_path: Path, fabric: Callable[..., Ended], path: str, repository: str, code: int, said: str
) -> None:
    root = described(tmp_path / "d")
    ended = fabric("managent", "explain", path, "--repository", repository.format(root=root))
    assert ended.code == code
    assert said in ended.err
    if not code:
        assert "it can't be deployed" in ended.out


def test_a_whole_description_foretells_what_boot_stubs_get(tmp_path: Path) -> None:
    async def go() -> None:
        async with serving_at(overriding(tmp_path / "d")) as served, stack(tmp_path / "cache") as all:
            loaded = await load_description(served.url, all.client, all.fetcher)
            foretold = Described(loaded.generation, loaded.information, loaded.contents)
            assert not list((tmp_path / "cache").glob("[0-9a-f]*")), "code is not brought"
            for path in ("/r1", "/r1/n1", "/r2/n1"):
                assert foretold.made(path).prints == (await all.resolve(path, served.url)).prints
            folder = Folder(served.root, served.url)
            folder.look()
            local = await description_of(folder, all.fetcher)
            assert (local.generation, local.information) == (loaded.generation, loaded.information)
            assert {url: one.digest for url, one in local.contents.items()} == {
                url: one.digest for url, one in loaded.contents.items()
            }
            assert loaded.contents[f"{served.url}sub/initiator.xml"].digest == digest_of(INITIATOR)

    run(go())


def test_what_one_reference_does_not_give_is_its_own_error(tmp_path: Path) -> None:
    async def go() -> None:
        async with scripted(says(answer(b"", status="404 Not Found"))) as other:
            information = INFORMATION.replace(b"leaf.py", f"{other.url}/gone.py".encode())
            root = described(tmp_path / "d", repository_xml=information)
            async with serving_at(root) as served, stack(tmp_path / "cache") as all:
                loaded = await load_description(served.url, all.client, all.fetcher)
                errors = {url: one.error for url, one in loaded.contents.items() if one.error}
                gone = f"{other.url}/gone.py"
                assert errors == {gone: f"{gone}: expected it to be there, found HTTP status 404"}

    run(go())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (answer(INFORMATION), "expected a repository's generation as ETag, found none"),
        (answer(b"<x/>", 'ETag: "1"'), "expected <repository-information>, found <x>"),
        (answer(b"", status="404 No"), "found HTTP status 404"),
    ],
)
def test_what_is_no_repository_is_told(tmp_path: Path, said: bytes, error: str) -> None:
    async def go() -> None:
        async with scripted(says(said)) as server, stack(tmp_path / "cache") as all:
            with pytest.raises(Unresolved, match=error):
                await load_description(server.url, all.client, all.fetcher)

    run(go())
