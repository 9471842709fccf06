"""A repository's directory: what it says, what changes its generation, what breaks it, what is not given away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.repository import files
from deploy.repository.digests import digest_of
from deploy.repository.files import BadFolder, Document, NoDocument, chunks_of
from deploy.repository.folder import Folder
from tests.unit.deploy.repository.world import INFORMATION, INITIATOR, LEAF, described, rename_over
from tests.waiting import wait_until

BASE = "http://127.0.0.1:1/"


def opened(root: Path) -> Folder:
    folder = Folder(root, BASE)
    folder.look()
    return folder


def looked(folder: Folder) -> str:
    """The generation, after everything has come to rest."""
    folder.look()
    wait_until(lambda: folder.is_current() or not folder.look(), what="no change")
    return folder.snapshot.generation


def test_own_references_get_whole_urls_and_digests(tmp_path: Path) -> None:
    snapshot = opened(described(tmp_path / "d")).snapshot
    refs = snapshot.information.managent[0].refs
    assert [(ref.url, ref.digest) for ref in refs] == [(f"{BASE}sub/initiator.xml", digest_of(INITIATOR))]
    assert snapshot.contents[f"{BASE}leaf.xml"].digest == digest_of(LEAF)
    assert snapshot.contents[f"{BASE}leaf.xml"].document is not None
    assert snapshot.contents[f"{BASE}leaf.py"].document is None


def test_references_elsewhere_stay_as_they_are(tmp_path: Path) -> None:
    elsewhere = ["http://other/x.xml", "image://agent", "file:///opt/x.xml"]
    lines = "".join(f'<ref url="{url}"/>' for url in elsewhere)
    information = f'<repository-information><managent-code><entry><pattern path="*"/>{lines}</entry></managent-code>'
    root = described(tmp_path / "d", repository_xml=f"{information}</repository-information>".encode())
    snapshot = opened(root).snapshot
    assert [ref.url for ref in snapshot.information.code[0].refs] == elsewhere
    assert not snapshot.documents


def test_the_generation_changes_with_the_information_and_with_each_document_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    root = described(tmp_path / "d", notes_txt=b"unused")
    folder = opened(root)
    seen = [looked(folder)]

    def changes(edit: Callable[[], object]) -> bool:
        edit()
        seen.append(looked(folder))
        return seen[-1] != seen[-2]

    assert not changes(lambda: rename_over(root / "notes.txt", b"other"))
    assert not changes(lambda: rename_over(root / "leaf.xml", LEAF))
    assert not changes(lambda: rename_over(root / "repository.xml", INFORMATION + b"<!-- a remark -->"))
    assert changes(lambda: rename_over(root / "leaf.xml", LEAF.replace(b"1", b"2")))
    assert changes(lambda: rename_over(root / "leaf.py", b"class Agent: pass\n"))
    assert changes(lambda: rename_over(root / "repository.xml", INFORMATION.replace(b'"/*"', b'"/a*"')))
    assert changes(lambda: rename_over(root / "leaf.xml", LEAF))
    assert folder.is_current()


def test_a_change_in_place_that_times_do_not_show_is_seen(tmp_path: Path) -> None:
    """Within one tick of the file system's clock, of the same size: only looking again tells."""
    root = described(tmp_path / "d")
    folder = opened(root)
    before = os.stat(root / "leaf.xml")
    (root / "leaf.xml").write_bytes(LEAF.replace(b"1", b"2"))
    os.utime(root / "leaf.xml", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not folder.is_current()
    folder.look()
    assert folder.snapshot.documents["leaf.xml"].digest == digest_of(LEAF.replace(b"1", b"2"))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("repository.xml", b"<repository-information>", "repository.xml, line 1"),
        ("repository.xml", INFORMATION.replace(b"leaf.py", b"gone.py"), "gone.py: expected a file that can be read"),
        ("repository.xml", INFORMATION.replace(b"leaf.py", b"../leaf.py"), "../leaf.py: expected a document below"),
        ("repository.xml", INFORMATION.replace(b"leaf.py", b"%2e%2e/leaf.py"), "not beginning with a dot"),
        ("repository.xml", INFORMATION.replace(b"leaf.py", b"//other/leaf.py"), "expected a document below"),
        ("repository.xml", INFORMATION.replace(b"leaf.py", b"leaf.py?x=1"), "expected a document below"),
        ("repository.xml", INFORMATION.replace(b"leaf.py", b"sub"), "expected a file, found something else"),
        ("repository.xml", INFORMATION.replace(b"leaf.py", b".hidden"), "not beginning with a dot"),
        (
            "repository.xml",
            INFORMATION.replace(b'"leaf.xml"', b'"leaf.xml" digest="blake3:' + b"0" * 64 + b'"'),
            f"expected blake3:{'0' * 64}, found {digest_of(LEAF)}",
        ),
        (
            "repository.xml",
            INFORMATION.replace(b'"leaf.xml"', b'"leaf.xml" digest="sha256:' + b"0" * 64 + b'"'),
            f"found sha256:{hashlib.sha256(LEAF).hexdigest()}",
        ),
        ("leaf.xml", b"<configuration><x/></configuration>", "leaf.xml, line 1, column 16: expected element"),
        ("leaf.xml", LEAF + b" " * (1 << 18), "leaf.xml: expected at most 262,144 bytes"),
    ],
)
def test_a_broken_description_is_told_and_the_last_good_one_stays(
    tmp_path: Path, name: str, data: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = described(tmp_path / "d")
    folder = opened(root)
    good = folder.snapshot
    before = (root / name).read_bytes()
    rename_over(root / name, data)
    assert folder.look() is good
    assert said in folder.broken
    assert b"".join(chunks_of(folder.document("leaf.xml"))) == LEAF
    folder.look()
    assert [record.levelname for record in caplog.records] == ["ERROR"], "one line a fault"
    with pytest.raises(BadFolder) as error:
        Folder(root, BASE).look()
    assert said in str(error.value)
    rename_over(root / name, before)
    folder.look()
    assert folder.broken == ""


def test_a_sha256_that_is_so_is_good(tmp_path: Path) -> None:
    digest = f'"leaf.xml" digest="sha256:{hashlib.sha256(LEAF).hexdigest()}"'.encode()
    snapshot = opened(described(tmp_path / "d", repository_xml=INFORMATION.replace(b'"leaf.xml"', digest))).snapshot
    assert {ref.digest for ref in snapshot.information.managent[1].refs} == {digest_of(LEAF)}


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    root = described(tmp_path / "d", leaf_xml=b"<x/>")
    (root / "leaf.py").unlink()
    with pytest.raises(BadFolder) as error:
        Folder(root, BASE).look()
    assert [problem.split(": ")[1] for problem in error.value.problems] == ["leaf.py", "leaf.xml", "leaf.xml"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../secret.txt", "not beginning with a dot"),
        ("%2e%2e/secret.txt", "not beginning with a dot"),
        ("sub/../../secret.txt", "not beginning with a dot"),
        ("..%2fsecret.txt", "not beginning with a dot"),
        ("out.txt", "expected a file below"),
        ("outside/secret.txt", "expected a file below"),
        ("sub", "expected a file, found something else"),
        ("pipe", "expected a file, found something else"),
        ("gone", "expected a file that can be read"),
        (".git", "not beginning with a dot"),
        ("a%00b", "names of ASCII letters"),
        ("", "names of ASCII letters"),
        ("a" * 600, "names of ASCII letters"),
    ],
)
def test_nothing_outside_is_given(tmp_path: Path, path: str, said: str) -> None:
    root = described(tmp_path / "d")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "outside").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    with pytest.raises(NoDocument) as error:
        opened(root).document(path)
    assert said in str(error.value)


def test_links_within_are_followed(tmp_path: Path) -> None:
    root = described(tmp_path / "d")
    (root / "again.xml").symlink_to("leaf.xml")
    assert opened(root).document("again.xml").data == LEAF


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = described(tmp_path / "d", big_bin=b"a" * 100)
    read_all, left = files.read_all, [b"c" * 300, b"b" * 200]

    def while_read(fd: int, size: int) -> object:
        yield from read_all(fd, size)
        if left:
            rename_over(root / "big.bin", left.pop())

    monkeypatch.setattr(files, "read_all", while_read)
    assert files.load(root, "big.bin", 1000).digest == digest_of(b"c" * 300)


def test_a_file_that_never_stays_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = described(tmp_path / "d", big_bin=b"a" * 100)
    read_all = files.read_all

    def while_read(fd: int, size: int) -> object:
        yield from read_all(fd, size)
        rename_over(root / "big.bin", b"a" * (size + 1))

    monkeypatch.setattr(files, "read_all", while_read)
    with pytest.raises(BadFolder, match="found it changed 5 times"):
        files.load(root, "big.bin", 1000)


def test_large_documents_are_held_as_they_were(tmp_path: Path) -> None:
    old, new = os.urandom(1 << 20), os.urandom(1 << 20)
    root = described(tmp_path / "d", leaf_py=old)
    folder = opened(root)
    held = folder.snapshot.documents["leaf.py"]
    assert held.data is None
    rename_over(root / "leaf.py", new)
    folder.look()

    def content(document: Document) -> bytes:
        return b"".join(chunks_of(document))

    assert (content(held), content(folder.snapshot.documents["leaf.py"])) == (old, new)
