"""Drains and the brake over the API of a real fabric, as far as what is written in ZooKeeper is concerned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from fabric.records import Deployment, Drain, Lost, Share, decode, encode
from tests.system.api_world import SCRIPT, World, in_tree, problem, world
from tests.waiting import wait_until
from zk import paths
from zk.client import TreeClient
from zk.tree import NoNode

pytestmark = pytest.mark.system
NODE = "/v1/nodes/r1c1"


@pytest.fixture(scope="module")
def fabric(zookeeper: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("fabric"), zookeeper) as one:
        assert one.push("web", SCRIPT).status_code == 201
        yield one


def written(fabric: World, path: str) -> bytes | None:
    """What a znode holds, or None."""
    found: list[bytes | None] = []

    async def read(client: TreeClient) -> None:
        try:
            found.append((await client.get(path)).data)
        except NoNode:
            found.append(None)

    in_tree(fabric.hosts, read)
    return found[0]


def listed(fabric: World, node: str) -> dict[str, Any]:
    return next((one for one in fabric.http.get("/v1/nodes").json()["items"] if one["node"] == node), {})


def test_a_drain_is_a_cordon_and_more_until_the_node_is_uncordoned(fabric: World) -> None:
    first = fabric.http.post(f"{NODE}/drain")
    assert first.status_code == 202, first.text
    begun = first.json()
    assert (begun["left"], begun["done"], begun["overdue"]) == (0, True, False)
    assert fabric.http.get(f"{NODE}/drain").json() == begun
    wait_until(lambda: listed(fabric, "r1c1")["draining"] == begun["deadline"], what="the list says it")
    wait_until(lambda: listed(fabric, "r1c1")["cordoned"], what="the node knows that it is cordoned")

    again = fabric.http.post(f"{NODE}/drain", json={"deadline_s": 0}).json()
    assert again["since"] == begun["since"]
    assert again["deadline"] < begun["deadline"], "a new deadline replaces the old"
    assert again["overdue"]
    data = written(fabric, paths.drain("r1c1"))
    assert data is not None
    assert decode(data, Drain, "").node == "r1c1"

    assert fabric.http.post(f"{NODE}/uncordon").json()["effective"]
    assert written(fabric, paths.drain("r1c1")) is None
    assert written(fabric, paths.cordon("r1c1")) is None
    problem(fabric.http.get(f"{NODE}/drain"), 404, "not-found")
    wait_until(lambda: listed(fabric, "r1c1")["draining"] is None, what="the list says that it is over")


def test_a_cordoned_node_can_be_drained_and_both_end_together(fabric: World) -> None:
    assert fabric.http.post(f"{NODE}/cordon").status_code == 200
    assert fabric.http.post(f"{NODE}/drain", json={}).status_code == 202
    assert fabric.http.post(f"{NODE}/uncordon").status_code == 200
    assert written(fabric, paths.cordon("r1c1")) is None


def test_what_can_not_be_drained(fabric: World) -> None:
    problem(fabric.http.post("/v1/nodes/nothing/drain"), 404, "not-found")
    problem(fabric.http.get("/v1/nodes/no%20thing/drain"), 404, "not-found")
    problem(fabric.http.post("/v1/nodes/r1s1/drain"), 409, "conflict")
    for deadline in (-1, 604_801, "10", 1.5):
        found = problem(fabric.http.post(f"{NODE}/drain", json={"deadline_s": deadline}), 422, "invalid")
        assert found["errors"][0]["field"] == "deadline_s"
    assert written(fabric, paths.drain("r1c1")) is None


def test_a_drain_counts_what_the_records_have_on_the_node(fabric: World) -> None:
    """A record by hand, which no leader has a reason to touch: it is at rest, and its instances are elsewhere."""
    made = fabric.settled(fabric.deploy(count=4)["id"])

    async def leave(client: TreeClient) -> None:
        path = paths.deployment(made["id"])
        found = await client.get(path)
        record = decode(found.data, Deployment, path)
        fields = {name: getattr(record, name) for name in record.__struct_fields__}
        fields |= {"leaving": (Share("away", "r9", "0-1"),), "lacking": 1}
        await client.set(path, encode(Deployment(**fields)), found.stat.version)
        await client.create(paths.drain("away"), encode(Drain("away", 1_800_000_000_000, 1_800_000_600_000)))

    in_tree(fabric.hosts, leave)
    found = fabric.http.get("/v1/nodes/away/drain").json()
    assert (found["left"], found["done"]) == (2, False)
    [row] = found["deployments"]
    assert (row["id"], row["staying"], row["leaving"], row["lacking"]) == (made["id"], 0, 2, 1)
    shown = fabric.http.get(f"/v1/deployments/{made['id']}").json()
    assert shown["leaving"] == [{"node": "away", "rack": "r9", "ordinals": "0-1", "count": 2}]
    assert shown["lacking"] == 1
    ended = fabric.http.post("/v1/nodes/away/uncordon").json()
    assert ended["cordoned"] is False, "a drain of a node that is away can be ended"
    problem(fabric.http.get("/v1/nodes/away/drain"), 404, "not-found")
    fabric.delete(made["id"])


def test_the_brake_by_the_notes_of_lost_nodes_and_its_release(fabric: World) -> None:
    assert fabric.http.get("/v1/brake").json()["on"] is False
    names = [f"r3c{number}" for number in range(1, 5)]

    async def lose(client: TreeClient) -> None:
        now_ms = int(time.time() * 1000)
        await client.create(paths.lost(names[0]), encode(Lost(names[0], "r3", now_ms - 9000, now_ms, "r1c1")))
        for name in names[1:]:
            await client.create(paths.lost(name), encode(Lost(name, "r3", now_ms)))

    async def come_back(client: TreeClient) -> None:
        for name in names:
            await client.delete(paths.lost(name))

    in_tree(fabric.hosts, lose)
    try:
        found = fabric.http.get("/v1/brake").json()
        assert found["on"]
        assert found["nodes"] == names
        assert "4 of the 4 of rack r3 vanished" in found["detail"]
        assert "4 of the fabric's 8 compute nodes" in found["detail"]
        wait_until(lambda: listed(fabric, "r3c2").get("lost"), what="the list of nodes names it")
        metrics = fabric.http.get("/metrics").text
        assert "fabric_lost_nodes 4.0" in metrics
        assert "fabric_brake 1.0" in metrics

        released = fabric.http.post("/v1/brake/release").json()
        assert sorted(released["released"]) == names[1:], "the first was to be replaced already"
        assert released["brake"]["on"] is False
        for name in names:
            data = written(fabric, paths.lost(name))
            assert data is not None
            note = decode(data, Lost, "")
            assert note.by == "operator", "none of them is counted any more"
            assert note.accepted_ms > 0
        assert fabric.http.post("/v1/brake/release").json()["released"] == []
    finally:
        in_tree(fabric.hosts, come_back)
    wait_until(lambda: "fabric_lost_nodes 0.0" in fabric.http.get("/metrics").text, what="none is lost")


def test_a_note_of_a_node_that_is_back_is_no_lost_node(fabric: World) -> None:
    async def note(client: TreeClient) -> None:
        await client.create(paths.lost("r1c2"), encode(Lost("r1c2", "r1", 1_800_000_000_000)))

    async def forget(client: TreeClient) -> None:
        if await client.exists(paths.lost("r1c2")) is not None:
            await client.delete(paths.lost("r1c2"))

    in_tree(fabric.hosts, note)
    assert fabric.http.get("/v1/brake").json()["lost"] == []
    in_tree(fabric.hosts, forget)
