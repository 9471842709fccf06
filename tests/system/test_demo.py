"""`fabric demo`: the whole of it, cut off, and killed. Exit code 0 is only for what was verified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fabric.drivers.procfs import all_pids
from fabric.local import demo_image
from fabric.local.demo_check import Instance, verify
from fabric.local.takedown import MARK, environment_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

DEMO = [sys.executable, "-m", "deploy.cli.main", "demo"]
DEMO_S = 150.0


class Running:
    """A demo in a temporary folder of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.output = tmp_path / "out"
        self.places = (Path("/dev/shm"), tmp_path)
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [*DEMO, "--format", "json"], env=environment, stdout=subprocess.PIPE, stderr=out
            )

    def said(self) -> str:
        return self.output.read_text()

    def folder(self) -> Path | None:
        """Where this demo's files are, as long as they are."""
        name = f"demo-{self.process.pid}"
        return next((found for place in self.places for found in place.glob(f"fabric-*/{name}")), None)

    def pids(self) -> set[int]:
        """All that run with its mark, and all that its instances' are."""
        name = f"demo-{self.process.pid}"
        marks = (MARK, "FABRIC_INSTANCE_DIR")
        return {pid for pid in all_pids() if any(name in environment_of(pid, mark) for mark in marks)}

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not self.pids() and self.folder() is None, 30, "nothing to be left")


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.process.kill()
    running.process.wait()
    assert running.process.stdout
    running.process.stdout.close()
    running.assert_nothing_left()


def test_fifty_large_instances_from_nothing_to_nothing(demo: Running) -> None:
    output, _ = demo.process.communicate(timeout=DEMO_S)
    assert demo.process.returncode == 0, demo.said()
    assert not demo.pids()
    assert demo.folder() is None
    told = json.loads(output)
    nodes = told["fabric"]["nodes"]
    assert len(nodes) == 30
    assert len({view["process"]["pid"] for view in nodes}) == 30
    assert told["image"]["size"] >= 64 << 20
    racks = {view["node"]["name"]: view["node"]["rack"] for view in nodes}
    assert len({racks[holder] for holder in told["image"]["holders"]}) == 2
    for asked in (told["first"], told["second"]):
        assert [one["ordinal"] for one in asked["instances"]] == list(range(50))
        assert len({one["pid"] for one in asked["instances"]}) == 50
        run = asked["run"]
        assert {span["step"] for span in run["spans"]} == set(range(1, 10))
        assert run["zookeeper_writes"] <= 6
        assert run["messages"] > 0
    by_rack = [sum(one["rack"] == rack for one in told["first"]["instances"]) for rack in ("r1", "r2", "r3")]
    assert sorted(by_rack) == [16, 17, 17], "spread"
    assert all(node["fetch"]["cached"] for node in told["second"]["run"]["nodes"] if node["fetch"])
    assert told["first"]["request_s"] > 0
    assert told["total_s"] > told["first"]["request_s"]
    assert "no process and no file is left" in demo.said()


@pytest.mark.parametrize(
    "moment", ["", "ZooKeeper: 1/1", "agents registered: 30/30", "image pushed", "instances: 50/50", "cached: 50/50"]
)
def test_ctrl_c_at_any_moment(demo: Running, moment: str) -> None:
    wait_until(lambda: moment in demo.said() and demo.folder(), DEMO_S, moment)
    demo.process.send_signal(signal.SIGINT)
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(60) == 130, demo.said()
    assert "Traceback" not in demo.said()
    assert not demo.pids()
    assert demo.folder() is None


def test_killed_in_the_middle(demo: Running) -> None:
    wait_until(lambda: "image pushed, MiB: 64/64" in demo.said(), DEMO_S, "the image to be there")
    demo.process.kill()
    demo.process.wait()
    demo.assert_nothing_left()


# --- the proof proves something ---------------------------------------------------------------------------------------


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """One real process of the demo's image, that says it is d-demo.0 on n1."""
    directory = tmp_path / "n1" / "instances"
    directory.mkdir(parents=True)
    program = tmp_path / "entrypoint"
    program.write_bytes(demo_image.entrypoint())
    program.chmod(0o755)
    identity = ("d-demo", "0", "d-demo.0", "n1", "r1", "Large", "demo")
    words = {f"FABRIC_{field.upper()}": word for field, word in zip(demo_image.FIELDS, identity, strict=True)}
    process = subprocess.Popen([program], cwd=directory, env=words, stdout=subprocess.DEVNULL)
    yield Instance("d-demo.0", "d-demo", 0, "n1", "r1", "Large", "running", process.pid)
    process.kill()
    process.wait()


def problems(tmp_path: Path, *instances: Instance, count: int = 1) -> list[str]:
    return verify(instances, "d-demo", count, tmp_path, lambda right: None)


def test_who_answers_with_its_own_identity_is_right(instance: Instance, tmp_path: Path) -> None:
    assert problems(tmp_path, instance) == []


def test_lies_are_seen(instance: Instance, tmp_path: Path) -> None:
    def changed(**fields: object) -> Instance:
        return msgspec.structs.replace(instance, **fields)

    assert "expected its own identity, found ordinal '0'" in problems(tmp_path, changed(ordinal=1))[0]
    assert "expected its own identity, found rack 'r1'" in problems(tmp_path, changed(rack="r2"))[0]
    assert "n2, found it in" in problems(tmp_path, changed(node="n2"))[0]
    assert "expected its process, found none" in problems(tmp_path, changed(pid=2**22 + 1))[0]
    assert "expected ordinals 0 to 1 once each, found 1, without [1]" in problems(tmp_path, instance, count=2)[-1]
    assert "found one that is two's" in problems(tmp_path, instance, changed(ordinal=1), count=2)[-1]


def test_a_process_that_does_not_answer_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.local.demo_check.ANSWER_WAIT_S", 0.2)
    mute = subprocess.Popen(["sleep", "100"], cwd=tmp_path)
    try:
        found = problems(tmp_path, Instance("d-demo.0", "d-demo", 0, "n1", "r1", "Large", "running", mute.pid))
    finally:
        mute.kill()
        mute.wait()
    assert "expected an answer at answer.sock, found: " in found[0]


def test_the_image_is_as_large_as_it_says_and_random() -> None:
    file, size = demo_image.build(3 << 20)
    with file:
        content = file.read()
    assert len(content) == size >= 3 << 20
    again, _ = demo_image.build(3 << 20)
    with again:
        assert content != again.read()
