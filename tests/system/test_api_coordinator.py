"""A coordinator that dies in the middle of a request: whoever waits at the API sees its end all the same."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from pathlib import Path

import httpx
import pytest

from fabric.records import Owner, decode
from tests.system.agents import QUICK, agent_processes
from tests.system.api_world import SCRIPT, World, start_api
from tests.waiting import wait_until
from zk import paths
from zk.client import TreeClient
from zk.session_tree import SessionTree
from zk.tree import NoNode

pytestmark = pytest.mark.system
MIB = 1 << 20


def owner(hosts: str, deployment: str) -> str:
    """The node that coordinates it; "" when nobody does."""

    async def look() -> str:
        tree = SessionTree(hosts)
        await tree.open(10)
        try:
            path = paths.owner(deployment)
            return decode((await TreeClient(tree).get(path)).data, Owner, path).node
        except NoNode:
            return ""
        finally:
            await tree.close()

    return asyncio.run(look())


def test_a_deployment_whose_coordinator_is_killed_ends_by_another(zookeeper: str, tmp_path: Path) -> None:
    hosts = f"{zookeeper}/test-{uuid.uuid4().hex}"
    with agent_processes(tmp_path) as farm:
        compute = {
            node: farm.start(farm.config(hosts, node, node[:2], driver="null"))
            for node in ("r1c1", "r1c2", "r2c1", "r2c2")
        }
        storage = farm.start(*(farm.config(hosts, f"r{rack}s1", f"r{rack}", layer="storage") for rack in (1, 2)))
        api = start_api(tmp_path, hosts, settings=QUICK)
        try:
            with httpx.Client(base_url=api.url, timeout=30, trust_env=False) as http:
                world = World(tmp_path, hosts, farm, api, http)
                wait_until(lambda: len(http.get("/v1/leaders").json()["items"]) == 4, 30, "all leaders")
                wait_until(lambda: len(http.get("/v1/nodes").json()["items"]) == 6, 30, "all nodes")
                assert world.push("web", SCRIPT + os.urandom(MIB)).status_code == 201
                os.kill(storage.pid, signal.SIGSTOP)  # nobody gets the image, so nothing is running yet
                made = world.deploy(count=4)
                wait_until(
                    lambda: http.get(f"/v1/deployments/{made['id']}").json()["state"] == "starting", what="its plan"
                )
                first = owner(hosts, made["id"])
                compute[first].kill()
                os.kill(storage.pid, signal.SIGCONT)
                settled = world.settled(made["id"], 40)
                assert (settled["state"], settled["placed"]) == ("running", 4), settled["reasons"]
                assert first not in {share["node"] for share in settled["plan"]}
                assert settled["epoch"] > made["epoch"]
                world.delete(made["id"])
        finally:
            api.end(signal.SIGKILL)
            os.kill(storage.pid, signal.SIGCONT)
