"""Every bound of the API, reached: uploads that stall, are too large or too many; too many who wait; and bad znodes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from fabric.api.settings import ApiLimits
from tests.system.api_world import SCRIPT, World, in_tree, problem, world
from tests.waiting import wait_until
from zk import paths
from zk.client import TreeClient

pytestmark = pytest.mark.system
MIB = 1 << 20
LIMITS = ApiLimits(
    upload_idle_s=0.7,
    upload_drain_s=0.3,
    image_bytes=2 * MIB,
    max_pushes=1,
    max_watchers=1,
    max_requests=6,
    stream_beat_s=0.2,
    stream_most_s=1.0,
)


@pytest.fixture(scope="module")
def fabric(zookeeper: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("fabric"), zookeeper, compute=1, limits=LIMITS) as one:
        assert one.push("web", SCRIPT).status_code == 201
        yield one


def slow_push(fabric: World) -> socket.socket:
    """An upload that has begun and goes no further."""
    url = fabric.http.base_url
    connection = socket.create_connection((url.host, url.port or 80))
    connection.sendall(b"PUT /v1/images/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + SCRIPT)
    wait_until(lambda: "fabric_api_pushes 1.0" in fabric.http.get("/metrics").text, what="the push to begin")
    return connection


def test_an_upload_that_stalls_is_cut_off(fabric: World) -> None:
    with slow_push(fabric) as connection:
        connection.settimeout(10)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:fabric:problem:upload-stalled" in answer
    problem(fabric.http.get("/v1/images/slow"), 404, "not-found")


def test_uploads_at_a_time_are_bounded(fabric: World) -> None:
    with slow_push(fabric):
        answer = fabric.push("other", SCRIPT)
        problem(answer, 503, "unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    wait_until(lambda: fabric.push("other", SCRIPT).status_code == 201, what="the next push to be taken")


@pytest.mark.parametrize("announced", [True, False])
def test_an_image_has_a_largest_size(fabric: World, announced: bool) -> None:
    content = SCRIPT + os.urandom(2 * MIB)
    pieces = iter([content[:MIB], content[MIB:]])
    answer = fabric.http.put("/v1/images/large", content=content if announced else pieces)
    problem(answer, 413, "too-large")
    problem(fabric.http.get("/v1/images/large"), 404, "not-found")


def test_who_waits_is_counted(fabric: World) -> None:
    made = fabric.deploy()
    index = fabric.settled(made["id"])["index"]
    path = f"/v1/deployments/{made['id']}"
    poll = threading.Thread(
        target=httpx.get,
        args=(f"{fabric.http.base_url}{path}",),
        kwargs={"params": {"index": index, "wait": "10s"}, "timeout": 30, "trust_env": False},
    )
    poll.start()
    wait_until(lambda: "fabric_api_watchers 1.0" in fabric.http.get("/metrics").text, what="the poll to wait")
    problem(fabric.http.get(path, params={"index": index, "wait": "1s"}), 503, "unavailable")
    problem(fabric.http.get(f"{path}/events"), 503, "unavailable")
    assert fabric.http.get(path).status_code == 200, "who does not wait is served"
    fabric.http.delete(path)
    poll.join(10)
    assert not poll.is_alive()
    assert fabric.settled(made["id"])["state"] == "deleted"


def test_a_stream_has_heartbeats_and_an_end(fabric: World) -> None:
    made = fabric.deploy()
    fabric.settled(made["id"])
    with fabric.http.stream("GET", f"/v1/deployments/{made['id']}/events", params={"follow": "true"}) as answer:
        lines = list(answer.iter_lines())
    assert lines.count(": still here") >= 2
    assert "event: deployment" in lines
    fabric.delete(made["id"])


def test_requests_at_a_time_are_bounded(fabric: World) -> None:
    url = fabric.http.base_url
    connections = [socket.create_connection((url.host, url.port or 80)) for _ in range(LIMITS.max_requests)]
    head = ("POST /v1/deployments HTTP/1.1", "Host: x", "Content-Type: application/json", "Content-Length: 50", "", "{")
    try:
        for connection in connections:
            connection.sendall("\r\n".join(head).encode())  # and never the rest
        wait_until(lambda: fabric.http.get("/healthz").status_code == 503, what="one too many to be refused")
        problem(fabric.http.get("/healthz"), 503, "unavailable")
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: fabric.http.get("/healthz").status_code == 200, what="the others to be gone")


def test_a_znode_that_is_no_record_is_told_by_its_path_and_hides_no_other(fabric: World) -> None:
    made = fabric.deploy()
    bad = "d-zzzzzzzzzzz"

    async def spoil(client: TreeClient) -> None:
        await client.create(paths.deployment(bad), b"{}")
        await client.create(paths.image("junk"), b"\xff")

    in_tree(fabric.hosts, spoil)
    found = problem(fabric.http.get(f"/v1/deployments/{bad}"), 500, "internal-error")
    assert found["detail"].startswith(f"/deployments/{bad}: expected a Deployment record as JSON, found: ")
    problem(fabric.http.get("/v1/images/junk"), 500, "internal-error")
    assert made["id"] in [one["id"] for one in fabric.http.get("/v1/deployments").json()["items"]]
    assert "web" in [one["name"] for one in fabric.http.get("/v1/images").json()["items"]]
    fabric.settled(made["id"])
    fabric.delete(made["id"])


def test_nobody_is_refused_for_good_while_a_rack_has_members_and_no_leader(fabric: World) -> None:
    body = {"image": "web", "flavor": "XLarge", "count": 50}
    problem(fabric.http.post("/v1/deployments", json=body), 422, "does-not-fit")
    rack, member = paths.rack_members("compute", "r9"), paths.member("compute", "r9", "r9c1")

    async def come(client: TreeClient) -> None:
        await client.ensure(rack)
        await client.create(member)

    async def go(client: TreeClient) -> None:
        await client.delete(member)

    in_tree(fabric.hosts, come)
    made = fabric.http.post("/v1/deployments", json=body)
    assert made.status_code == 202
    assert fabric.settled(made.json()["id"])["state"] == "failed"
    in_tree(fabric.hosts, go)
    problem(fabric.http.post("/v1/deployments", json=body), 422, "does-not-fit")
