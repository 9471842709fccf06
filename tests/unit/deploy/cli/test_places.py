"""Where directory, key and repository are: options before the environment, before the fabric on this machine."""

from __future__ import annotations

import os
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from deploy.cli.main import main
from deploy.cli.places import Places, places, repository, roots
from fabric.cli.exits import Exit, Failure
from fabric.local.folder import Folder, default_path
from fabric.local.spec import make_spec
from fabric.local.state import LocalState, Service, process

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FABRIC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def given(directory: str | None = None, key_file: str | None = None, dir: Path | None = None) -> Namespace:
    return Namespace(directory=directory, key_file=key_file, dir=dir, repository=None)


def fabric_in(path: Path, keeper: int) -> Folder:
    """What `fabric up` leaves in its folder, with a keeper of this pid."""
    folder = Folder(path)
    folder.repository_url.parent.mkdir(parents=True)
    nothing = Service("http://127.0.0.1:1", None, ready=True)
    folder.write_state(
        LocalState(
            "up", str(path), make_spec(folder=path), process(keeper), Service("127.0.0.1:9", None, True), nothing, (),
            {}, {},
        )
    )  # fmt: skip
    key_in(folder.key_file)
    folder.repository_url.write_text("http://127.0.0.1:7/repository")
    return folder


def key_in(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(KEY.hex())
    path.chmod(0o600)
    return str(path)


def test_the_option_is_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FABRIC_ZK", "zk2:2181")
    assert places(given("zk1:2181/site")) == Places("zk1:2181/site", None)
    assert places(given()) == Places("zk2:2181", None)
    monkeypatch.setenv("FABRIC_CLUSTER_KEY_FILE", key_in(tmp_path / "key"))
    assert places(given()).key == KEY


def test_nothing_at_all_is_wrong_usage() -> None:
    with pytest.raises(Failure, match=r"Expected --directory HOSTS, or \$FABRIC_ZK") as failure:
        places(given())
    assert failure.value.code == Exit.USAGE


def test_the_key_of_the_fabric_here_is_for_its_own_directory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another ensemble has another key: that one would seal every message in vain."""
    key_in(Folder(default_path()).key_file)
    assert places(given("zk1:2181")).key is None


def test_all_three_of_the_fabric_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric_in(default_path(), os.getpid())
    assert places(given()) == Places("127.0.0.1:9", KEY)
    assert repository(given()) == "http://127.0.0.1:7/repository"
    monkeypatch.setenv("FABRIC_ZK", "zk1:2181")
    with pytest.raises(Failure, match="Expected --repository URL"):
        repository(given())  # of another fabric


def test_those_of_the_folder_that_is_named_are_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FABRIC_ZK", "zk1:2181")
    monkeypatch.setenv("FABRIC_CLUSTER_KEY_FILE", "/nowhere")
    there = given(dir=fabric_in(tmp_path / "other", os.getpid()).path)
    assert places(there) == Places("127.0.0.1:9", KEY)
    assert repository(there) == "http://127.0.0.1:7/repository"
    with pytest.raises(Failure, match="found both"):
        places(given("zk2:2181", dir=there.dir))


def test_a_fabric_that_was_killed_is_none(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    there = given(dir=fabric_in(tmp_path / "other", dead.pid).path)
    with pytest.raises(Failure, match=r"--dir: expected a fabric that runs in .*/other, found none"):
        places(there)
    with pytest.raises(Failure, match="Expected --repository URL"):
        repository(there)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan", "--directory", "zk1:port", "--repository", "http://r/"), "--directory: connect string"),
        (("plan", "--directory", "zk1", "--key-file", "/nowhere", "--repository", "http://r/"), "--key-file"),
        (("plan", "--directory", "zk1"), "Expected --repository URL"),
        (("plan", "--directory", "zk1", "--repository", "ftp://r/"), "expected a URL like http://"),
        (("apply", "--directory", "zk1", "--repository", "http://r/", "--root", "region1"), "--root: managent id"),
        (("apply", "--directory", "zk1", "--repository", "http://r/", "--root", "/a/../b"), "--root: managent id"),
        (("apply", "--directory", "zk1", "--repository", "http://r/", "--root", "/a/b"), "of the first level"),
        (("deactivate", "region1/**", "--directory", "zk1"), "pattern"),
    ],
)
def test_what_is_wrong_in_itself_is_told_before_anything_is_opened(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["managent", *arguments]) == 64
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_a_root_is_taken_once() -> None:
    assert roots(Namespace(root=["/a", "/b", "/a"])) == ("/a", "/b")
    assert repository(Namespace(repository="http://r/")) == "http://r/"
