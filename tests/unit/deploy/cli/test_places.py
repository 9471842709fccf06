"""Where directory, key and repository are: options before the environment, before the fabric on this machine."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.cli.main import main
from deploy.cli.places import Places, places, repository, roots
from fabric.cli.exits import Exit, Failure
from fabric.local.folder import DEPLOY, Folder, default_path

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FABRIC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def given(directory: str | None = None, key_file: str | None = None) -> Namespace:
    return Namespace(directory=directory, key_file=key_file)


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


def test_the_repository_of_the_fabric_here_is_for_its_own_directory_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = Folder(default_path())
    url = here.path / DEPLOY / "repository.url"
    url.parent.mkdir(parents=True)
    url.write_text("http://127.0.0.1:8430/repository")
    monkeypatch.setattr(Folder, "read_state", lambda self: SimpleNamespace(keeper=SimpleNamespace(alive=True)))
    asked = Namespace(repository=None, directory=None)
    assert repository(asked) == "http://127.0.0.1:8430/repository"
    assert repository(Namespace(repository="http://r/", directory=None)) == "http://r/"
    for elsewhere in (Namespace(repository=None, directory="zk1"), asked):
        with pytest.raises(Failure, match="Expected --repository URL"):
            repository(elsewhere)
        monkeypatch.setattr(Folder, "read_state", lambda self: SimpleNamespace(keeper=SimpleNamespace(alive=False)))


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
