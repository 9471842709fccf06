"""The command line against a real fabric: agents, API, ZooKeeper and instances are processes of this machine.

One fabric for the file, each test with images and deployments of its own; what the command says is compared with what
/proc says. It runs in this process, which is quicker, but where it matters that it is one of its own: where it gets
signals, and where it writes. The README's tour types it in a shell (test_cli_tour.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from fabric.cli.exits import Exit
from fabric.cli.main import main
from fabric.local.harness import LocalFabric
from tests import waiting

pytestmark = pytest.mark.system
SCRIPT = b'#!/bin/sh\necho "$FABRIC_INSTANCE on $FABRIC_NODE says $GREETING"\nexec sleep 100000\n'
ROOM = 2 * 2 * 16
"""Large instances that 2 racks of 2 nodes of 64 vcpus hold."""
wait_until = partial(waiting.wait_until, every_s=0.2)
"""Asking a fabric costs it time that it needs to become what it is asked for."""


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """`fabric ARGUMENTS`, against the fabric of this file."""

    def __init__(self, api: str, folder: Path) -> None:
        self.api = api
        self.folder = folder

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            (sys.executable, "-m", "deploy.cli.main", *arguments),
            env={**os.environ, "FABRIC_API": self.api},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def typed(self, *arguments: str) -> Ended:
        """As a process."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return Ended(process.returncode, out, err)

    def __call__(self, *arguments: str) -> Ended:
        """In this process."""
        written = BytesIO()
        out = TextIOWrapper(written, "utf-8", write_through=True)  # what a log's bytes are written to has to be a file
        with redirect_stdout(out), redirect_stderr(StringIO()) as err:
            code = main(("--api", self.api, *arguments))
        if code == Exit.INTERRUPTED:
            raise KeyboardInterrupt  # meant for the tests
        return Ended(code, written.getvalue().decode(), err.getvalue())

    def image(self, script: bytes = SCRIPT, mode: int = 0o755, entry: str = "entrypoint") -> str:
        """Push an image that no other test has; returns its name."""
        name = f"i-{uuid.uuid4().hex[:8]}"
        path = self.tar(script, mode, entry)
        pushed = self("image", "push", str(path), name)
        assert pushed.code == 0, pushed.err
        return name

    def tar(self, script: bytes = SCRIPT, mode: int = 0o755, entry: str = "entrypoint") -> Path:
        path = self.folder / f"{uuid.uuid4().hex}.tar"
        with tarfile.open(path, "w") as tar:
            for member_name, content, bits in ((entry, script, mode), ("data", os.urandom(3_000_000), 0o644)):
                member = tarfile.TarInfo(member_name)
                member.size, member.mode = len(content), bits
                tar.addfile(member, BytesIO(content))
        return path

    def deploy(self, image: str, count: int, *more: str) -> Any:
        """Deploy and wait; returns the record."""
        flavor = () if "--flavor" in more else ("--flavor", "Tiny")
        ended = self("deploy", image, *flavor, "--count", str(count), "--wait", "--format", "json", *more)
        assert ended.code == 0, ended.err + ended.out
        return ended.json

    def instances(self, deployment: str) -> list[Any]:
        items: list[Any] = self("instances", "--deployment", deployment, "--format", "json").json["items"]
        return items


@pytest.fixture(scope="module")
def local() -> Iterator[LocalFabric]:
    with LocalFabric(racks=2, compute=2, storage=1) as fabric:
        yield fabric


@pytest.fixture
def fabric(local: LocalFabric, tmp_path: Path) -> Iterator[Command]:
    """When the test ends, nothing of it runs any more."""
    command = Command(local.api_url, tmp_path)
    yield command
    for one in command("list", "--format", "json").json["items"]:
        if one["state"] != "deleted":
            assert command("delete", one["id"], "--wait", "--timeout", "30").code == 0


def identity(pid: int) -> dict[str, str]:
    """The environment of a process, as the system has it."""
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)


def test_deploy_trace_logs_scale_and_delete(fabric: Command) -> None:
    image = fabric.image()
    deployed = fabric("deploy", image, "--flavor", "Large", "--count", "10", "--env", "GREETING=hello", "--wait")
    assert deployed.code == 0, deployed.err
    assert "running: 10 of 10, on 4 nodes" in deployed.out
    (record,) = (one for one in fabric("list", "--format", "json").json["items"] if one["image"] == image)

    instances = fabric.instances(record["id"])
    assert len(instances) == 10
    for one in instances:
        environment = identity(one["pid"])
        assert environment["FABRIC_INSTANCE"] == one["id"]
        assert environment["FABRIC_NODE"] == one["node"]
        assert environment["GREETING"] == "hello"

    last = instances[-1]
    log = wait_until(lambda: fabric("logs", last["id"]).out, what="the instance's first line")
    assert log == f"{last['id']} on {last['node']} says hello\n"

    trace = fabric("trace", record["id"], "--format", "json").json["runs"][0]
    assert {span["step"] for span in trace["spans"]} == set(range(1, 10))
    assert trace["zookeeper_writes"] <= 6
    fetched = [node["fetch"] for node in trace["nodes"]]
    assert all(sum(fetch["bytes_by_holder"].values()) > 3_000_000 for fetch in fetched)
    told = fabric("trace", record["id"])
    assert told.code == 0
    for part in ("image holders", "r1s01", "r2s01", "racks asked", trace["coordinator"]):
        assert part in told.out
    replayed = fabric("trace", record["id"], "--replay")
    assert (replayed.code, replayed.out.endswith("replayed 1 round: the same plan\n")) == (0, True), replayed

    assert fabric("scale", record["id"], "12", "--wait").code == 0
    assert fabric("scale", record["id"], "3", "--wait").code == 0
    kept = fabric.instances(record["id"])
    assert len(kept) == 3
    assert {one["pid"] for one in kept} <= {one["pid"] for one in instances}, "those that stay are not started again"

    assert fabric("delete", record["id"], "--wait").code == 0
    assert not [one["pid"] for one in (*instances, *kept) if Path(f"/proc/{one['pid']}").exists()]
    assert fabric("image", "rm", image).code == 0
    assert image not in fabric("image", "list").out


def test_plan_promises_what_deploy_does_and_reserves_nothing(fabric: Command) -> None:
    image = fabric.image()
    before = fabric("capacity", "--flavor", "Large", "--format", "json").json
    request = (image, "--flavor", "Large", "--count", str(ROOM))
    planned = fabric("plan", *request, "--format", "json")
    assert planned.code == 0
    assert fabric("capacity", "--flavor", "Large", "--format", "json").json["fits"] == before["fits"] == ROOM
    record = fabric.deploy(image, ROOM, "--flavor", "Large")
    shares = {share["node"]: share["count"] for share in record["plan"]}
    assert shares == {share["node"]: share["count"] for share in planned.json["plan"]}
    full = fabric("plan", image, "--flavor", "Large", "--count", "1")
    assert full.code == 2
    assert "vcpus" in full.out


def test_not_placed_and_placed_short_are_2_with_the_reasons(fabric: Command) -> None:
    image = fabric.image()
    fabric.deploy(image, ROOM - 10, "--flavor", "Large")
    request = ("deploy", image, "--flavor", "Large", "--count", "20", "--wait")
    refused = fabric(*request)
    assert refused.code == 2
    assert "rack r1: 5 more fit" in refused.out
    assert "would do: asking for 10 instances" in refused.out
    planned = fabric("plan", *request[1:-1], "--format", "json").json
    assert ("fewer", 10) in {(advice["kinds"][0], advice["count"]) for advice in planned["advice"]}
    assert "vcpus" in refused.out
    short = fabric(*request, "--min-count", "5", "--format", "json")
    assert short.code == 2
    assert short.json["state"] == "running"
    assert short.json["placed"] == 10
    assert len(fabric.instances(short.json["id"])) == 10
    full = fabric(*request)
    assert full.code == 2
    assert "out of vcpus" in full.out


def test_what_was_placed_and_can_not_run_is_an_error(fabric: Command) -> None:
    ended = fabric("deploy", fabric.image(b"#!/no/such/shell\n"), "--flavor", "Tiny", "--count", "2", "--wait")
    assert ended.code == 1
    assert "failed" in ended.out
    assert "/no/such/shell" in ended.out


def test_a_scale_that_finds_no_place_changes_nothing_and_says_so(fabric: Command) -> None:
    image = fabric.image()
    kept, other = fabric.deploy(image, 10, "--flavor", "Large"), fabric.deploy(image, ROOM - 10, "--flavor", "Large")
    ended = fabric("scale", kept["id"], "11", "--wait")
    assert ended.code == 2
    assert "vcpus" in ended.out
    assert len(fabric.instances(kept["id"])) == 10
    assert len(fabric.instances(other["id"])) == ROOM - 10


def test_what_an_empty_fabric_could_not_hold_is_refused_at_once(fabric: Command) -> None:
    image = fabric.image()
    ended = fabric("deploy", image, "--flavor", "Large", "--count", str(ROOM + 1), "--wait")
    assert ended.code == 2
    assert "vcpus" in ended.err
    assert fabric("list", "--format", "json").json["items"] == [] or image not in fabric("list").out


def test_the_same_key_makes_one_deployment(fabric: Command) -> None:
    image, key = fabric.image(), uuid.uuid4().hex
    first, second = fabric.deploy(image, 2, "--key", key), fabric.deploy(image, 2, "--key", key)
    assert first["id"] == second["id"]
    other = fabric("deploy", image, "--flavor", "Tiny", "--count", "3", "--key", key)
    assert other.code == 1
    assert len(fabric.instances(first["id"])) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("deploy", "no-such-image", "--flavor", "Tiny", "--count", "1"), 1, "no-such-image"),
        (("deploy", "IMAGE", "--flavor", "Huge", "--count", "1"), 1, "Huge"),
        (("deploy", "IMAGE", "--flavor", "Tiny", "--count", "0"), 64, "--count"),
        (("deploy", "IMAGE", "--flavor", "Tiny", "--count", "10001"), 64, "10000"),
        (("deploy", "IMAGE", "--flavor", "Tiny", "--count", "2", "--min-count", "3"), 1, "min_count"),
        (("deploy", "IMAGE", "--flavor", "Tiny", "--count", "1", "--name", "Not A Name"), 1, "name"),
        (("deploy", "IMAGE", "--flavor", "Tiny", "--count", "1", "--env", "FABRIC_NODE=x"), 1, "FABRIC_"),
        (("show", "d-nosuchone"), 1, "d-nosuchone"),
        (("show", "../nodes"), 1, "../nodes"),
        (("trace", "d-nosuchone"), 1, "d-nosuchone"),
        (("scale", "d-nosuchone", "3"), 1, "d-nosuchone"),
        (("delete", "d-nosuchone"), 1, "d-nosuchone"),
        (("logs", "d-nosuchone.0"), 1, "d-nosuchone"),
        (("logs", "nonsense"), 1, "nonsense"),
        (("instances", "--deployment", "d-nosuchone"), 1, "d-nosuchone"),
        (("image", "show", "nothing"), 1, "nothing"),
        (("image", "rm", "nothing"), 1, "nothing"),
        (("cordon", "r9c99"), 1, "r9c99"),
        (("cordon", "r1s01"), 1, "storage"),
        (("capacity", "--flavor", "Huge"), 1, "Huge"),
    ],
)
def test_an_error_is_one_line(fabric: Command, arguments: tuple[str, ...], code: int, said: str) -> None:
    image = fabric.image() if "IMAGE" in arguments else ""
    ended = fabric(*(image if argument == "IMAGE" else argument for argument in arguments))
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert said in ended.err


def test_an_image_that_is_none_is_refused_and_not_kept(fabric: Command) -> None:
    wrong = {
        "entrypoint": fabric.tar(entry="elsewhere"),
        "executable": fabric.tar(mode=0o644),
        "..": fabric.tar(entry="../entrypoint"),
    }
    for said, path in wrong.items():
        name = f"i-{uuid.uuid4().hex[:8]}"
        ended = fabric("image", "push", str(path), name)
        assert ended.code == 1
        assert said in ended.err.splitlines()[-1]
        assert fabric("image", "show", name).code == 1
    good = fabric.tar()
    ended = fabric("image", "push", str(good), "checked", "--digest", "sha256:" + "0" * 64)
    assert ended.code == 1
    assert fabric("image", "show", "checked").code == 1


def test_a_cordoned_node_gets_nothing_new(fabric: Command) -> None:
    image = fabric.image()
    assert fabric("cordon", "r1c01").code == 0
    try:
        record = fabric.deploy(image, 9)
        assert "r1c01" not in {share["node"] for share in record["plan"]}
        wait_until(lambda: "cordoned" in fabric("nodes").out, what="the list of nodes, a second old at most, says it")
    finally:
        assert fabric("uncordon", "r1c01").code == 0
    record = fabric.deploy(image, 9)
    assert "r1c01" in {share["node"] for share in record["plan"]}


def test_ctrl_c_stops_watching_and_the_deployment_goes_on(fabric: Command) -> None:
    slow = b"#!/bin/sh\nexec sleep 100000\n" + os.urandom(48_000_000).hex().encode()
    path = fabric.folder / "slow"
    path.write_bytes(slow)
    name = f"i-{uuid.uuid4().hex[:8]}"
    assert fabric("image", "push", str(path), name).code == 0
    process = fabric.start("deploy", name, "--flavor", "Tiny", "--count", "4", "--wait")
    assert process.stderr
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on" in rest
    deployment = first.split()[0]
    assert fabric("show", deployment, "--wait").code == 0
    assert len(fabric.instances(deployment)) == 4


def test_json_is_alone_on_standard_output(fabric: Command) -> None:
    image = fabric.image()
    fabric.deploy(image, 2)
    for arguments in (
        ("nodes",),
        ("racks",),
        ("leaders",),
        ("flavors",),
        ("capacity",),
        ("list",),
        ("instances",),
        ("image", "list"),
        ("version",),
        ("image", "show", image),
    ):
        ended = fabric.typed(*arguments, "--format", "json")
        assert ended.code == 0
        assert ended.json
        assert ended.err == ""


def test_watching_outlives_a_restart_of_the_api(fabric: Command, local: LocalFabric) -> None:
    trapper = fabric.image(b"#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    stubborn = fabric.deploy(trapper, 2)
    watcher = fabric.start("delete", stubborn["id"], "--wait")
    assert watcher.stderr
    assert "delet" in watcher.stderr.readline()  # for the 5 s of grace that its instances take
    local.kill("api")
    local.restart("api")
    _, said = watcher.communicate(timeout=30)
    assert watcher.returncode == 0, said
    assert "trying again" in said
