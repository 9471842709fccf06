"""`fabric stub` on a real ZooKeeper and real sockets on loopback: the three ways into the directory, and out of it."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.main import main
from deploy.directory import Directory
from deploy.discovery import Group, Listener, find_directory
from deploy.messages import AnyDeployMessage, ManagentBeat, StubBeat, StubPing, deploy_codec
from deploy.records import StubRecord, StubRef
from fabric.cli.exits import Exit
from fabric.runtime.bus import Bus, new_context
from tests.deployment import guid_of
from tests.system.test_discovery import free_group
from tests.zookeeper import LOCAL, server_session
from zk import paths

KEY = b"k" * 32


class Played:
    """Boot stubs that answer calls and pings, on a thread of their own."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.records: list[StubRecord] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop

    def __enter__(self) -> Played:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        context = new_context(max_sockets=64)
        opened: list[Any] = []
        for name, host in (("web1", "h1"), ("web2", "h2"), ("twin", "h3"), ("twin", "h4")):
            guid = guid_of(f"{name} {host}")
            bus: Bus[AnyDeployMessage] = Bus(context, deploy_codec(KEY), guid, on_message=self._answering(len(opened)))
            record = StubRecord(name, bus.address, "/site", guid, host, 1, "boot")
            listener = Listener(self.group, KEY, record=lambda record=record: record)  # type: ignore[misc]
            await listener.open()
            opened.append((bus, listener))
            self.records.append(record)
        self._buses = [bus for bus, _ in opened]
        self._ready.set()
        await self._stop.wait()
        for bus, listener in opened:
            bus.close()
            listener.close()
        context.term()

    def _answering(self, at: int) -> Any:
        def heard(sender: str, message: AnyDeployMessage) -> None:
            if isinstance(message, StubPing):
                record = self.records[at]
                beat = ManagentBeat("/site", 1, 1, "installed", "active", "ok")
                ref = StubRef(record.name, record.address, record.domain)
                self._buses[at].send(sender, StubBeat(message.parent.path, ref, record.guid, True, (beat,)))

        return heard


class Commands:
    def __init__(self, zk: str, key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.zk, self.key_file, self._capsys = zk, key_file, capsys
        self.said = ""

    def __call__(self, *arguments: str, code: Exit = Exit.DONE) -> str:
        ended = main(["stub", *arguments, "--zk", self.zk, "--key-file", str(self.key_file)])
        out, self.said = self._capsys.readouterr()
        assert ended == code, self.said
        return out

    def names(self) -> list[str]:
        return [item["name"] for item in json.loads(self("list", "--format", "json"))["items"]]


@pytest.fixture
def stub(chroot: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    key_file = tmp_path / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(KEY.hex())
    return Commands(chroot, key_file, capsys)


def test_listed_beforehand_and_removed(stub: Commands, tmp_path: Path) -> None:
    assert "NAME" in stub("list")
    assert stub("add", "web1", "--domain", "/site/r1") == "1 added, 0 changed, 0 as they were\n"
    machines = tmp_path / "machines"
    machines.write_text("web1 /site/r2\nweb2 /site/r2\nweb3\n")
    assert json.loads(stub("add", "--file", str(machines), "--format", "json")) == {
        "added": 2,
        "changed": 1,
        "unchanged": 0,
    }
    assert stub.names() == ["web1", "web2", "web3"]
    shown = stub("list", "--domain", "/site/r2")
    assert [line.split()[0] for line in shown.splitlines()[2:]] == ["web1", "web2"]
    stub("ping", "web1", code=Exit.ERROR)
    assert "is listed, and has not reported yet" in stub.said
    stub("remove", "web1", "none", code=Exit.ERROR)
    assert stub.said == "fabric: not in the directory: none\n"
    assert stub.names() == ["web2", "web3"]
    stub("ping", "web1", code=Exit.ERROR)
    assert "no boot stub web1 is in the directory" in stub.said


def test_discovered_and_pinged(stub: Commands) -> None:
    group = free_group("239.255.76.1")
    where = ("--group", f"{group.address}:{group.port}", "--interface", LOCAL)
    with Played(group):
        stub("add", "web1", "--domain", "/site/r7")
        stub("discover", *where, "--wait", "0.4", "--dry-run", code=Exit.ERROR)
        assert stub.names() == ["web1"]
        shown = json.loads(stub("discover", *where, "--wait", "0.4", "--format", "json", code=Exit.ERROR))
        assert shown["registered"] == {"web1": "changed", "web2": "new"}
        assert "2 boot stubs call themselves twin: h" in stub.said
        listed = {item["name"]: item for item in json.loads(stub("list", "--format", "json"))["items"]}
        assert {name: (item["domain"], item["by"]) for name, item in listed.items()} == {
            "web1": ("/site", "operator"),
            "web2": ("/site", "discovery"),
        }
        assert "web1 answered from" in (shown := stub("ping", "web1"))
        assert "/site" in shown
        pong = json.loads(stub("ping", "web2", "--format", "json"))
        assert pong["answered"]
        assert pong["managents"][0][0] == "/site"
    stub("ping", "web1", "--wait", "0.2", code=Exit.ERROR)
    assert "boot stub web1 did not answer at" in stub.said
    assert "within 0.2 s" in stub.said


def test_a_discovery_that_goes_on_tells_where_the_directory_is(stub: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    group = free_group("127.255.255.255")
    where = ("--group", f"{group.address}:{group.port}", "--interface", LOCAL)
    asked: list[str] = []
    real_sleep = asyncio.sleep

    async def asking(delay_s: float) -> None:
        """Between two calls of the command, a boot stub that knows no directory asks."""
        if delay_s != 3600:
            await real_sleep(delay_s)
            return
        asked.append(await find_directory(group, KEY, wait_s=5))
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.cli.stub_commands.asyncio.sleep", asking)
    stub("discover", *where, "--wait", "0.1", "--every", "3600", code=Exit.INTERRUPTED)
    assert asked == [stub.zk]


def test_an_unreadable_entry_is_told_beside_the_others(stub: Commands) -> None:
    stub("add", "web1")
    stub("add", "web2")

    async def spoil() -> None:
        async with server_session(stub.zk) as session:
            await session.client.set(paths.stub("web1"), b"?")
            assert len((await Directory(session.client).stubs.all()).unreadable) == 1

    asyncio.run(spoil())
    assert stub.names() == ["web2"]
    assert f"unreadable: {paths.stub('web1')}: expected a StubRecord" in stub.said
    stub("add", "web1", code=Exit.ERROR)
    assert "expected a StubRecord" in stub.said
    stub("remove", "web1")
    stub("add", "web1")
    assert stub.names() == ["web1", "web2"]
