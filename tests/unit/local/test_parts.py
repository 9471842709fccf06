"""The parts of a local fabric that need no keeper: folder, jobs, nodes, interrupts, control, display, logs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.local import folder as folder_module
from fabric.local import logs
from fabric.local.control import ControlClient, ControlError
from fabric.local.crew import RealCrew
from fabric.local.display import Stages
from fabric.local.eyes import Seen
from fabric.local.folder import Folder, FolderError, Taken, default_path, passing_path
from fabric.local.interrupts import Interrupted, Interrupts
from fabric.local.jobs import BACKOFF_FIRST_S, BACKOFF_MAX_S, Job, how_it_ended
from fabric.local.spec import BadSpec, make_spec
from fabric.local.state import Node, Process, Report, grouped, nodes_of, process
from fabric.local.takedown import clean_up, strays

# --- folder ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder that is the machine's, as far as fabrics know."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_default_folder_is_private_and_vanishes_with_its_parent(here: Path) -> None:
    folder = Folder(default_path())
    assert folder.path == here / f"fabric-{os.getuid()}" / "default"
    lock = folder.lock()
    assert oct(folder.path.stat().st_mode & 0o777) == oct(folder.path.parent.stat().st_mode & 0o777) == "0o700"
    assert folder.taken()
    with pytest.raises(Taken):
        Folder(folder.path).lock()
    folder.remove()
    os.close(lock)
    assert list(here.iterdir()) == []
    assert not folder.taken()


def test_another_fabric_keeps_the_parent(here: Path) -> None:
    first, second = Folder(default_path()), Folder(default_path().with_name("other"))
    locks = [first.lock(), second.lock()]
    first.remove()
    assert second.path.exists()
    second.remove()
    assert list(here.iterdir()) == []
    for lock in locks:
        os.close(lock)


def test_a_lock_on_a_removed_folder_is_no_lock(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "f")
    old = folder.lock()
    folder.remove()
    new = folder.lock()
    assert os.path.samestat(os.fstat(new), os.stat(folder.path))
    os.close(old)
    assert folder.taken()
    os.close(new)


def test_a_folder_that_is_none_or_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"expected a folder at .*file, found something else"):
        Folder(tmp_path / "file").lock()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(FolderError, match=r"expected a folder at .*link, found something else"):
        Folder(tmp_path / "link").lock()
    with pytest.raises(FolderError, match=r"expected .*nowhere to be there, found nothing"):
        Folder(tmp_path / "nowhere" / "f").lock()
    (tmp_path / "f").mkdir()
    user = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: user + 1)
    with pytest.raises(FolderError, match=rf"expected .* to be user {user + 1}'s own, found it to be user {user}'s"):
        Folder(tmp_path / "f").lock()


def test_a_passing_fabric_is_in_memory_only_where_there_is_room(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passing_path("demo-1", 1 << 60) == default_path().with_name("demo-1")
    monkeypatch.setattr(folder_module, "MEMORY", here / "nothing")
    assert passing_path("demo-1", 1) == default_path().with_name("demo-1")


def test_a_state_that_is_damaged_is_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.read_state() is None
    folder.state_file.write_text('{"phase": "up"')
    assert folder.read_state() is None


# --- what is found after a keeper's death --------------------------------------------------------------------------


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"FABRIC_INSTANCE_DIR": f"{tmp_path}/f/nodes/r1c01/instances/d-1.0/work"}
    child = subprocess.Popen(["sleep", "1000"], env=environment)
    yield child
    child.kill()
    child.wait()


def test_marked_processes_are_ended_and_no_others(tmp_path: Path, marked: subprocess.Popen[bytes]) -> None:
    other = subprocess.Popen(["sleep", "1000"], env={"FABRIC_INSTANCE_DIR": f"{tmp_path}/ff/nodes"})
    try:
        folder = Folder(tmp_path / "f")
        lock = folder.lock()
        assert strays(folder, None)(marked.pid)
        assert not strays(folder, None)(other.pid)
        assert not strays(folder, None)(os.getpid())
        clean_up(folder)
        os.close(lock)
        assert marked.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        assert not folder.path.exists()
    finally:
        other.kill()
        other.wait()


# --- nodes, jobs ------------------------------------------------------------------------------------------------------


def test_nodes_have_names_that_sort() -> None:
    nodes = nodes_of(make_spec(racks=2, compute=2, storage=1))
    assert [(node.name, node.rack, node.layer) for node in nodes] == [
        ("r1c01", "r1", "compute"),
        ("r1c02", "r1", "compute"),
        ("r1s01", "r1", "storage"),
        ("r2c01", "r2", "compute"),
        ("r2c02", "r2", "compute"),
        ("r2s01", "r2", "storage"),
    ]
    assert nodes_of(make_spec(racks=1, compute=120, storage=0))[0].name == "r1c001"


def test_groups_keep_to_a_rack_and_layer() -> None:
    groups = grouped(nodes_of(make_spec(racks=2, compute=5, storage=1)), 3)
    assert [len(group) for group in groups] == [3, 2, 1, 3, 2, 1]


def test_a_job_is_ready_when_its_own_process_is_seen() -> None:
    job = Job("r1c01", lambda: 0, (Node("r1c01", "r1", "compute"), Node("r1c02", "r1", "compute")))
    job.forked(Process(10, 1), 0.0)
    assert not job.saw(Seen(members=("r1c01", "r1c02"), pids={"r1c01": 9})), "its predecessor's znode"
    assert job.starting
    assert job.saw(Seen(members=("r1c01", "r1c02"), pids={"r1c01": 10, "r1c02": 10}))
    assert not job.starting
    assert not job.saw(Seen(members=("r1c01", "r1c02"))), "it need not be read again"
    assert job.saw(Seen(members=("r1c01",)))
    assert [view.state for view in job.views()] == ["registered", "starting"]


def test_restarts_back_off() -> None:
    job = Job("r1c01", lambda: 0, (Node("r1c01", "r1", "compute"),))
    waits = []
    for _ in range(9):
        job.forked(Process(1, 1), 0.0)
        job.exited("exited with 1", 1.0, restart=True)
        assert job.due
        waits.append(job.due - 1.0)
    assert waits[:3] == [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, 4 * BACKOFF_FIRST_S]
    assert waits[-1] == BACKOFF_MAX_S
    job.forked(Process(1, 1), 0.0)
    job.exited("exited with 1", 100.0, restart=True)
    assert job.due == 100.0 + BACKOFF_FIRST_S, "it had lived long"
    job.forked(Process(1, 1), 0.0)
    job.exited("exited with 1", 1.0, restart=False)
    assert job.due is None


def test_how_it_ended() -> None:
    assert how_it_ended(0) == "exited with 0"
    assert how_it_ended(3 << 8) == "exited with 3"
    assert how_it_ended(9) == "killed by SIGKILL"
    assert how_it_ended(40) == "killed by signal 40"


def test_a_process_is_a_pid_and_a_start_time() -> None:
    me = process(os.getpid())
    assert me.alive
    assert not Process(me.pid, me.started + 1).alive
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process(child.pid).alive, "a zombie"
    child.wait()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"racks": 1, "compute": 0, "storage": 0}, "expected 1 to 5000 agents"),
        ({"racks": 100, "compute": 100}, "expected 1 to 5000 agents, found 100 racks of 100 and 2: 10200"),
        ({"session_timeout_s": float("nan")}, "--session-timeout: expected 0.5 to 60 seconds"),
        ({"zk": "no port:x"}, "--zk: connect string"),
        ({"api_port": 70000}, "api_port"),
        ({"zookeepers": 4}, "--zookeepers: expected 1, 3 or 5 servers, found 4"),
        ({"zookeepers": 3, "zk": "h:1"}, "expected --zk .* or --zookeepers .*, found both"),
    ],
)
def test_what_can_not_be(options: dict[str, object], expected: str) -> None:
    with pytest.raises(BadSpec, match=expected):
        make_spec(**options)  # type: ignore[arg-type]


# --- interrupts, control, display, logs ------------------------------------------------------------------------------


def test_a_signal_is_noted_and_wakes_who_waits() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        assert not interrupts.wait(0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="interrupted by SIGTERM") as caught:
            interrupts.wait(10.0)
        assert caught.value.code == 143
        with pytest.raises(Interrupted):
            interrupts.check()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_keeper_the_control_says_so(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no keeper answers in") as caught:
        ControlClient(Folder(tmp_path)).status()
    assert caught.value.gone
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
    with pytest.raises(ControlError, match="Connection refused") as caught:
        ControlClient(Folder(tmp_path)).stop()
    assert caught.value.gone


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages() as stages:
        for registered in (0, 1, 2, 3):
            stages.report(Report("starting", True, registered, 3, 0, 2, False))
        stages.report(Report("up", True, 3, 3, 2, 2, True))
        stages.report(Report("leaving", True, 0, 3, 0, 2, False))
    said = [line.split("s  ")[-1].strip() for line in capsys.readouterr().err.splitlines()]
    agents = ["agents registered: 1/3", "agents registered: 3/3"]
    assert said == ["ZooKeeper: 1/1", *agents, "leaders elected: 2/2", "API: 1/1"]


def test_logs_are_bounded_and_their_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "r1c01.log"
    assert logs.tail(log) == "    (it wrote nothing)"
    log.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert logs.tail(log).splitlines() == [f"    line {number}" for number in range(9995, 10_000)]
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 1000)
    with log.open("a") as writer:
        logs.bound(tmp_path)
        writer.write("after\n")
    assert log.read_text() == "after\n"


# --- ports -----------------------------------------------------------------------------------------------------------


def test_the_port_of_the_api_is_its_own_before_it_listens_there(tmp_path: Path) -> None:
    crew = RealCrew(make_spec(folder=tmp_path, api_port=0))
    address = crew.api_address().listen
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(address)
    with socket.create_server(address), socket.create_connection(address):
        pass
    crew.network.close()
