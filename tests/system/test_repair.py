"""Redundancy on real processes: a rotten chunk, and a storage agent that is killed for good."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from blake3 import blake3

from fabric.commands import HeldList, ListHeld
from fabric.records import Image, Member, encode
from tests.system.agents import QUICK, AgentFarm, Talker, agent_processes, members, talk
from tests.system.api_world import in_tree
from tests.system.test_agent_work import an_image, push
from tests.waiting import wait_until
from zk.client import TreeClient

pytestmark = pytest.mark.system
LIMITS = replace(QUICK, repair_grace_s=1.0, repair_interval_s=5.0)
RACKS = ("r1", "r2", "r3")


@dataclass
class Fabric:
    """A storage agent in each of three racks, each a process of its own; an image is held by the first two."""

    hosts: str
    farm: AgentFarm
    stores: dict[str, Member]
    digest: str

    def held(self, node: str) -> bool:
        async def body(talker: Talker) -> bool:
            answer = await talker.ask(self.stores[node].address, ListHeld((self.digest,)))
            assert isinstance(answer, HeldList)
            return answer.held == (0,)

        return talk(body)

    def chunks(self, node: str) -> list[Path]:
        return sorted((self.farm.folder / node / "store" / "chunks").iterdir())


@pytest.fixture(scope="module")
def fabric(zookeeper: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    hosts = f"{zookeeper}/test-repair"
    with agent_processes(tmp_path_factory.mktemp("repair")) as farm:
        for rack in RACKS:
            config = farm.config(
                hosts, f"{rack}s1", rack, layer="storage", settings=LIMITS, scrub_mib_s=1000.0, scrub_every_s=0.3
            )
            farm.start(config)
        found = [
            wait_until(lambda rack=rack: members(hosts, "storage", rack), 20, f"rack {rack}", every_s=0.2)
            for rack in RACKS
        ]
        stores = {node: member for one in found for node, member in one.items()}
        image = an_image()
        digest = push(image, [stores["r1s1"], stores["r2s1"]])
        record = Image("web", digest, len(image), "tar", ("r1s1", "r2s1"), 1)

        async def write(client: TreeClient) -> None:
            await client.create("/images/web", encode(record))

        in_tree(hosts, write)
        yield Fabric(hosts, farm, stores, digest)


def sound(path: Path) -> bool:
    return path.exists() and blake3(path.read_bytes()).hexdigest() == path.name


def test_a_chunk_that_rots_on_the_disk_is_replaced_from_the_other_holder(fabric: Fabric) -> None:
    chunks = fabric.chunks("r1s1")
    assert len(chunks) == 5
    path = chunks[2]
    others = {one: one.stat().st_mtime_ns for one in chunks if one != path}
    path.write_bytes(b"rot" + path.read_bytes()[3:])
    fabric.farm.started[0].said(f"chunk {path.name} is lost")
    wait_until(lambda: sound(path), 10, "the chunk to be back")
    wait_until(lambda: fabric.held("r1s1"), 10, "the image to be held whole again")
    assert {one: one.stat().st_mtime_ns for one in others} == others, "only what had rotted was written again"
    assert fabric.chunks("r3s1") == [], "it was not copied elsewhere"


def test_a_holder_that_is_killed_for_good_is_replaced_in_another_rack(fabric: Fabric) -> None:
    assert not fabric.held("r3s1")
    fabric.farm.started[1].kill()
    wait_until(lambda: fabric.held("r3s1"), 20, "the image to be held in two racks again", every_s=0.2)
    assert fabric.held("r1s1")
    assert all(sound(path) for path in fabric.chunks("r3s1"))
