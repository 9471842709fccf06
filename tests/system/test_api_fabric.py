"""Nodes, racks, leaders, capacity, cordons, instances and logs, over the API of a real fabric with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.api_world import SCRIPT, World, problem, world
from tests.waiting import wait_until

pytestmark = pytest.mark.system
COMPUTE = ["r1c1", "r1c2", "r2c1", "r2c2"]


@pytest.fixture(scope="module")
def fabric(zookeeper: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("fabric"), zookeeper, driver="process") as one:
        assert one.push("web", SCRIPT).status_code == 201
        yield one


@pytest.fixture(scope="module")
def deployment(fabric: World) -> dict[str, Any]:
    made = fabric.deploy(count=6, environment={"WORD": "hello"})
    settled = fabric.settled(made["id"])
    assert settled["state"] == "running", settled
    return settled


def items(fabric: World, path: str, **query: Any) -> list[dict[str, Any]]:
    """All pages, two items each."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        answer = fabric.http.get(path, params={"limit": 2, "after": after, **query})
        assert answer.status_code == 200, answer.text
        found.extend(answer.json()["items"])
        if answer.json()["next"] is None:
            return found
        after = answer.json()["next"]


def test_nodes_of_both_layers(fabric: World) -> None:
    nodes = items(fabric, "/v1/nodes")
    assert [one["node"] for one in nodes] == [*COMPUTE, "r1s1", "r2s1"]
    assert all(one["heard_ms"] >= 0 and not one["silent"] for one in nodes)
    assert [one["node"] for one in items(fabric, "/v1/nodes", layer="storage", rack="r2")] == ["r2s1"]
    assert len([one for one in nodes if one["leader"]]) == 4
    problem(fabric.http.get("/v1/nodes", params={"layer": "all"}), 422, "invalid")


def test_racks_and_leaders_agree(fabric: World) -> None:
    racks = items(fabric, "/v1/racks")
    assert [(one["layer"], one["rack"], one["nodes"]) for one in racks] == [
        ("compute", "r1", 2),
        ("compute", "r2", 2),
        ("storage", "r1", 1),
        ("storage", "r2", 1),
    ]
    leaders = items(fabric, "/v1/leaders")
    assert [(one["layer"], one["rack"], one["node"], one["epoch"]) for one in leaders] == [
        (one["layer"], one["rack"], one["leader"], one["epoch"]) for one in racks
    ]
    assert all(one["answered"] for one in racks)


def test_flavors_and_capacity(fabric: World) -> None:
    assert [one["name"] for one in fabric.http.get("/v1/flavors").json()["items"]] == [
        "Tiny", "Small", "Medium", "Large", "XLarge",
    ]  # fmt: skip
    found = fabric.http.get("/v1/capacity", params={"flavor": "Large"}).json()
    assert found["total"] == 8
    assert sum(rack["fits"] for rack in found["racks"]) == found["fits"] <= 8
    problem(fabric.http.get("/v1/capacity", params={"flavor": "Huge"}), 422, "unknown-flavor")
    problem(fabric.http.get("/v1/capacity"), 422, "invalid")


def test_instances_of_a_deployment_are_its_ordinals(fabric: World, deployment: dict[str, Any]) -> None:
    found = items(fabric, "/v1/instances", deployment=deployment["id"])
    assert [one["ordinal"] for one in found] == list(range(6))
    assert all(one["state"] == "running" and one["pid"] > 0 and one["driver"] == "process" for one in found)
    where = {share["node"]: share["count"] for share in deployment["plan"]}
    assert {node: [one["node"] for one in found].count(node) for node in where} == where
    problem(fabric.http.get("/v1/instances", params={"deployment": "d-nothing"}), 404, "not-found")
    problem(fabric.http.get("/v1/instances", params={"deployment": deployment["id"], "after": "x"}), 422, "invalid")


def test_instances_of_the_fabric_are_all_there_on_any_page_size(fabric: World, deployment: dict[str, Any]) -> None:
    found = items(fabric, "/v1/instances")
    assert sorted(one["id"] for one in found) == [f"{deployment['id']}.{ordinal}" for ordinal in range(6)]
    whole = fabric.http.get("/v1/instances", params={"limit": 1000}).json()
    assert whole["items"] == found
    assert (whole["next"], whole["silent"]) == (None, [])


def test_one_instance_and_its_log(fabric: World, deployment: dict[str, Any]) -> None:
    name = f"{deployment['id']}.3"
    assert fabric.http.get(f"/v1/instances/{name}").json()["ordinal"] == 3

    def log() -> bytes:
        answer = fabric.http.get(f"/v1/instances/{name}/log")
        assert answer.headers["content-type"].startswith("text/plain")
        return answer.content

    line = f"ordinal 3 of {deployment['id']} says hello\n".encode()
    assert wait_until(log, what="its line") == line
    assert fabric.http.get(f"/v1/instances/{name}/log", params={"bytes": 6}).content == b"hello\n"
    problem(fabric.http.get(f"/v1/instances/{name}/log", params={"bytes": 0}), 422, "invalid")
    problem(fabric.http.get(f"/v1/instances/{name}/log", params={"bytes": 1 << 21}), 422, "invalid")


@pytest.mark.parametrize("name", ["x", "d-00000000000.1", "d-00000000000", "..", "%2e%2e", "d-1.x", "d-1.99999999"])
def test_instances_that_are_none(fabric: World, name: str) -> None:
    for path in (f"/v1/instances/{name}", f"/v1/instances/{name}/log"):
        assert fabric.http.get(path).status_code == 404


def test_an_ordinal_that_is_not_placed_is_unknown(fabric: World, deployment: dict[str, Any]) -> None:
    problem(fabric.http.get(f"/v1/instances/{deployment['id']}.6"), 404, "not-found")


def test_a_cordoned_node_gets_nothing_new_until_it_is_uncordoned(fabric: World, deployment: dict[str, Any]) -> None:
    found = fabric.http.post("/v1/nodes/r1c1/cordon").json()
    assert (found["cordoned"], found["effective"]) == (True, True), found
    assert fabric.http.post("/v1/nodes/r1c1/cordon").json()["effective"], "cordoning twice is cordoning once"
    wait_until(
        lambda: [one["node"] for one in items(fabric, "/v1/nodes") if one["cordoned"]] == ["r1c1"], what="the list"
    )
    made = fabric.deploy(count=4)
    assert "r1c1" not in {share["node"] for share in fabric.settled(made["id"])["plan"]}
    fabric.delete(made["id"])
    found = fabric.http.post("/v1/nodes/r1c1/uncordon").json()
    assert (found["cordoned"], found["effective"]) == (False, True), found
    assert "r1c1" in {share["node"] for share in deployment["plan"]}, "what ran there has gone on"


def test_what_can_not_be_cordoned(fabric: World) -> None:
    problem(fabric.http.post("/v1/nodes/nothing/cordon"), 404, "not-found")
    problem(fabric.http.post("/v1/nodes/r1s1/cordon"), 409, "conflict")
    problem(fabric.http.get("/v1/nodes/r1c1/cordon"), 405, "method-not-allowed")


def test_health_readiness_and_metrics(fabric: World, deployment: dict[str, Any]) -> None:
    assert fabric.http.get("/healthz").json()["status"] == "ok"
    ready = fabric.http.get("/readyz").json()
    assert (ready["zookeeper"], ready["compute_leaders"], ready["storage_leaders"]) == ("connected", 2, 2)
    text = fabric.http.get("/metrics").text
    for line in (
        'fabric_api_deployments_total{change="create"}',
        'fabric_api_leaders{layer="compute"} 2.0',
        "fabric_api_zookeeper_connected 1.0",
        'fabric_api_bus_sent_total{message="Submit"}',
        'fabric_api_zookeeper_operations_total{kind="multi"}',
        'fabric_api_requests_total{method="GET",route="/healthz",status="200"}',
        "fabric_images_lacking 0.0",
        "fabric_images_lost 0.0",
    ):
        assert line in text, line
