"""`fabric chaos` on real processes: what must hold, short; that a run against what is wrong says so; that it heals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fabric.chaos.command import played
from fabric.chaos.reading import parse
from fabric.chaos.scorecard import Scorecard, told
from fabric.drivers.procfs import MARK
from fabric.local.harness import LocalFabric
from fabric.local.interrupts import Interrupts
from tests.waiting import wait_until

pytestmark = pytest.mark.system

STORM = """\
fabric racks=2 compute=4 storage=1 session=1500ms
image 1MiB
load 4/s keep=8
at 2s kill 1/3 of agents for 6s
for 11s
expect lost=0
expect doubles=0
expect faults=1
"""
HOLDERS = """\
fabric racks=3 compute=5 storage=1 session=1500ms
image 6MiB
image 6MiB
image 6MiB
image 6MiB
load 8/s keep=30 count=1-3
at 200ms rot holder 1
at 2500ms stop holder 2 for 4s
at 7s kill holder 1 for 5s
at 9s kill holder 2 for 4s
for 14s
expect lost=0
expect failed=0
expect faults=4
"""
TOGETHER = """\
fabric racks=3 compute=2 storage=1 session=1500ms zookeepers=3 network=namespaces faults=on
image 1MiB
load 5/s keep=8
on coordinator.plan-written kill for 3s
at 2s cut r1 | rest for 4s
at 4s kill leader zookeeper for 4s
at 5s clock any compute by=+1h for 4s
at 9s strangers any agent
for 12s
expect lost=0
expect doubles=0
expect faults=5
"""


def run(text: str, name: str, folder: Path | None = None) -> Scorecard:
    with Interrupts() as interrupts:
        return played(parse(text, name), folder, interrupts)


def why(card: Scorecard) -> str:
    found = [f"{one.promise}: {finding.text}" for one in card.verdict.judged for finding in one.first]
    return "\n".join([*found, *told(card.figures)])


def test_a_storm_over_a_third_of_all_agents_that_passes() -> None:
    card = run(STORM, "storm")
    assert card.holds, why(card)
    assert card.figures.requests > 30
    assert card.figures.samples > 20


def test_holders_that_rot_stall_and_die_one_after_the_other_during_fetches() -> None:
    card = run(HOLDERS, "holders")
    assert card.holds, why(card)
    assert card.figures.instances > 50
    assert 0 < card.figures.redundancy_s < 14, "it was seen to lack a holder, and for how long"


def test_a_cut_a_dead_zookeeper_a_dead_coordinator_a_wrong_clock_and_a_stranger_together() -> None:
    """In namespaces where they can be had, by proxies elsewhere."""
    card = run(TOGETHER, "together")
    assert card.holds, why(card)
    assert {one.promise for one in card.verdict.judged if one.grade == "not tried"} == {"outage"}


@pytest.fixture(scope="module")
def local() -> Iterator[LocalFabric]:
    with LocalFabric(racks=2, compute=2, storage=1, session_timeout_s=1.5) as fabric:
        yield fabric


def chaos(*arguments: str | Path) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "deploy.cli.main", "chaos", "run", *map(str, arguments))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_runs_a_file_against_a_fabric_that_is_up(local: LocalFabric, tmp_path: Path) -> None:
    script, history = tmp_path / "mine.txt", tmp_path / "history.jsonl"
    script.write_text("load 5/s keep=4\nat 1s kill any compute for 2s\nat 2s fill any compute\nfor 5s\n")
    ran = chaos(script, "--dir", local.folder.path, "--seed", "7", "--format", "json", "--history", history)
    out, err = ran.communicate(timeout=60)
    assert ran.returncode == 0, err
    card = json.loads(out)
    assert card["holds"]
    assert {one["promise"]: one["grade"] for one in card["verdict"]["judged"]}["exactly"] == "held"
    assert card["figures"]["not_done"] == 1
    assert "leave out --dir" in card["deeds"][1]["skipped"]
    assert "seed 7\n" in card["text"]
    assert len(history.read_text().splitlines()) >= 2 * card["figures"]["requests"]
    assert local.status().registered == 6
    images = httpx.get(f"{local.api_url}/v1/images").json()["items"]
    states = {one["state"] for one in httpx.get(f"{local.api_url}/v1/deployments").json()["items"]}
    assert (images, states <= {"deleting", "deleted"}) == ([], True), "it leaves nothing in somebody else's fabric"


def test_ctrl_c_heals(local: LocalFabric, tmp_path: Path) -> None:
    script = tmp_path / "mine.txt"
    script.write_text("at 100ms stop r1c02\nat 100ms kill r2c01\nfor 5m\n")
    ran = chaos(script, "--dir", local.folder.path)
    wait_until(lambda: {local.node(name).state for name in ("r1c02", "r2c01")} == {"paused", "dead"}, 20, "both")
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=60)
    assert ran.returncode == 130, err
    assert "healed" in err
    assert local.status().registered == 6


def test_what_no_record_knows_and_what_is_rotten_breaks_the_promises(local: LocalFabric, tmp_path: Path) -> None:
    """The judge believes neither the API nor the agents: an instance that nobody of them knows is found in /proc."""
    mark = local.folder.node("r1c01") / "instances" / "d-999999.0" / "work"
    stray = subprocess.Popen(["sleep", "1000"], env={**os.environ, MARK: str(mark)})
    cached = local.folder.node("r2c01") / "cache" / "entries"
    spoil = threading.Timer(2.5, lambda: _spoil(cached))
    spoil.start()
    try:
        card = run("load 4/s keep=6 count=4\nfor 4s\nsettle 1s\n", "planted", local.folder.path)
    finally:
        spoil.cancel()
        stray.kill()
        stray.wait()
    grades = {one.promise: one.grade for one in card.verdict.judged}
    assert (grades["orphans"], grades["redundancy"], grades["capacity"]) == ("broken", "broken", "held"), why(card)
    assert "d-999999.0 runs on r1c01" in why(card)
    assert "r2c01 has cached image" in why(card)


def _spoil(cached: Path) -> None:
    for entry in cached.iterdir():
        path = entry / "root" / "entrypoint"
        path.chmod(0o755)
        path.write_bytes(path.read_bytes() + b"# spoilt\n")
