"""Requests on real processes: many at once, and agents that die in the middle. What was promised must hold.

The first fabric runs driver `null`: what is under test is the settling among peers, not the instances. The second runs
real instances, and the state of the world is what /proc says.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest

from fabric.local.harness import LocalFabric
from tests.waiting import wait_until

pytestmark = pytest.mark.system
SCRIPT = b"#!/bin/sh\nexec sleep 100000\n"
NODES, SLOTS = 12, 16
FINAL = ("running", "failed", "deleted")


class Api:
    def __init__(self, fabric: LocalFabric) -> None:
        self.http = httpx.Client(base_url=fabric.api_url, timeout=90)
        self.close = self.http.close
        pushed = self.http.put("/v1/images/tiny", content=SCRIPT)
        assert pushed.status_code in (200, 201), pushed.text

    def create(self, count: int, **more: Any) -> str:
        body = {"image": "tiny", "flavor": "Large", "count": count, **more}
        answer = self.http.post("/v1/deployments", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def state(self, deployment: str) -> str:
        return str(self.http.get(f"/v1/deployments/{deployment}").json()["state"])

    def final(self, deployment: str, limit_s: float = 60) -> dict[str, Any]:
        """The record once it is at rest, by long polls."""
        index, found = "0", {}

        def at_rest() -> bool:
            nonlocal index, found
            path = f"/v1/deployments/{deployment}"
            answer = self.http.get(path, params={"wait": "20s", "index": index})
            assert answer.status_code == 200, answer.text
            index, found = answer.headers["x-index"], answer.json()
            return found["state"] in FINAL

        wait_until(at_rest, limit_s, f"{deployment} is at rest")
        return found

    def instances(self, deployment: str) -> list[dict[str, Any]]:
        answer = self.http.get("/v1/instances", params={"deployment": deployment, "limit": 1000})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])

    def delete(self, *deployments: str) -> None:
        for deployment in deployments:
            assert self.http.delete(f"/v1/deployments/{deployment}").status_code == 202
        for deployment in deployments:
            assert self.final(deployment)["state"] == "deleted"

    def reserved(self) -> int:
        return sum(node["reserved"] for node in self.http.get("/v1/nodes").json()["items"])


@pytest.fixture(scope="module")
def settling() -> Iterator[Api]:
    with LocalFabric(racks=3, compute=NODES // 3, storage=1, driver="null") as fabric, closing(Api(fabric)) as api:
        yield api


@pytest.fixture(scope="module")
def processes() -> Iterator[tuple[LocalFabric, Api]]:
    shape = {"racks": 2, "compute": 3, "storage": 1, "session_timeout_s": 2.0}
    with LocalFabric(**shape) as fabric, closing(Api(fabric)) as api:
        yield fabric, api


@pytest.fixture
def real(processes: tuple[LocalFabric, Api]) -> Iterator[tuple[LocalFabric, Api]]:
    """When the test ends, every node is back, and nothing of it runs any more."""
    yield processes
    fabric, api = processes
    for view in fabric.status().nodes:
        if view.state == "dead":
            fabric.restart(view.node.name)
    api.delete(*(one["id"] for one in api.http.get("/v1/deployments").json()["items"] if one["state"] != "deleted"))


def at_once(api: Api, requests: int, count: int) -> list[dict[str, Any]]:
    gate = threading.Barrier(requests)

    def one(_: int) -> dict[str, Any]:
        gate.wait(30)
        return api.final(api.create(count))

    with ThreadPoolExecutor(requests) as pool:
        return list(pool.map(one, range(requests)))


def test_thirty_two_requests_at_once_that_just_fit_all_succeed(settling: Api):
    records = at_once(settling, 32, NODES * SLOTS // 32)
    try:
        assert Counter(record["state"] for record in records) == {"running": 32}, [r["reasons"] for r in records]
        per_node: Counter[str] = Counter()
        for record in records:
            for instance in settling.instances(record["id"]):
                per_node[instance["node"]] += 1
        assert per_node == dict.fromkeys(per_node, SLOTS)
        assert len(per_node) == NODES
    finally:
        settling.delete(*(record["id"] for record in records))


def test_of_thirty_three_the_one_that_does_not_fit_gets_its_reason(settling: Api):
    records = at_once(settling, 33, NODES * SLOTS // 32)
    try:
        states = Counter(record["state"] for record in records)
        assert states == {"running": 32, "failed": 1}
        loser = next(record for record in records if record["state"] == "failed")
        assert "found no place" in loser["reason"]
        assert sum("out of vcpus" in reason for reason in loser["reasons"]) == 3, loser["reasons"]
        wait_until(lambda: settling.reserved() == 0, 30, "no reservation is left")
    finally:
        settling.delete(*(record["id"] for record in records))


def test_the_null_driver_says_so_wherever_it_shows(settling: Api):
    deployment = settling.create(2)
    settling.final(deployment)
    assert {instance["driver"] for instance in settling.instances(deployment)} == {"null"}
    nodes = settling.http.get("/v1/nodes").json()["items"]
    assert {node["driver"] for node in nodes if node["layer"] == "compute"} == {"null"}
    settling.delete(deployment)


def exactly(fabric: LocalFabric, api: Api, deployment: str, count: int) -> None:
    """Each ordinal has exactly one process, on a node that its record names, as soon as all nodes were heard again."""
    wait_until(
        lambda: all(instance["state"] != "unknown" for instance in api.instances(deployment)), 30, "all to be known"
    )
    instances = api.instances(deployment)
    assert sorted(instance["ordinal"] for instance in instances) == list(range(count))
    for instance in instances:
        assert instance["state"] == "running", instance
        with open(f"/proc/{instance['pid']}/environ", "rb") as environment:
            words = environment.read().split(b"\0")
        assert f"FABRIC_INSTANCE={instance['id']}".encode() in words
    running = [pid for pid in instance_pids() if belongs(pid, deployment)]
    assert len(running) == count


def instance_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def belongs(pid: int, deployment: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environment:
            return f"FABRIC_DEPLOYMENT={deployment}".encode() in environment.read().split(b"\0")
    except OSError:
        return False


@pytest.mark.parametrize("state", ["placing", "starting"])
def test_an_agent_killed_during_a_request_is_replaced(real: tuple[LocalFabric, Api], state: str):
    """Before it confirmed, and after. Its instances, should it have started any, are stopped when it is back."""
    fabric, api = real
    deployment = api.create(18)
    reached = ("placing", "starting", *FINAL)[("placing", "starting").index(state) :]
    wait_until(lambda: api.state(deployment) in reached, 10, f"it is {state} at least", every_s=0.001)
    victim = next(node.node.name for node in fabric.status().nodes if node.node.name.endswith("c03"))
    fabric.kill(victim)
    record = api.final(deployment, 60)
    assert record["state"] == "running", record
    fabric.restart(victim)

    def settled() -> bool:
        plan = {share["node"] for share in api.http.get(f"/v1/deployments/{deployment}").json()["plan"]}
        pids = [pid for pid in instance_pids() if belongs(pid, deployment)]
        return len(pids) == 18 and plan == {instance["node"] for instance in api.instances(deployment)}

    wait_until(settled, 30, "what moved elsewhere is stopped on the node that came back")
    exactly(fabric, api, deployment, 18)
    api.delete(deployment)
    assert not [pid for pid in instance_pids() if belongs(pid, deployment)]


def test_the_coordinator_killed_during_a_request_is_succeeded(real: tuple[LocalFabric, Api]):
    fabric, api = real
    leaders = [one["node"] for one in api.http.get("/v1/leaders").json()["items"] if one["layer"] == "compute"]
    deployment = api.create(12)
    for leader in leaders:  # both, so that it is hit, whichever was picked
        fabric.kill(leader)
    record = api.final(deployment, 90)
    assert record["state"] == "running", record
    for leader in leaders:
        fabric.restart(leader)
    wait_until(
        lambda: len([pid for pid in instance_pids() if belongs(pid, deployment)]) == 12, 30, "exactly its ordinals run"
    )
    exactly(fabric, api, deployment, 12)


def test_instances_outlive_their_agents_restart(real: tuple[LocalFabric, Api]):
    fabric, api = real
    deployment = api.create(6)
    assert api.final(deployment)["state"] == "running"
    before = {instance["id"]: instance["pid"] for instance in api.instances(deployment)}
    for node in fabric.status().nodes:
        if "c" in node.node.name:
            fabric.kill(node.node.name)
            fabric.restart(node.node.name)

    def adopted() -> bool:
        now = {instance["id"]: instance["pid"] for instance in api.instances(deployment)}
        return now == before

    wait_until(adopted, 30, "the same processes, adopted")
    exactly(fabric, api, deployment, 6)
