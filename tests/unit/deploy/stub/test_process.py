"""One process that hosts several boot stubs, and what its command line makes of what is said."""

from __future__ import annotations

import asyncio
import os
import signal
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.cli import bootstub
from deploy.stub import process
from deploy.stub.host import StubHost
from deploy.stub.process import Parts, host_stubs, raise_file_limit
from deploy.stub.settings import StubConfig
from deploy.stub.shared import Shared
from fabric.cli.exits import Failure
from tests.unit.deploy.stub.place import Repository


def test_several_live_in_one_process_until_a_signal_and_the_worst_exit_code_counts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    up: list[str] = []

    def listening(host: StubHost) -> None:
        up.append(host.ref.name)
        if len(up) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    @asynccontextmanager
    async def compose(shared: Shared) -> AsyncIterator[Parts]:
        yield Parts(Repository(tmp_path / "files"), listening=listening)
        up.append("closed")

    folders = {"s1": tmp_path / "s1", "s2": tmp_path / "s2", "s3": tmp_path / "file" / "no"}
    configs = [StubConfig(name, folder) for name, folder in folders.items()]
    assert asyncio.run(host_stubs(configs, compose)) == 1, "one of them could not use its folder"
    assert sorted(up) == ["closed", "s1", "s2"]
    up.clear()
    assert asyncio.run(host_stubs(configs[:2], compose)) == 0


def test_too_few_file_descriptors_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.resource, "getrlimit", lambda _: (1000, 1000))
    assert raise_file_limit(10) == ""
    assert "expected a limit of at least 8256 file descriptors for 500 boot stubs" in raise_file_limit(500)


def arguments(**changes: object) -> Namespace:
    plain: dict[str, object] = {
        "name": "",
        "domain": "",
        "dir": "",
        "listen": "",
        "advertise": "",
        "directory": "",
        "key_file": "",
        "allow_root": [],
        "answer_discovery": "",
        "find_directory": "",
        "interface": "127.0.0.1",
        "stop_managents": False,
        "cache_mib": 1,
        "count": 1,
    }
    return Namespace(**(plain | changes))


def test_a_boot_stub_needs_nothing_that_is_special_to_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (bootstub.DIRECTORY_VARIABLE, bootstub.KEY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(bootstub.socket, "gethostname", lambda: "-palm tree.example.")
    (config,), around = bootstub.configured(arguments())
    assert (config.name, config.listen, config.domain) == ("palm-tree.example", "127.0.0.1:0", "")
    assert config.folder == Path("~/.local/state/fabric-bootstub/palm-tree.example").expanduser()
    assert (around.directory, around.key, around.roots, around.answer) == ("", None, (), None)


def test_many_get_numbers_and_folders_of_their_own(tmp_path: Path) -> None:
    configs, around = bootstub.configured(arguments(name="load", count=3, dir=str(tmp_path)))
    assert [config.name for config in configs] == ["load-1", "load-2", "load-3"]
    assert [config.folder for config in configs] == [tmp_path / f"load-{n}" for n in (1, 2, 3)]
    assert around.cache == tmp_path / "cache"


def test_with_a_directory_it_listens_where_that_is_reached_from(tmp_path: Path) -> None:
    (config,), _ = bootstub.configured(arguments(directory="127.0.0.1:2181/site"))
    assert config.listen == "127.0.0.1:0"
    with pytest.raises(Failure, match="--directory: "):
        bootstub.configured(arguments(directory="no.such.host.invalid:2181"))
