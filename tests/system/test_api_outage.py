"""The API when ZooKeeper, or a reply of it, is lost: nothing twice, nothing half, 503 meanwhile, and on it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from fabric.api.settings import ApiLimits
from tests.system.api_world import SCRIPT, World, problem, world
from tests.waiting import wait_until
from tests.zookeeper import Proxy

pytestmark = pytest.mark.system
PATH = "/v1/deployments"
BODY = {"image": "web", "flavor": "Small", "count": 2}
LIMITS = ApiLimits(tree_wait_s=3.0, session_wait_s=1.0)


@dataclass
class Fragile:
    """A fabric whose API reaches ZooKeeper through a proxy that can be hurt."""

    world: World
    proxy: Proxy

    @property
    def http(self) -> httpx.Client:
        return self.world.http

    def background(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, f"{self.http.base_url}{path}", timeout=30, trust_env=False, **options)

    def ready(self) -> bool:
        return self.http.get("/readyz").status_code == 200

    def count(self) -> int:
        return len(self.http.get(PATH, params={"limit": 1000}).json()["items"])

    def losing_the_reply(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The request reaches ZooKeeper, its answer is lost with the connection."""
        before = self.proxy.swallowed_bytes
        self.proxy.swallow_replies = True
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.background, method, path, **options)
            wait_until(lambda: self.proxy.swallowed_bytes > before, what="a reply to be swallowed")
            self.proxy.cut()
            return answer.result(30)


@pytest.fixture(scope="module")
def fragile(zookeeper: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fragile]:
    host, _, port = zookeeper.partition("/")[0].partition(",")[0].rpartition(":")
    folder = tmp_path_factory.mktemp("fabric")
    with (
        Proxy((host, int(port))) as proxy,
        world(folder, zookeeper, compute=1, limits=LIMITS, api_zookeeper=proxy.hosts) as one,
    ):
        assert one.push("web", SCRIPT).status_code == 201
        yield Fragile(one, proxy)


@pytest.mark.parametrize("attempt", range(4))
def test_a_lost_reply_neither_loses_nor_doubles_a_deployment(fragile: Fragile, attempt: int) -> None:
    before = fragile.count()
    answer = fragile.losing_the_reply("POST", PATH, json=BODY)
    assert answer.status_code in (202, 503), answer.text
    wait_until(fragile.ready, what="the API to be ready again")
    if answer.status_code == 202:
        assert fragile.count() == before + 1
        made = answer.json()["id"]
        assert fragile.world.settled(made)["state"] == "running"
        fragile.world.delete(made)
    else:
        assert answer.headers["Retry-After"]


def test_a_lost_reply_to_a_repeated_request_with_a_key_is_one_deployment(fragile: Fragile) -> None:
    before = fragile.count()
    headers = {"Idempotency-Key": "lost"}
    first = fragile.losing_the_reply("POST", PATH, json=BODY, headers=headers)
    wait_until(fragile.ready, what="the API to be ready again")
    again = fragile.http.post(PATH, json=BODY, headers=headers)
    assert again.status_code == 202
    if first.status_code == 202:
        assert first.json()["id"] == again.json()["id"]
    assert fragile.count() == before + 1
    fragile.world.settled(again.json()["id"])
    fragile.world.delete(again.json()["id"])


def test_a_lost_reply_to_a_scaling_scales_once(fragile: Fragile) -> None:
    made = fragile.world.deploy(count=1)
    fragile.world.settled(made["id"])
    answer = fragile.losing_the_reply("PATCH", f"{PATH}/{made['id']}", json={"count": 3})
    wait_until(fragile.ready, what="the API to be ready again")
    if answer.status_code != 202:
        fragile.http.patch(f"{PATH}/{made['id']}", json={"count": 3})
    settled = fragile.world.settled(made["id"])
    assert (settled["placed"], settled["generation"]) == (3, 2)
    fragile.world.delete(made["id"])


def test_an_outage_is_503_with_a_time_to_come_back_and_then_it_goes_on(fragile: Fragile) -> None:
    made = fragile.world.deploy()
    settled = fragile.world.settled(made["id"])
    seen: list[dict[str, Any]] = []

    def follow() -> None:
        url = f"{fragile.http.base_url}{PATH}/{made['id']}/events?follow=true"
        with httpx.stream("GET", url, timeout=60, trust_env=False) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:]))
                    if seen[-1].get("state") == "deleted":
                        return

    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(follow)
        wait_until(lambda: seen, what="the first event")
        fragile.proxy.refusing = True
        fragile.proxy.cut()
        wait_until(lambda: not fragile.ready(), what="the API to see the outage")

        for answer in (
            fragile.http.post(PATH, json=BODY),
            fragile.http.patch(f"{PATH}/{made['id']}", json={"count": 5}),
            fragile.http.delete(f"{PATH}/{made['id']}"),
            fragile.http.get(PATH),
            fragile.http.get(f"{PATH}/{made['id']}"),
            fragile.http.put("/v1/images/other", content=SCRIPT),
            fragile.http.post("/v1/nodes/r1c1/cordon"),
            fragile.http.get("/readyz"),
        ):
            problem(answer, 503, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        assert fragile.http.get("/healthz").status_code == 200
        nodes = fragile.http.get("/v1/nodes").json()
        assert len(nodes["items"]) == 4, "what the agents know can be asked without ZooKeeper"

        fragile.proxy.refusing = False
        wait_until(fragile.ready, 20, what="the API to be ready again")
        after = fragile.http.get(f"{PATH}/{made['id']}").json()
        assert after["generation"] == settled["generation"], "a request that was refused has changed something"
        fragile.world.delete(made["id"])
        stream.result(10)
    assert seen[0]["state"] == "running"


def test_a_lost_session_is_followed_by_a_new_one(fragile: Fragile) -> None:
    """Longer than the session: all that the API knew of leaders is void, and read anew."""
    fragile.proxy.refusing = True
    fragile.proxy.cut()
    wait_until(lambda: not fragile.ready(), what="the API to see the outage")
    problem(fragile.http.get(PATH), 503, "unavailable")  # takes tree_wait_s, 3 s: longer than the session lives
    fragile.proxy.refusing = False
    wait_until(fragile.ready, 20, what="the API to be ready again")
    made = fragile.world.deploy()
    assert fragile.world.settled(made["id"])["state"] == "running"
    fragile.world.delete(made["id"])

    assert "Traceback" not in fragile.world.api.log()
