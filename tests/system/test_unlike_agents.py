"""Agents that are not alike, under load: of this and the next minor version of the protocol, with clocks that step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx
import pytest

from fabric.chaos import eye, judge
from fabric.chaos.load import Generator
from fabric.chaos.scan import Processes
from fabric.chaos.script import Load
from fabric.chaos.watch import Watcher
from fabric.chaos.watching import Watching
from fabric.chaos.world import Rules
from fabric.flavors import load_flavors
from fabric.load import image
from fabric.load.history import Asked, Clock, History, requests
from fabric.local.harness import LocalFabric
from fabric.messages import PROTOCOL
from fabric.records import Member, decode
from fabric.runtime import stepping
from fabric.runtime.stepping import SOUND, NodeFault
from tests.waiting import wait_until
from zk import paths
from zk.client import TreeClient

pytestmark = pytest.mark.system
NEWER = (PROTOCOL[0], PROTOCOL[1] + 1)


NODES = ("r1c01", "r1c02", "r1s01", "r2c01", "r2c02", "r2s01")


@dataclass
class Loaded:
    """A fabric under load, and what was seen of it. `away`: when its API was restarted."""

    fabric: LocalFabric
    watcher: Watcher
    load: Generator
    clock: Clock
    away: list[tuple[float, float]] = field(default_factory=list)

    def processes(self, deployment: str) -> dict[int, tuple[int, ...]]:
        found = Processes(self.watcher.nodes).look()
        return {one.ordinal: pids for one, pids in found.items() if one.deployment == deployment}

    def protocols(self) -> dict[str, tuple[int, int]]:
        """Node -> what its member record says."""

        async def look(client: TreeClient) -> dict[str, tuple[int, int]]:
            names = await client.children(paths.NODES)
            return {name: decode((await client.get(paths.node(name))).data, Member, name).protocol for name in names}

        return self.watcher.ask(look)

    def fault(self, node: str, fault: NodeFault) -> None:
        stepping.set_fault(self.fabric.folder.faults, node, fault)

    def restart(self, who: str) -> None:
        began = self.clock.now()
        self.fabric.restart(who)
        if who == "api":
            self.away.append((began, self.clock.now()))

    def asked(self) -> tuple[Asked, ...]:
        """Every request, when all are at their end."""
        wait_until(lambda: self.load.idle, 30, "the open requests to end")
        return requests(self.load.history.attempts, self.load.history.ends)

    def check(self, asked: tuple[Asked, ...]) -> None:
        """No request failed or was without an answer, and no ordinal ran twice."""
        assert judge.answers(asked, self.away, ()) == []
        assert {one.end.state if one.end else "never" for one in asked if one.last.accepted} <= {"running", "deleted"}
        assert self.watcher.watching.findings == []
        there = self.watcher.ask(lambda client: eye.present(client, self.watcher.racks))
        assert {*there.compute, *there.storage} == set(NODES)

    def deployed(self, count: int) -> str:
        """A deployment that runs and that no load touches."""
        body = {"image": "web", "flavor": "Tiny", "count": count, "name": "standing"}
        url = f"{self.fabric.api_url}/v1/deployments"
        made = httpx.post(url, json=body, timeout=10).json()["id"]
        wait_until(lambda: httpx.get(f"{url}/{made}", timeout=10).json()["state"] == "running", 20, "it to run")
        return str(made)


@pytest.fixture(scope="module")
def world() -> Iterator[Loaded]:
    with ExitStack() as stack:
        fabric = stack.enter_context(LocalFabric(racks=2, compute=2, storage=1, faults=True, session_timeout_s=2.0))
        assert tuple(view.node.name for view in fabric.up.nodes) == NODES
        flavors = {name: flavor.resources for name, flavor in load_flavors().items()}
        rules = Rules(fabric.up.spec.capacity, flavors)
        clock = Clock()
        nodes = fabric.folder.path / "nodes"
        watcher = Watcher(
            fabric.zk_hosts, nodes, ("r1", "r2"), ("r1s01", "r2s01"), Watching(rules), clock, frozenset
        )
        watcher.open()
        stack.callback(watcher.close)
        archive = image.build(256 * 1024, random.Random(7))
        assert httpx.put(f"{fabric.api_url}/v1/images/web", content=archive, timeout=30).status_code == 201
        load = Load(per_s=4.0, count=(1, 3), keep=6)
        generator = Generator(fabric.api_url, load, ("web",), History(), clock, random.Random(7), "unlike")
        generator.start()
        stack.callback(generator.close)
        yield Loaded(fabric, watcher, generator, clock)


def test_clocks_that_step_are_no_trouble(world: Loaded):
    """Forth and back, of every agent, so of every coordinator too, and never of two alike."""
    begun = world.load.counters.begun
    for number, offset_s in enumerate((3600, -3600, 90, -86_400)):
        for index, node in enumerate(NODES):
            world.fault(node, NodeFault(wall_offset_ms=1000 * offset_s * (1 + index) * (-1) ** index))
        wanted = begun + 5 * (number + 1)
        wait_until(lambda wanted=wanted: world.load.counters.begun >= wanted, 20, "some requests under these clocks")
    for node in NODES:
        world.fault(node, SOUND)
    assert len(world.load.history.ends) > 5, "they come to their end meanwhile"


def test_requests_keep_working_while_agents_are_replaced_one_by_one_by_a_later_minor_version(world: Loaded):
    standing = world.deployed(4)
    ran = world.processes(standing)
    assert set(ran) == {0, 1, 2, 3}
    for who in (*NODES[:3], "api", *NODES[3:]):
        world.fault(who, NodeFault(newer=True))
        world.restart(who)
    assert set(world.protocols().values()) == {NEWER}
    for node in NODES[:2]:  # and two go back: they find what a newer version wrote
        world.fault(node, SOUND)
        world.restart(node)
    assert set(world.protocols().values()) == {PROTOCOL, NEWER}
    world.load.stop()
    asked = world.asked()
    assert len(asked) > 30
    world.check(asked)
    assert world.processes(standing) == ran, "what ran ran on"
