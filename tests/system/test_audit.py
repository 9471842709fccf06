"""The audit of a real fabric: clean when nothing is wrong, and what is planted is found, named and repaired."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fabric.api.settings import ApiLimits
from fabric.commands import Reserve, Reserved
from fabric.ordinals import format_ordinals
from fabric.records import Deployment, Drain, Key, Share, decode, encode
from fabric.resources import Resources
from tests.system.agents import members, talk
from tests.system.api_world import SCRIPT, World, in_tree, problem, world
from tests.waiting import wait_until
from zk import paths
from zk.client import TreeClient

pytestmark = pytest.mark.system
LIMITS = ApiLimits(audit_gap_s=0.3, audit_gap_most_s=2.0, audit_poll_s=0.2)
GONE = "d-gone00001"


@pytest.fixture(scope="module")
def fabric(zookeeper: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("fabric"), zookeeper, limits=LIMITS) as one:
        assert one.push("web", SCRIPT).status_code == 201
        yield one


def audit(fabric: World, repair: bool = False) -> dict[str, Any]:
    answer = fabric.http.request("POST" if repair else "GET", "/v1/audit", timeout=60)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def told(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["kind"], one["subject"]) for one in report["findings"]}


def command(fabric: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", "deploy.cli.main", "audit", *arguments),
        env={**os.environ, "FABRIC_API": str(fabric.http.base_url)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def rewrite(fabric: World, deployment: str, **changes: Any) -> None:
    """Change a record by hand."""

    async def work(client: TreeClient) -> None:
        path = paths.deployment(deployment)
        found = await client.get(path)
        record = decode(found.data, Deployment, path)
        fields = {name: getattr(record, name) for name in record.__struct_fields__} | changes
        await client.set(path, encode(Deployment(**fields)), found.stat.version)

    in_tree(fabric.hosts, work)


def running(fabric: World, deployment: str) -> set[tuple[int, str]]:
    """(ordinal, node) of what the nodes have of it."""
    items = fabric.http.get("/v1/instances", params={"limit": 1000}).json()["items"]
    return {(one["ordinal"], one["node"]) for one in items if one["deployment"] == deployment}


def test_a_healthy_fabric_is_clean_at_the_first_look(fabric: World) -> None:
    made = fabric.settled(fabric.deploy(count=6)["id"])
    found = audit(fabric)
    assert (found["clean"], found["complete"], found["looks"], found["findings"]) == (True, True, 1, [])
    assert (found["nodes"], found["instances"], found["images"]) == (4, 6, 1)
    ended = command(fabric)
    assert ended.returncode == 0, ended.stderr
    assert "all fits together" in ended.stdout
    assert command(fabric, "--repair").returncode == 0
    fabric.delete(made["id"])


def test_deployments_that_are_made_and_deleted_meanwhile_are_no_findings(fabric: World) -> None:
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            made = fabric.deploy(count=8)
            look = pool.submit(audit, fabric)
            fabric.delete(made["id"])
            assert look.result(60)["findings"] == []


def test_instances_of_a_record_that_somebody_removed_are_orphans_and_are_stopped(fabric: World) -> None:
    answer = fabric.http.post(
        "/v1/deployments", json={"image": "web", "flavor": "Small", "count": 4}, headers={"Idempotency-Key": "orphan"}
    )
    made = fabric.settled(answer.json()["id"])["id"]

    async def remove(client: TreeClient) -> None:
        await client.delete(paths.trace(made))
        await client.delete(paths.deployment(made))

    in_tree(fabric.hosts, remove)
    found = audit(fabric)
    assert {one["kind"] for one in found["findings"]} == {"orphan", "leak"}
    assert len({one["where"] for one in found["findings"] if one["kind"] == "orphan"}) == 4
    assert len(running(fabric, made)) == 4, "only to look changes nothing"
    ended = command(fabric)
    assert ended.returncode == 3
    assert made in ended.stdout

    repaired = command(fabric, "--repair", "--format", "json")
    assert repaired.returncode == 4, repaired.stdout + repaired.stderr
    assert json.loads(repaired.stdout)["left"] == 0
    assert running(fabric, made) == set()
    assert audit(fabric)["clean"]


def test_a_plan_that_says_something_else_than_the_nodes_is_carried_out(fabric: World) -> None:
    made = fabric.settled(fabric.deploy(count=4)["id"])
    by_node = {share["node"]: share for share in made["plan"]}
    assert set(by_node) == {"r1c1", "r1c2", "r2c1", "r2c2"}
    stays = tuple(Share(one["node"], one["rack"], one["ordinals"]) for one in made["plan"] if one["node"] != "r1c1")
    moved = by_node["r1c1"]["ordinals"]
    other = next(share for share in stays if share.node == "r1c2")
    both = format_ordinals((*other.numbers(), int(moved)))
    plan = (*(share for share in stays if share is not other), Share("r1c2", "r1", both))
    rewrite(fabric, made["id"], plan=plan)

    found = audit(fabric)
    assert told(found) == {("missing", f"{made['id']}.{moved}"), ("orphan", f"{made['id']}.{moved}")}
    assert {one["where"] for one in found["findings"]} == {"r1/r1c1", "r1/r1c2"}
    done = audit(fabric, repair=True)
    assert (done["left"], done["repairing"]) == (0, True), done
    assert all(one["repaired"] for one in done["findings"])
    assert running(fabric, made["id"]) == {(ordinal, share.node) for share in plan for ordinal in share.numbers()}
    assert fabric.settled(made["id"])["generation"] > made["generation"]
    assert audit(fabric)["clean"]
    fabric.delete(made["id"])


def test_what_belongs_to_nothing_is_a_leak_and_goes(fabric: World) -> None:
    digest = "f" * 64

    async def plant(client: TreeClient) -> None:
        await client.create(paths.key(digest), encode(Key(GONE, "x")))
        await client.create(paths.drain("r2c2"), encode(Drain("r2c2", 1, 1)))

    in_tree(fabric.hosts, plant)
    address = members(fabric.hosts, rack="r2")["r2c1"].address
    need = Resources(1, 64, 64)
    granted = talk(lambda talker: talker.ask(address, Reserve(GONE, 1 << 50, 3, 1, need, "0-2", 3_600_000)))
    assert isinstance(granted, Reserved)
    assert granted.granted == "0-2"

    found = audit(fabric)
    expected = {("leak", f"key {digest[:12]}"), ("leak", "r2c2"), ("leak", f"{GONE} reservations")}
    assert told(found) == expected
    done = audit(fabric, repair=True)
    assert done["left"] == 0, done
    assert audit(fabric)["clean"]
    wait_until(lambda: sum(one["reserved"] for one in fabric.http.get("/v1/nodes").json()["items"]) == 0, what="room")
    assert fabric.http.get("/v1/nodes/r2c2/drain").status_code == 200, "the drain stays: an operator asked for it"
    assert fabric.http.post("/v1/nodes/r2c2/uncordon").status_code == 200


def test_what_can_not_be_repaired_is_left_and_is_an_error(fabric: World) -> None:
    async def spoil(client: TreeClient) -> None:
        await client.create(paths.deployment(GONE), b"{}")

    async def remove(client: TreeClient) -> None:
        await client.delete(paths.deployment(GONE))

    in_tree(fabric.hosts, spoil)
    try:
        assert told(audit(fabric)) == {("unreadable", paths.deployment(GONE))}
        ended = command(fabric, "--repair")
        assert ended.returncode == 1
        assert "1 of 1 are not repaired" in ended.stdout
    finally:
        in_tree(fabric.hosts, remove)


def test_one_audit_at_a_time(fabric: World) -> None:
    with fabric.http.stream("GET", "/v1/audit", params={"progress": "true"}) as first:
        lines = first.iter_lines()
        assert json.loads(next(lines))["report"] is None
        second = fabric.http.get("/v1/audit")
        rest = [json.loads(line) for line in lines]
    assert rest[-1]["report"]["clean"] is True
    if second.status_code != 200:  # the first may have been quicker
        problem(second, 409, "conflict")
