"""Nodes that die under a real fabric: their ordinals run elsewhere in time, unless so many die that the brake is on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.local.harness import LocalFabric
from tests.system.test_cli_flow import Command, wait_until

pytestmark = pytest.mark.system
SESSION_S = 2.0
RACK = ("r1c01", "r1c02", "r1c03")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalFabric]:
    with LocalFabric(racks=2, compute=3, storage=1, session_timeout_s=SESSION_S) as fabric:
        yield fabric


@pytest.fixture
def fabric(local: LocalFabric, tmp_path: Path) -> Iterator[Command]:
    """When the test ends, every node is back, and nothing of it runs any more."""
    command = Command(local.api_url, tmp_path)
    yield command
    for view in local.status().nodes:
        if view.state == "dead":
            local.restart(view.node.name)
    wait_until(lambda: not brake(command)["lost"], 30, "no node to be lost")
    for one in command("list", "--format", "json").json["items"]:
        if one["state"] != "deleted":
            assert command("delete", one["id"], "--wait", "--timeout", "30").code == 0


def brake(fabric: Command) -> Any:
    return fabric("brake", "--format", "json").json


def running(fabric: Command, deployment: str, besides: set[str]) -> dict[int, tuple[str, int]]:
    """Ordinal -> (node, pid) of those that run on other nodes than `besides`."""
    return {
        one["ordinal"]: (one["node"], one["pid"])
        for one in fabric.instances(deployment)
        if one["state"] == "running" and one["node"] not in besides
    }


def test_a_dead_agents_ordinals_run_elsewhere_in_time_and_its_copies_stop_when_it_is_back(
    fabric: Command, local: LocalFabric
) -> None:
    made = fabric.deploy(fabric.image(), 6, "--lost-after", "2")
    before = running(fabric, made["id"], set())
    victim = "r1c02"
    old = [pid for node, pid in before.values() if node == victim]
    assert old
    local.kill(victim)
    whole = wait_until(
        lambda: len(found := running(fabric, made["id"], {victim})) == 6 and found,
        SESSION_S + 2 + 20,
        "all six to run elsewhere",
    )
    kept = {ordinal: where for ordinal, where in before.items() if where[0] != victim}
    assert {ordinal: whole[ordinal] for ordinal in kept} == kept, "the others were left alone"
    wait_until(lambda: "lost " in fabric("nodes").out, what="the list of nodes says it")
    assert brake(fabric)["on"] is False

    local.restart(victim)
    wait_until(lambda: not [pid for pid in old if Path(f"/proc/{pid}").exists()], 30, "its copies to be stopped")
    assert running(fabric, made["id"], set()) == whole
    wait_until(lambda: not brake(fabric)["lost"], 20, "its note to go")
    audited = fabric("audit")
    assert audited.code == 0, audited.out


def test_a_node_that_is_back_in_time_keeps_what_it_has(fabric: Command, local: LocalFabric) -> None:
    made = fabric.deploy(fabric.image(), 6, "--lost-after", "10m")
    before = running(fabric, made["id"], set())
    local.kill("r2c02")
    wait_until(lambda: [one["node"] for one in brake(fabric)["lost"]] == ["r2c02"], SESSION_S + 15, "it to be lost")
    local.restart("r2c02")
    wait_until(lambda: not brake(fabric)["lost"], 20, "its note to go")
    wait_until(lambda: running(fabric, made["id"], set()) == before, 20, "the same processes")


def storm(fabric: Command, local: LocalFabric) -> None:
    """A whole rack of three, half of the fabric, dies at once: who dies a second before the others dies alone."""
    for node in RACK:
        local.front.control.kill(node, signal.SIGKILL)
    local.wait(lambda: all(local.ended(node) for node in RACK), "all three to die")
    wait_until(lambda: brake(fabric)["on"], SESSION_S + 20, "the brake to be on")


def test_a_storm_puts_the_brake_on_and_a_release_takes_it_off(fabric: Command, local: LocalFabric) -> None:
    made = fabric.deploy(fabric.image(), 6, "--lost-after", "0")
    storm(fabric, local)
    shown = fabric("brake")
    assert "3 of the 3 of rack r1 vanished" in shown.out
    wait_until(lambda: len(brake(fabric)["lost"]) == 3, 20, "all of them to be noted")
    assert all(one["accepted"] is None for one in brake(fabric)["lost"])
    held = fabric("show", made["id"], "--format", "json").json
    assert set(RACK) <= {share["node"] for share in held["plan"]}, "nothing is replaced"
    assert fabric("audit").code == 0, "what the brake holds is no finding"

    released = fabric("brake", "release")
    assert released.code == 0
    assert all(node in released.out for node in RACK)
    wait_until(
        lambda: len(running(fabric, made["id"], set(RACK))) == 6, 30, "all to run in the other rack", every_s=0.3
    )
    assert brake(fabric)["on"] is False


def test_a_storm_that_passes_moves_nothing(fabric: Command, local: LocalFabric) -> None:
    made = fabric.deploy(fabric.image(), 6, "--lost-after", "0")
    before = running(fabric, made["id"], set())
    storm(fabric, local)
    for node in RACK:
        local.restart(node)
    wait_until(lambda: not brake(fabric)["lost"], 30, "their notes to go")
    assert brake(fabric)["on"] is False
    wait_until(lambda: running(fabric, made["id"], set()) == before, 30, "the same processes on the same nodes")


def test_an_image_that_lost_a_holder_is_found_by_the_audit_until_it_is_whole_again(
    fabric: Command, local: LocalFabric
) -> None:
    """There are two storage nodes in all: without one of them there is no place for a second copy."""
    image = fabric.image()

    def holders() -> list[str]:
        found: list[str] = fabric("image", "show", image, "--format", "json").json["holders"]
        return found

    local.kill("r1s01")
    wait_until(lambda: "r1s01" not in fabric("nodes").out, SESSION_S + 15, "it to be counted out")
    found = fabric("audit", "--format", "json")
    assert found.code == 3, found.out + found.err
    assert image in " ".join(one["subject"] for one in found.json["findings"] if one["kind"] == "under-redundant")
    local.restart("r1s01")
    wait_until(lambda: len(holders()) == 2, 30, "both to hold it")
    assert fabric("audit", "--repair").code in (0, 4)
    assert fabric("audit").code == 0
