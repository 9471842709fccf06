"""Racks that are cut off from the rest of a real fabric, and come back: whose instances run where, meanwhile and after.

What runs is what /proc says, never what the fabric says of itself. In namespaces where this machine lets us make them,
else by proxies: to both the same holds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fabric.drivers.procfs import all_pids
from fabric.local.harness import LocalFabric
from fabric.local.takedown import environment_of
from fabric.net.namespaces import why_not
from fabric.net.rules import Rule, Verdict
from tests.system.test_api_coordinator import owner
from tests.system.test_cli_flow import Command, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
SESSION_S = 2.0
LOST_AFTER_S, STOP_AFTER_S = 6, 1
CALM_S = 60.0
"""In which all is as it should be after healing; most of it is what two connections take that went silent at once."""


@pytest.fixture(scope="session")
def network() -> str:
    return "proxy" if why_not() else "namespaces"


@pytest.fixture(scope="module")
def local(network: str) -> Iterator[LocalFabric]:
    with LocalFabric(racks=3, compute=2, storage=1, session_timeout_s=SESSION_S, network=network) as fabric:
        yield fabric


@pytest.fixture
def fabric(local: LocalFabric, tmp_path: Path) -> Iterator[Command]:
    """When the test ends, the network is well, every node is back, and nothing runs."""
    command = Command(local.api_url, tmp_path)
    yield command
    local.network()
    wait_until(lambda: local.status().registered == 9, CALM_S, "all nodes to be back")
    for one in command("list", "--format", "json").json["items"]:
        if one["state"] != "deleted":
            assert command("delete", one["id"], "--wait", "--timeout", "30").code == 0


def processes(deployment: str) -> list[tuple[str, str]]:
    """(instance, node) of every process that is one of this deployment's instances."""
    found = []
    for pid in all_pids():
        if (instance := environment_of(pid, "FABRIC_INSTANCE")).startswith(deployment):
            found.append((instance, environment_of(pid, "FABRIC_NODE")))
    return found


def twice(deployment: str) -> list[str]:
    return [instance for instance, count in Counter(name for name, _ in processes(deployment)).items() if count > 1]


def whole(deployment: str, count: int, besides: str = "") -> bool:
    """Each ordinal runs, once, and none on nodes whose names begin with `besides`."""
    found = processes(deployment)
    names = {name for name, _ in found}
    return len(found) == len(names) == count and not (besides and any(n.startswith(besides) for _, n in found))


def test_a_rack_cut_off_for_longer_than_the_session(fabric: Command, local: LocalFabric) -> None:
    image = fabric.image()
    strict = fabric.deploy(image, 9, "--lost-after", str(LOST_AFTER_S), "--stop-after", str(STOP_AFTER_S))["id"]
    loose = fabric.deploy(image, 9, "--lost-after", "1")["id"]
    assert {node[:2] for _, node in processes(strict)} == {"r1", "r2", "r3"}
    cut_off = [pair for pair in processes(loose) if pair[1].startswith("r1")]
    doubles: set[str] = set()

    def replaced() -> bool:
        doubles.update(twice(strict))
        return runs_elsewhere(loose, 9, "r1") and whole(strict, 9, besides="r1")

    with local.cut(["r1"]):
        wait_until(replaced, SESSION_S + LOST_AFTER_S + 30, "all to run elsewhere", every_s=0.1)
        assert set(cut_off) <= set(processes(loose)), "without --stop-after what is cut off runs on"
        assert set(twice(loose)) == {name for name, _ in cut_off}
    began = time.monotonic()
    wait_until(lambda: whole(loose, 9, besides="r1"), CALM_S, "the copies in r1 to be stopped", every_s=0.1)
    print(f"the copies were stopped {time.monotonic() - began:.1f} s after healing")
    wait_until(lambda: local.status().registered == 9, CALM_S, "the rack to be back")
    doubles.update(twice(strict))
    assert not doubles, "with --stop-after no ordinal runs twice at any time"
    wait_until(lambda: fabric("audit").code == 0, CALM_S, "the audit to find nothing")
    assert whole(strict, 9)
    assert whole(loose, 9)


def test_the_rack_of_a_coordinator_and_a_storage_leader_cut_off_in_the_middle_of_requests(
    fabric: Command, local: LocalFabric
) -> None:
    images = [fabric.image() for _ in range(3)]
    # Images come slowly, so that all requests are in the middle of it for seconds.
    slow = Rule(("r1s01", "r2s01", "r3s01"), ("nodes",), Verdict(bytes_per_s=1_000_000))
    local.network(slow)
    asked = []
    for image in images:
        flags = ("--flavor", "Tiny", "--count", "6", "--lost-after", "1", "--format", "json")
        asked.append(fabric("deploy", image, *flags).json["id"])
    victim = wait_until(lambda: owner(local.zk_hosts, asked[-1]), 10, "a coordinator", every_s=0.05)[:2]
    with local.cut([victim]):
        assert not all(whole(one, 6) for one in asked), "it is in the middle of it"
        for one in asked:
            wait_until(partial(runs_elsewhere, one, 6, victim), 60, f"{one} to run outside of {victim}")
    began = time.monotonic()
    local.network()
    for one in asked:
        wait_until(partial(whole, one, 6), CALM_S, f"each ordinal of {one} to run once")
    wait_until(lambda: local.status().registered == 9, CALM_S, "the rack to be back")
    print(f"each ran once {time.monotonic() - began:.1f} s after healing")
    states = {one["id"]: one["state"] for one in fabric("list", "--format", "json").json["items"]}
    assert {states[one] for one in asked} == {"running"}
    wait_until(lambda: fabric("audit").code == 0, CALM_S, "the audit to find nothing")


def runs_elsewhere(deployment: str, count: int, rack: str) -> bool:
    return len({name for name, node in processes(deployment) if not node.startswith(rack)}) == count


def test_an_agent_that_a_boot_stub_starts_again_is_on_its_own_network(network: str) -> None:
    options: dict[str, Any] = {"racks": 1, "compute": 2, "storage": 0, "session_timeout_s": 1.0, "network": network}
    with LocalFabric(keeper_module="deploy.local.keeper", restart=True, **options) as fabric:
        old = fabric.kill("r1c01")
        fabric.wait(lambda: fabric.pid("r1c01") not in (0, old), "its boot stub to start it again")
        fabric.wait(lambda: fabric.node("r1c01").state == "registered", "it to be back")
        with fabric.cut(["r1c01"]):
            fabric.wait(lambda: fabric.node("r1c01").state == "starting", "its session to be over")
            assert fabric.node("r1c02").state == "registered"
        fabric.wait(lambda: fabric.node("r1c01").state == "registered", "it to be back")
