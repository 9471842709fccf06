"""Draining a node of a real fabric: what runs there runs elsewhere, and whoever watches may go."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.local.harness import LocalFabric
from tests.system.test_cli_flow import Command, wait_until

pytestmark = pytest.mark.system
ROOM = 4 * 16
"""Large instances that 4 nodes of 64 vcpus hold."""
STUBBORN = b"#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n"


@pytest.fixture(scope="module")
def local() -> Iterator[LocalFabric]:
    with LocalFabric(racks=2, compute=2, storage=1) as fabric:
        yield fabric


@pytest.fixture
def fabric(local: LocalFabric, tmp_path: Path) -> Iterator[Command]:
    """When the test ends, nothing of it runs any more, and no node is cordoned."""
    command = Command(local.api_url, tmp_path)
    yield command
    for node in command("nodes", "--format", "json").json["items"]:
        if node["cordoned"] or node["draining"]:
            assert command("uncordon", node["node"]).code == 0
    for one in command("list", "--format", "json").json["items"]:
        if one["state"] != "deleted":
            assert command("delete", one["id"], "--wait", "--timeout", "30").code == 0


def places(fabric: Command, deployment: str) -> dict[int, str]:
    """Ordinal -> node, of those that run."""
    return {one["ordinal"]: one["node"] for one in fabric.instances(deployment) if one["state"] == "running"}


def drained(fabric: Command, node: str) -> Any:
    return fabric("drain", node, "--format", "json").json


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("more", [(), ("--exclusive",)], ids=["starts first", "stops first"])
def test_what_ran_there_runs_elsewhere_and_nothing_new_comes(fabric: Command, more: tuple[str, ...]) -> None:
    image = fabric.image()
    made = fabric.deploy(image, 8, *more)
    before = fabric.instances(made["id"])
    moved = [one for one in before if one["node"] == "r1c01"]
    assert moved
    ended = fabric("drain", "r1c01", "--monitor", "--timeout", "50")
    assert ended.code == 0, ended.err + ended.out
    assert "r1c01 is empty" in ended.out
    after = places(fabric, made["id"])
    assert sorted(after) == list(range(8))
    assert "r1c01" not in after.values()
    assert alive([one["pid"] for one in moved]) == []
    stayed = {one["ordinal"]: one["pid"] for one in before if one["node"] != "r1c01"}
    now = {one["ordinal"]: one["pid"] for one in fabric.instances(made["id"])}
    assert {ordinal: now[ordinal] for ordinal in stayed} == stayed, "the others were left alone"
    assert "r1c01" not in {share["node"] for share in fabric.deploy(image, 8)["plan"]}
    wait_until(lambda: "draining" in fabric("nodes").out, what="the list of nodes says it")
    assert fabric("uncordon", "r1c01").code == 0
    assert "r1c01" in {share["node"] for share in fabric.deploy(image, 8)["plan"]}
    assert fabric("audit").code == 0


def test_what_finds_no_other_place_by_the_deadline_is_stopped_and_that_is_2(fabric: Command) -> None:
    made = fabric.deploy(fabric.image(), ROOM, "--flavor", "Large")
    there = [one["pid"] for one in fabric.instances(made["id"]) if one["node"] == "r1c01"]
    assert len(there) == 16
    ended = fabric("drain", "r1c01", "--deadline", "3", "--monitor", "--timeout", "50")
    assert ended.code == 2, ended.err + ended.out
    assert "lacks 16 of 64" in ended.out
    assert alive(there) == []
    shown = fabric("show", made["id"], "--format", "json").json
    assert (shown["state"], shown["lacking"], shown["placed"]) == ("running", 16, ROOM - 16)
    assert drained(fabric, "r1c01")["done"]


def test_until_the_deadline_what_has_no_other_place_runs_on(fabric: Command) -> None:
    made = fabric.deploy(fabric.image(), ROOM, "--flavor", "Large")
    there = [one["pid"] for one in fabric.instances(made["id"]) if one["node"] == "r1c01"]
    assert fabric("drain", "r1c01", "--deadline", "1h").code == 0
    ended = fabric("drain", "r1c01", "--monitor", "--timeout", "3")
    assert ended.code == 1
    assert "16 instances after 3 s" in ended.err
    assert alive(there) == there
    assert fabric("uncordon", "r1c01").code == 0
    assert fabric("audit").code == 0


def test_ctrl_c_stops_watching_and_the_drain_goes_on(fabric: Command) -> None:
    made = fabric.deploy(fabric.image(STUBBORN), 8)  # what is stopped takes its 5 s of grace
    watcher = fabric.start("drain", "r2c01", "--monitor")
    assert watcher.stderr
    assert "r2c01" in watcher.stderr.readline()
    watcher.send_signal(signal.SIGINT)
    _, said = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    assert "is drained on" in said
    wait_until(lambda: drained(fabric, "r2c01")["done"], 40, "the drain to end by itself")
    after = places(fabric, made["id"])
    assert sorted(after) == list(range(8))
    assert "r2c01" not in after.values()
