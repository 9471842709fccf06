"""`fabric up`, `down`, `status`, `agent`, `api` as a person types them: real processes, and nothing left of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from fabric.local.folder import Folder
from fabric.local.harness import LocalFabric, everyone
from fabric.local.state import Process, process
from fabric.local.takedown import strays
from tests.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

FABRIC = [sys.executable, "-m", "deploy.cli.main"]
SMALL = ["--racks", "2", "--compute", "2", "--storage", "1", "--api", "127.0.0.1:0", "--session-timeout", "2"]
SLEEPER = b"#!/bin/sh\nexec sleep 100000\n"
UP_S, DOWN_S = 60.0, 30.0


class Typed:
    """`fabric up` in one folder, and the other commands about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = Folder(folder)
        self.output = folder.with_suffix(".out")
        self.process: subprocess.Popen[bytes] | None = None

    def up(self, *more: str, small: Sequence[str] = SMALL) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as out:
            words = [*FABRIC, "up", "--dir", str(self.folder.path), *small, *more]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        return self.process

    def say(self, *words: str) -> subprocess.CompletedProcess[str]:
        words = (*FABRIC, *words, "--dir", str(self.folder.path))
        return subprocess.run(words, capture_output=True, text=True, timeout=60)

    def said(self) -> str:
        return self.output.read_text()

    def wait_up(self) -> httpx.Client:
        wait_until(lambda: "Ctrl-C takes it down" in self.said() or "until: fabric down" in self.said(), UP_S, "it up")
        state = self.folder.read_state()
        assert state
        return httpx.Client(base_url=state.api.where, timeout=20, trust_env=False)

    def everyone(self) -> set[Process]:
        state = self.folder.read_state()
        assert state
        return everyone(state, strays(self.folder, state))

    def assert_nothing_left(self, processes: set[Process]) -> None:
        wait_until(lambda: not [each for each in processes if each.alive], DOWN_S, "all processes to be gone")
        wait_until(lambda: not self.folder.path.exists(), DOWN_S, "the folder to be gone")


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[Typed]:
    made = Typed(tmp_path / "f")
    yield made
    if made.process:
        made.process.kill()
        made.process.wait()
    subprocess.run([*FABRIC, "down", "--dir", str(made.folder.path)], capture_output=True, timeout=90)


def deploy(api: httpx.Client, count: int) -> list[dict[str, object]]:
    """Deploy sleepers; the instances, when they run."""
    assert api.put("/v1/images/sleeper", content=SLEEPER).status_code == 201
    answer = api.post("/v1/deployments", json={"image": "sleeper", "flavor": "Small", "count": count})
    assert answer.status_code == 202, answer.text
    identity = answer.json()["id"]

    def running() -> list[dict[str, object]]:
        items = api.get("/v1/instances", params={"deployment": identity}).json()["items"]
        return items if len([one for one in items if one["state"] == "running"]) == count else []

    return wait_until(running, 60, f"{count} instances to run", every_s=0.1)


def processes_of(instances: list[dict[str, object]]) -> set[Process]:
    found = {process(int(str(one["pid"]))) for one in instances}
    assert len(found) == len(instances)
    assert all(each.alive for each in found)
    return found


# --- up, status, down -------------------------------------------------------------------------------------------------


def test_up_detached_status_down(typed: Typed) -> None:
    up = typed.up("--detach")
    assert up.wait(UP_S) == 0, typed.said()
    with typed.wait_up() as api:
        status = json.loads(typed.say("status", "--format", "json").stdout)
        assert (status["phase"], status["registered"], status["leaders_elected"]) == ("up", 6, 4)
        assert len({view["process"]["pid"] for view in status["nodes"]}) == 6
        table = typed.say("status")
        assert table.returncode == 0
        assert "6 of 6 agents registered, 4 of 4 leaders elected" in table.stdout
        assert "r2s01" in table.stdout
        everything = processes_of(deploy(api, 8)) | typed.everyone()
    assert len(everything) >= 6 + 8 + 4 + 4, "agents, instances, a supervisor each, keeper, eyes, API, ZooKeeper"
    down = typed.say("down")
    assert down.returncode == 0
    assert "no process and no file is left" in down.stderr
    assert not [each for each in everything if each.alive], "when `down` returns, not later"
    assert not typed.folder.path.exists()
    again = typed.say("down")
    assert again.returncode == 0
    assert "no local fabric runs in" in again.stderr
    status = typed.say("status")
    assert status.returncode == 1
    assert status.stderr.startswith("fabric: no local fabric runs in")


def test_down_ends_an_up_in_the_foreground(typed: Typed) -> None:
    up = typed.up()
    typed.wait_up().close()
    everything = typed.everyone()
    assert typed.say("down").returncode == 0
    assert up.wait(DOWN_S) == 0
    assert "taken down" in typed.said()
    typed.assert_nothing_left(everything)


def test_two_at_once_the_second_is_refused(typed: Typed) -> None:
    typed.up("--detach").wait(UP_S)
    typed.wait_up().close()
    second = typed.say("up", *SMALL)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1] == (
        f"fabric: a local fabric lives in {typed.folder.path} already: see `fabric status`, `fabric down`"
    )
    assert typed.say("status").returncode == 0


# --- what is killed, and when -----------------------------------------------------------------------------------------


def test_a_killed_up_takes_everything_along(typed: Typed) -> None:
    up = typed.up()
    with typed.wait_up() as api:
        everything = processes_of(deploy(api, 6)) | typed.everyone()
    up.kill()
    typed.assert_nothing_left(everything)


def test_a_killed_keeper_takes_everything_along_and_down_removes_the_files(typed: Typed) -> None:
    typed.up("--detach").wait(UP_S)
    with typed.wait_up() as api:
        everything = processes_of(deploy(api, 6)) | typed.everyone()
    state = typed.folder.read_state()
    assert state
    os.kill(state.keeper.pid, signal.SIGKILL)
    wait_until(lambda: not [each for each in everything if each.alive], DOWN_S, "all to follow the keeper")
    status = typed.say("status")
    assert status.returncode == 1
    assert "was killed and left its files: `fabric down` removes them" in status.stderr
    assert typed.say("down").returncode == 0
    assert not typed.folder.path.exists()


def test_a_killed_keeper_is_told_by_up(typed: Typed) -> None:
    up = typed.up()
    typed.wait_up().close()
    everything = typed.everyone()
    state = typed.folder.read_state()
    assert state
    os.kill(state.keeper.pid, signal.SIGKILL)
    assert up.wait(DOWN_S) == 1
    assert "fabric: its keeper was killed by signal 9" in typed.said()
    typed.assert_nothing_left(everything)


@pytest.mark.parametrize("stage", ["", "ZooKeeper: 1/1", "agents registered: 6/6"])
def test_ctrl_c_while_coming_up_and_again(typed: Typed, stage: str) -> None:
    up = typed.up()
    wait_until(lambda: typed.folder.path.exists(), UP_S, "the folder")
    wait_until(lambda: stage in typed.said(), UP_S, stage)
    state = typed.folder.read_state()
    everything = everyone(state, strays(typed.folder, state)) if state else set()
    up.send_signal(signal.SIGINT)
    up.send_signal(signal.SIGINT)
    assert up.wait(DOWN_S) == 130
    assert "Traceback" not in typed.said()
    assert not typed.folder.path.exists()
    typed.assert_nothing_left(everything)


def test_ctrl_c_and_ctrl_c_again_when_it_is_up(typed: Typed) -> None:
    up = typed.up()
    with typed.wait_up() as api:
        everything = processes_of(deploy(api, 6)) | typed.everyone()
    up.send_signal(signal.SIGINT)
    wait_until(lambda: "taking down" in typed.said(), what="it to begin")
    up.send_signal(signal.SIGINT)
    assert up.wait(DOWN_S) == 130
    assert not [each for each in everything if each.alive]
    assert not typed.folder.path.exists()


# --- breaking it ------------------------------------------------------------------------------------------------------


def test_a_killed_agent_stays_dead_its_instances_run_on_and_are_adopted(tmp_path: Path) -> None:
    with (
        LocalFabric(racks=2, compute=2, storage=1, session_timeout_s=2.0, parent=tmp_path) as fabric,
        httpx.Client(base_url=fabric.api_url, timeout=20, trust_env=False) as api,
    ):
        instances = deploy(api, 8)
        running = processes_of(instances)
        there = {str(one["id"]): one["pid"] for one in instances if one["node"] == "r1c01"}
        assert there
        fabric.kill("r1c01")
        assert fabric.node("r1c01").ended == "killed by SIGKILL"
        assert all(each.alive for each in running)
        fabric.restart("r1c01")

        def adopted() -> bool:
            items = api.get("/v1/instances", params={"limit": 100}).json()["items"]
            return {one["id"]: one["pid"] for one in items if one["node"] == "r1c01"} == there

        wait_until(adopted, 30, "the same processes to be known again", every_s=0.1)
        assert fabric.restart("r1c01"), "one that runs: TERM, and again its instances run on"
        wait_until(adopted, 30, "the same processes to be known again", every_s=0.1)
        assert all(each.alive for each in running)
        everything = running | fabric.processes()
    wait_until(lambda: not [each for each in everything if each.alive], DOWN_S, "all processes to be gone")
    assert list(tmp_path.iterdir()) == []


def test_on_an_ensemble_that_is_given(typed: Typed, chroot: str) -> None:
    up = typed.up("--zk", chroot)
    typed.wait_up().close()
    status = json.loads(typed.say("status", "--format", "json").stdout)
    assert status["zookeeper"]["where"] == chroot
    assert status["zookeeper"]["process"] is None
    everything = typed.everyone()
    up.send_signal(signal.SIGINT)
    assert up.wait(DOWN_S) == 130
    typed.assert_nothing_left(everything)


# --- one agent, one API, in the foreground ---------------------------------------------------------------------------


def test_agent_and_api_in_the_foreground_as_hosts_run_them(tmp_path: Path, chroot: str) -> None:
    """Configured by file (the agent's rack), environment (the layer) and flag (the node); TERM ends both in order."""
    config = tmp_path / "agent.toml"
    config.write_text(
        f'rack = "r9"\nzk = "{chroot}"\nlisten = "127.0.0.1:0"\ndata_listen = "127.0.0.1:0"\nsession_timeout_s = 2\n'
        f'state_dir = "{tmp_path / "state"}"\n[capacity]\nvcpus = 7\nmemory_mib = 9000\ndisk_mib = 100000\n'
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    environment = os.environ | {"FABRIC_LAYER": "compute", "FABRIC_CONFIG": str(config)}
    with log.open("wb") as out:
        agent = subprocess.Popen([*FABRIC, "agent", "--node", "n9"], env=environment, stdout=out, stderr=out)
        flags = ["--zk", chroot, "--listen", f"127.0.0.1:{port}", "--session-timeout-s", "2"]
        api = subprocess.Popen([*FABRIC, "api", *flags], stdout=out, stderr=out)
    try:

        def nodes() -> list[dict[str, object]]:
            try:
                found = httpx.get(f"http://127.0.0.1:{port}/v1/nodes", trust_env=False)
            except httpx.TransportError:
                return []
            return list(found.json()["items"]) if found.status_code == 200 else []

        node = wait_until(nodes, 30, "the node to be listed", every_s=0.1)[0]
        assert (node["node"], node["rack"], node["layer"]) == ("n9", "r9", "compute")
        assert node["total"] == {"vcpus": 7, "memory_mib": 9000, "disk_mib": 100000}
        for each in (agent, api):
            each.terminate()
        assert agent.wait(20) == 0, log.read_text()
        assert api.wait(20) == 0, log.read_text()
    finally:
        for each in (agent, api):
            each.kill()
            each.wait()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["agent"], 1, "fabric: rack: expected a name"),
        (["agent", "--config", "/nowhere.toml"], 1, "fabric: file /nowhere.toml: expected a readable TOML file"),
        (["agent", "--capacity-vcpus", "many"], 1, "fabric: flag --capacity-vcpus: capacity.vcpus: expected a whole"),
        (["api", "--zk", "x:y"], 1, "fabric: flag --zk: zk: connect string 'x:y'"),
        (["agent", "--no-such-flag"], 64, "fabric: unrecognized arguments: --no-such-flag"),
        (["up", "--racks", "0"], 64, "fabric up: argument --racks: expected a whole number from 1 to 200, found '0'"),
        (["up", "--compute", "0", "--storage", "0"], 64, "fabric: expected 1 to 5000 agents, found 3 racks of 0 and 0"),
        (["up", "--session-timeout", "0.1"], 64, "fabric: --session-timeout: expected 0.5 to 60 seconds, found 0.1"),
        (["up", "--api", "here"], 64, "fabric: --api: expected an address \"host:port\", found 'here'"),
        (["up", "--zk", "a:b"], 64, "fabric: --zk: connect string 'a:b'"),
        (["up", "--zookeepers", "2"], 64, "fabric: --zookeepers: expected 1, 3 or 5 servers, found 2"),
        (["up", "--zk", "a:1", "--zookeepers", "3"], 64, "fabric: expected --zk (an ensemble that is there) or --zook"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], code: int, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
    found = subprocess.run([*FABRIC, *words], capture_output=True, text=True, timeout=30, env=environment)
    assert found.returncode == code, found.stderr
    assert found.stderr.startswith(expected), found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert found.stdout == ""


def test_example_configurations_are_printed() -> None:
    for name in ("agent", "api"):
        found = subprocess.run([*FABRIC, name, "--example-config"], capture_output=True, text=True, timeout=30)
        assert found.returncode == 0
        assert "zk = " in found.stdout


def test_help_is_quick() -> None:
    """Nothing heavy is imported to say what there is."""
    code = "import sys; from fabric.cli.parser import build; build(); print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    for heavy in ("'msgspec'", "'rich'", "'httpx'", "'kazoo'", "'zmq'", "'fastapi'"):
        assert heavy not in found.stdout


def test_the_api_port_is_in_use(typed: Typed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        found = typed.say("up", "--racks", "1", "--compute", "1", "--storage", "1", "--api", f"127.0.0.1:{port}")
        assert time.monotonic() - began < 20
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == (
        f"fabric: the API can't listen at 127.0.0.1:{port}: Address already in use; "
        "choose another address (--api HOST:PORT)"
    )
    assert not typed.folder.path.exists()
