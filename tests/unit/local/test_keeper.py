"""The keeper with a small crew: coming up, failing to, what dies with whom, and that nothing is ever left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.drivers.procfs import process_stat
from fabric.local.control import ControlClient, ControlError
from fabric.local.folder import Folder, FolderError
from fabric.local.front import Front, UpFailed, take_down
from fabric.local.harness import LocalFabric
from fabric.local.spec import make_spec
from fabric.local.state import Process
from tests.waiting import wait_until
from zk import connect
from zk.client import TreeClient
from zk.session_tree import SessionTree

KEEPER = "tests.unit.local.standin"
pytestmark = pytest.mark.system


def small(tmp_path: Path, **options: Any) -> LocalFabric:
    options = {"racks": 2, "compute": 2, "storage": 1, "session_timeout_s": 2.0} | options
    return LocalFabric(keeper_module=KEEPER, parent=tmp_path, **options)


def behave(fabric: LocalFabric, **how: str) -> None:
    path = fabric.folder.path
    (path.parent / f"{path.name}.behaviour").write_text(json.dumps(how))


def assert_nothing_left(processes: set[Process], folder: Path) -> None:
    wait_until(lambda: not [each for each in processes if each.alive], what="all processes to be gone")
    assert not folder.exists()


class Other:
    """A front in a process of its own, that may be killed."""

    def __init__(self, folder: Path, *options: str) -> None:
        words = [sys.executable, "-m", "tests.unit.local.frontling", str(folder), KEEPER, *options]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.folder = Folder(folder)
        self.control = ControlClient(self.folder)

    def wait_up(self) -> set[Process]:
        assert self.process.stdout
        assert self.process.stdout.readline() == "up\n"
        return set(self.control.status().processes())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    front = Other(tmp_path / "f")
    yield front
    front.end()
    take_down(front.folder)


def test_up_status_down(tmp_path: Path) -> None:
    with small(tmp_path) as fabric:
        state = fabric.up
        assert [view.node.name for view in state.nodes] == ["r1c01", "r1c02", "r1s01", "r2c01", "r2c02", "r2s01"]
        assert {view.state for view in state.nodes} == {"registered"}
        assert set(state.leaders["compute"]) == {"r1", "r2"} == set(state.leaders["storage"])
        marks = state.marks_ms
        assert marks["zookeeper_started"] <= marks["zookeeper_ready"] <= marks["registered"] <= marks["up"]
        pids = {view.process.pid for view in state.nodes if view.process}
        assert len(pids) == 6, "each agent a process of its own"
        everyone = fabric.processes()
        assert pids <= {each.pid for each in everyone}
        assert len(everyone) >= 9, "agents, keeper, eyes, API, ZooKeeper"
        assert oct(os.stat(fabric.folder.path).st_mode & 0o777) == "0o700"
        assert fabric.folder.read_state() is not None
        folder = fabric.folder.path
    assert_nothing_left(everyone, folder)
    assert list(tmp_path.iterdir()) == []


def test_several_agents_a_process(tmp_path: Path) -> None:
    with small(tmp_path, compute=3, agents_per_process=2) as fabric:
        by_pid: dict[int, list[str]] = {}
        for view in fabric.up.nodes:
            assert view.process
            by_pid.setdefault(view.process.pid, []).append(view.node.name)
        assert [*by_pid.values()][:3] == [["r1c01", "r1c02"], ["r1c03"], ["r1s01"]]
        assert len(by_pid) == 6
        fabric.kill("r1c02")
        assert fabric.node("r1c01").state == "dead", "they share a process"


def test_an_agent_that_dies_while_coming_up(tmp_path: Path) -> None:
    fabric = small(tmp_path)
    behave(fabric, r2c01="dies")
    with pytest.raises(UpFailed, match=r"r2c01 exited with 3 while the fabric came up; its last lines:\n    I was"):
        fabric.__enter__()
    assert not fabric.folder.path.exists()


def test_an_agent_that_never_registers(tmp_path: Path) -> None:
    fabric = small(tmp_path, start_deadline_s=3.0)
    behave(fabric, r1c02="late")
    with pytest.raises(UpFailed, match=r"not up within 3 s, 5 of 6 agents registered.*lines of r1c02:\n    alive"):
        fabric.__enter__()
    assert not fabric.folder.path.exists()


def test_who_is_deaf_or_has_hidden_children_is_ended_too(tmp_path: Path) -> None:
    fabric = small(tmp_path)
    behave(fabric, r1c01="deaf", r1c02="spawns")
    with fabric:
        hidden = int(fabric.logs("r1c02").splitlines()[0])
        everyone = fabric.processes() | {Process(hidden, process_stat(hidden)[2])}
        folder = fabric.folder.path
    assert_nothing_left(everyone, folder)


def test_a_killed_keeper_takes_all_along_and_the_front_removes_the_files(tmp_path: Path) -> None:
    fabric = small(tmp_path)
    behave(fabric, r1c01="deaf")
    with fabric:
        everyone = fabric.processes()
        folder = fabric.folder.path
        fabric.front.control.kill("r2c02", signal.SIGSTOP)
        os.kill(fabric.pid("keeper"), signal.SIGKILL)
        wait_until(lambda: not [each for each in everyone if each.alive], what="all to follow the keeper")
        assert folder.exists()
    assert_nothing_left(everyone, folder)


def test_a_killed_front_takes_all_along(other: Other) -> None:
    everyone = other.wait_up()
    other.process.kill()
    wait_until(lambda: not other.folder.path.exists(), what="the keeper to take everything down")
    assert_nothing_left(everyone, other.folder.path)


def test_a_front_killed_while_coming_up(other: Other) -> None:
    wait_until(lambda: other.folder.path.exists(), what="the keeper to begin")
    other.process.kill()
    wait_until(lambda: not other.folder.path.exists(), what="the keeper to take everything down")


def test_front_and_keeper_killed_the_next_one_cleans_up(other: Other, tmp_path: Path) -> None:
    everyone = other.wait_up()
    os.kill(other.process.pid, signal.SIGSTOP)
    os.kill(other.control.status().keeper.pid, signal.SIGKILL)
    other.process.kill()
    other.process.wait()
    assert other.folder.path.exists()
    front = Front(make_spec(folder=other.folder.path, racks=1, compute=1, storage=0, session_timeout_s=2.0), KEEPER)
    try:
        front.start()
        state = front.wait_up(lambda report: None)
        assert len(state.nodes) == 1
        assert not [each for each in everyone if each.alive]
    finally:
        front.stop()
    assert not other.folder.path.exists()


def test_detached(tmp_path: Path) -> None:
    front = Front(make_spec(folder=tmp_path / "f", racks=1, compute=1, storage=1, session_timeout_s=2.0), KEEPER)
    try:
        front.start()
        everyone = set(front.wait_up(lambda report: None).processes())
        front.detach()
        assert front.control.status().phase == "up"
    finally:
        assert take_down(front.folder)
    assert_nothing_left(everyone, tmp_path / "f")
    assert not take_down(front.folder), "there is nothing any more"


def test_two_at_once(tmp_path: Path) -> None:
    with small(tmp_path) as fabric:
        second = Front(make_spec(folder=fabric.folder.path), KEEPER)
        second.start()
        with pytest.raises(UpFailed, match=r"a local fabric lives in .* already: see `fabric status`, `fabric down`"):
            second.wait_up(lambda report: None)
        second.stop()
        assert fabric.status().phase == "up"


def test_a_folder_of_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not remove")
    front = Front(make_spec(folder=tmp_path), KEEPER)
    front.start()
    with pytest.raises(UpFailed, match=r"expected .* empty or missing, found 'thesis.tex' in it"):
        front.wait_up(lambda report: None)
    front.stop()
    with pytest.raises(FolderError, match=r"found 'thesis.tex' in it; nothing was touched"):
        take_down(Folder(tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_kill_restart_pause(tmp_path: Path) -> None:
    with small(tmp_path) as fabric:
        first = fabric.pid("r1c01")
        assert fabric.kill("r1c01") == first
        dead = fabric.node("r1c01")
        assert (dead.state, dead.ended) == ("dead", "killed by SIGKILL")
        second = fabric.restart("r1c01")
        assert second not in (0, first)
        assert fabric.restart("r1c01") not in (0, second), "of one that runs"
        with fabric.paused("r2c01") as pid:
            assert fabric.node("r2c01").state == "paused"
            fabric.wait(lambda: process_stat(pid)[0] == "T", "all of its threads to stand still")
        assert fabric.node("r2c01").state == "registered"
        assert fabric.restart("api") != 0
        first = fabric.kill("zookeeper")
        assert fabric.pid("zookeeper") == 0
        assert fabric.restart("zookeeper") not in (0, first)
        assert fabric.status().zookeeper.where == fabric.zk_hosts
        assert fabric.status().zookeepers["zookeeper"].mode == "standalone"
        with pytest.raises(ControlError, match="expected a node of this fabric, api or zookeeper, found 'r9c01'"):
            fabric.kill("r9c01")
        with pytest.raises(ControlError, match="expected a signal's number, found 1000"):
            fabric.front.control.kill("r1c01", 1000)


def test_an_ensemble_each_server_by_name(tmp_path: Path) -> None:
    with small(tmp_path, zookeepers=3, racks=1, compute=1) as fabric:
        first = fabric.zookeeper_leader()
        servers = fabric.status().zookeepers
        assert list(servers) == ["zookeeper-1", "zookeeper-2", "zookeeper-3"]
        assert fabric.zk_hosts == ",".join(one.where for one in servers.values())
        assert {one.process for one in servers.values()} <= fabric.processes()
        with pytest.raises(ControlError, match="expected a node of this fabric, api, zookeeper-1, zookeeper-2 or zook"):
            fabric.kill("zookeeper")
        pid = fabric.kill(first)
        dead = fabric.status().zookeepers[first]
        assert (dead.process, dead.mode, dead.ended) == (None, "", "killed by SIGKILL")
        second = fabric.zookeeper_leader()
        assert second != first
        wait_until(lambda: fabric.status().zookeeper.ready, what="the two others to be enough")
        assert fabric.restart(first) not in (0, pid)
        assert fabric.zookeeper_leader() == second
        with fabric.paused(second):
            assert fabric.status().zookeepers[second].paused
            assert fabric.zookeeper_leader() != second, "a leader that says nothing is replaced"
        everyone = fabric.processes()
        with fabric.slow_disk(first, 250):
            assert fabric.status().zookeepers[first].disk_delay_ms == 250
            slowed = fabric.processes() - everyone
            assert len(slowed) == 1
        assert fabric.status().zookeepers[first].disk_delay_ms == 0
        wait_until(lambda: not any(each.alive for each in slowed), what="the end of who slowed it down")
        with pytest.raises(ControlError, match="the disk of zookeeper-1 can't be slowed down: expected a delay"):
            fabric.front.control.slow_disk("zookeeper-1", -1)
        with pytest.raises(ControlError, match="expected a ZooKeeper server for slow_disk, found r1c01"):
            fabric.front.control.slow_disk("r1c01", 1)
        fabric.front.control.slow_disk(second, 250)  # its end is also the end of that
        for name in servers:
            fabric.kill(name)
        wait_until(lambda: not fabric.status().zookeeper.ready, what="it to be seen that no server is left")
        fabric.start_zookeepers()
        assert sorted(one.mode for one in fabric.status().zookeepers.values()) == ["follower", "follower", "leader"]
        everyone, folder = fabric.processes(), fabric.folder.path
    assert_nothing_left(everyone, folder)


def test_restarted_by_itself_when_asked_for(tmp_path: Path) -> None:
    with small(tmp_path, restart=True) as fabric:
        first = fabric.front.control.kill("r1c01", signal.SIGKILL)
        wait_until(
            lambda: fabric.pid("r1c01") not in (0, first) and fabric.node("r1c01").state == "registered",
            what="its return",
        )


async def names(hosts: str) -> tuple[str, ...]:
    tree = SessionTree(hosts)
    await tree.open(10.0)
    try:
        return await TreeClient(tree).children("/")
    finally:
        await tree.close()


def test_the_chroot_that_the_user_names_is_used_and_left(tmp_path: Path, chroot: str) -> None:
    before = asyncio.run(names(chroot))
    with small(tmp_path, zk=chroot) as fabric:
        assert fabric.zk_hosts == chroot
        assert fabric.status().zookeepers == {}
        with pytest.raises(ControlError, match="its ZooKeeper is not its own"):
            fabric.kill("zookeeper")
    assert asyncio.run(names(chroot)) == before


def test_without_a_chroot_it_makes_one_and_removes_it(tmp_path: Path, zookeeper: str) -> None:
    hosts = connect.parse(zookeeper).hosts
    with small(tmp_path, zk=hosts) as fabric:
        assert re.fullmatch(re.escape(hosts) + "/fabric-local-[0-9a-f]{8}", fabric.zk_hosts)
        made = fabric.zk_hosts.rpartition("/")[2]
        assert made in asyncio.run(names(hosts))
    assert made not in asyncio.run(names(hosts))


def test_the_api_port_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UpFailed, match=f"the API can't listen at 127.0.0.1:{port}: Address already in use"):
            small(tmp_path, api_port=port).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_no_zookeeper_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOKEEPER_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UpFailed, match="ZOOKEEPER_HOME"):
        small(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
