"""A fabric on an ensemble of three: its leader dies under load, each is restarted under load, and the quorum is gone
for longer than any session. Figures are printed (`pytest -rP`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from fabric.local.harness import LocalFabric
from fabric.local.state import process
from tests.conftest import CONTAINERS
from tests.ensembles import Servers, container_engine_trouble, container_servers
from tests.system.steady import Answered, Load, steady
from tests.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
SESSION_S = 2.0
OUTAGE_S = float(os.environ.get("FABRIC_TEST_OUTAGE_S", 3 * SESSION_S))
"""How long the quorum stays away."""
SLEEPER = b"#!/bin/sh\nexec sleep 100000\n"
BODY = {"image": "sleeper", "flavor": "Small", "count": 1}
WAITED_MOST_S = 8.0
"""Of a request while a new leader is elected. Elections take less than a second; the machine may be busy. Above 5 s the
API gives up (ApiLimits)."""


@dataclass
class FabricServers:
    """As tests.ensembles.Servers: those of a local fabric, by its harness."""

    fabric: LocalFabric

    @property
    def hosts(self) -> str:
        return self.fabric.zk_hosts

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.fabric.up.zookeepers)

    def leader(self) -> str:
        return self.fabric.zookeeper_leader()

    def kill(self, name: str) -> None:
        self.fabric.kill(name)

    def restart(self, name: str) -> None:
        self.fabric.restart(name)

    def start_all(self) -> None:
        self.fabric.start_zookeepers()

    def pause(self, name: str) -> None:
        self.fabric.front.control.kill(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.fabric.front.control.kill(name, signal.SIGCONT)


@dataclass
class World:
    fabric: LocalFabric
    servers: Servers


@pytest.fixture(scope="module", params=["own", CONTAINERS])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A fabric with three ZooKeeper servers of its own, and one that was given containers."""
    options: dict[str, Any] = {"racks": 2, "compute": 2, "storage": 1, "session_timeout_s": SESSION_S}
    with ExitStack() as stack:
        if request.param == "own":
            fabric = stack.enter_context(LocalFabric(**options, zookeepers=3))
            one = World(fabric, FabricServers(fabric))
        else:
            if trouble := container_engine_trouble():
                pytest.skip(trouble)
            containers = stack.enter_context(container_servers())
            one = World(stack.enter_context(LocalFabric(**options, zk=containers.hosts)), containers)
        with client(one.fabric) as api:
            assert api.put("/v1/images/sleeper", content=SLEEPER).status_code == 201
        yield one


@pytest.fixture
def servers(world: World) -> Servers:
    return world.servers


@pytest.fixture
def api(world: World) -> Iterator[httpx.Client]:
    with client(world.fabric) as http:
        yield http


def client(fabric: LocalFabric) -> httpx.Client:
    return httpx.Client(base_url=fabric.api_url, timeout=30, trust_env=False)


def settled(api: httpx.Client, deployment: str, timeout_s: float = 30.0) -> dict[str, Any]:
    def probe() -> dict[str, Any]:
        found = api.get(f"/v1/deployments/{deployment}")
        return dict(found.json()) if found.status_code == 200 and found.json()["final"] else {}

    return wait_until(probe, timeout_s, f"{deployment} to be at rest", every_s=0.1)


def instances(api: httpx.Client) -> dict[str, tuple[str, int]]:
    """Id -> (node, pid), of those that run."""
    items = api.get("/v1/instances", params={"limit": 1000}).json()["items"]
    return {str(one["id"]): (str(one["node"]), int(one["pid"])) for one in items if one["state"] == "running"}


def a_while(load: Load, requests: int) -> None:
    """Until so many more requests were answered."""
    enough = len(load.asked) + requests
    wait_until(lambda: sum(one.done() for one in list(load.asked)) >= enough, 60, f"{enough} answers")


def all_answered(answers: list[Answered], *expected: int) -> float:
    """None failed; the longest that one took."""
    failed = [one for one in answers if one.status not in expected]
    assert not failed, failed[:3]
    longest = max(answers, key=lambda one: one.took_s)
    took = sorted(one.took_s for one in answers)
    print(f"{len(answers)} requests: median {took[len(took) // 2]:.3f} s, longest {longest.took_s:.3f} s")
    assert longest.took_s < WAITED_MOST_S, longest
    return longest.took_s


def ended_well(api: httpx.Client, answers: list[Answered]) -> None:
    """Every accepted deployment runs; then they are deleted."""
    made = [one.answer.json()["id"] for one in answers if isinstance(one.answer, httpx.Response)]
    assert len(set(made)) == len(answers)
    states = {deployment: settled(api, deployment)["state"] for deployment in made}
    assert set(states.values()) == {"running"}, states
    for deployment in made:
        assert api.delete(f"/v1/deployments/{deployment}").status_code == 202
    for deployment in made:
        assert settled(api, deployment)["state"] == "deleted"


def test_no_request_is_lost_when_the_leader_is_killed(servers: Servers, api: httpx.Client) -> None:
    with steady(lambda number: api.post("/v1/deployments", json=BODY)) as load:
        a_while(load, 5)
        leader = servers.leader()
        servers.kill(leader)
        a_while(load, 15)
        answers = load.answers()
    all_answered(answers, 202)
    assert servers.leader() != leader
    ended_well(api, answers)
    servers.start_all()


def test_a_leader_that_hangs_is_replaced_and_requests_go_on(servers: Servers, api: httpx.Client) -> None:
    """Its followers wait for a word of it for 2.5 s (zk.server). Who asked meanwhile may be told to come back, and is
    told within a bound."""
    with steady(lambda number: api.post("/v1/deployments", json=BODY)) as load:
        a_while(load, 3)
        leader = servers.leader()
        servers.pause(leader)
        try:
            assert servers.leader() != leader
            a_while(load, 25)
        finally:
            servers.resume(leader)
        answers = load.answers()
    all_answered(answers, 202, 503)
    assert {one.status for one in answers[-5:]} == {202}
    ended_well(api, [one for one in answers if one.status == 202])
    servers.start_all()


def test_no_request_fails_while_each_server_is_restarted(servers: Servers, api: httpx.Client) -> None:
    """As an operator would: the next one when the last one serves again."""
    with steady(lambda number: api.post("/v1/deployments", json=BODY)) as load:
        for name in servers.names:
            a_while(load, 3)
            servers.restart(name)
        a_while(load, 5)
        answers = load.answers()
    all_answered(answers, 202)
    ended_well(api, answers)


def test_without_a_quorum_nothing_is_touched_and_all_goes_on_by_itself(servers: Servers, api: httpx.Client) -> None:
    made = api.post("/v1/deployments", json={**BODY, "count": 8}).json()["id"]
    assert settled(api, made)["state"] == "running"
    before = instances(api)
    assert len(before) == 8
    running = {process(pid) for _, pid in before.values()}
    leader = servers.leader()
    gone = [leader, next(name for name in servers.names if name != leader)]
    for name in gone:
        servers.kill(name)
    began = time.monotonic()
    with steady(lambda number: api.post("/v1/deployments", json=BODY), rate=2.0) as load:
        wait_until(lambda: time.monotonic() - began > OUTAGE_S, 2 * OUTAGE_S, "the outage to be long")
        refused = load.answers()
    assert {one.status for one in refused} == {503}, [one for one in refused if one.status != 503]
    for one in refused:
        assert isinstance(one.answer, httpx.Response)
        assert int(one.answer.headers["Retry-After"]) > 0
    assert all(each.alive for each in running), "instances run on"
    servers.start_all()
    back = time.monotonic()

    def accepted() -> str:
        answer = api.post("/v1/deployments", json=BODY)
        return str(answer.json()["id"]) if answer.status_code == 202 else ""

    later = wait_until(accepted, 30, "a request to be accepted again", every_s=0.1)
    print(f"accepted again {time.monotonic() - back:.2f} s after the quorum was back")
    assert settled(api, later)["state"] == "running"
    found = settled(api, made)
    assert (found["state"], found["placed"]) == ("running", 8)
    after = instances(api)
    assert {one: after[one] for one in before} == before, "the same instances, by the same processes"
    assert all(each.alive for each in running)
    assert {one for one in after if one not in before} == {f"{later}.0"}, "nothing was doubled"
