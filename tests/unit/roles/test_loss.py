"""Messages lost, repeated and reordered, and agents that die and come back, drawn from a seed: nothing is lost, doubled
or forgotten. A few seeds each time; the simulator that searches for more is not there yet.
"""

from __future__ import annotations

import random

import pytest

from fabric.messages import AnyMessage
from tests.unit.roles.world import World

LOSS, REPEAT, DELAY_S = 0.1, 0.1, 0.05
REQUESTS, COUNT = 4, 20


class Lossy(World):
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        super().__init__()

    def _send(self, sender: str, to: str, message: AnyMessage) -> None:
        times = 0 if self.chance.random() < LOSS else 2 if self.chance.random() < REPEAT else 1
        for _ in range(times):
            self.at(self.chance.random() * DELAY_S, lambda: super(Lossy, self)._send(sender, to, message))


@pytest.mark.parametrize("seed", range(12))
def test_requests_end_as_asked_and_leave_nothing(seed: int):
    world = Lossy(seed)
    world.settle()
    names = [world.create(COUNT) for _ in range(REQUESTS)]
    draw = random.Random(seed)
    for _ in range(2):
        victim = draw.choice([node for node, host in world.hosts.items() if host.identity.layer == "compute"])
        rack, at = world.hosts[victim].identity.rack, draw.random() * 0.5

        def revive(node: str = victim, rack: str = rack) -> None:
            if not world.hosts[node].alive:
                world.boot(node, rack, "compute")

        world.at(at, lambda node=victim: world.crash(node))
        world.at(at + draw.choice([0.5, 6.0]), revive)
    world.until_final(*names, limit_s=200)
    world.pass_time(30)
    for name in names:
        record = world.record(name)
        assert record.state == "running", (record.reason, record.reasons)
        running = world.running(name)
        assert sorted(running) == list(range(COUNT))
        assert all(len(nodes) == 1 for nodes in running.values()), running
    for name in names:
        world.change(name, gone=True)
    world.until_final(*names, limit_s=200)
    world.pass_time(30)
    assert world.reserved() == 0
    assert not any(world.running(name) for name in names)
