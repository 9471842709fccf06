"""A small real fabric with an API, for tests: a ZooKeeper, agents of two racks, and an API process of its own."""

from __future__ import annotations

import asyncio
import io
import pickle
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fabric.api.settings import ApiConfig, ApiLimits
from fabric.roles.settings import Settings
from tests.system.agents import QUICK, AgentFarm, agent_processes
from tests.waiting import wait_until
from zk.client import TreeClient
from zk.session_tree import SessionTree

MAIN = """
import pickle, sys
from fabric.api.main import run_api
sys.exit(run_api(pickle.load(sys.stdin.buffer)))
"""
SCRIPT = b'#!/bin/sh\necho "ordinal $FABRIC_ORDINAL of $FABRIC_DEPLOYMENT says $WORD"\nexec sleep 600\n'


@dataclass
class ApiProcess:
    process: subprocess.Popen[bytes]
    log_path: Path
    ready_file: Path

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def url(self) -> str:
        """Waits until it serves."""

        def probe() -> str:
            assert self.process.poll() is None, f"the API has ended:\n{self.log()}"
            return self.ready_file.read_text().strip() if self.ready_file.exists() else ""

        return wait_until(probe, 20, "the API to serve")

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 12.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


def start_api(folder: Path, hosts: str, **changes: Any) -> ApiProcess:
    name = f"api-{uuid.uuid4().hex[:6]}"
    ready = folder / f"{name}.ready"
    values: dict[str, Any] = {"zookeeper": hosts, "port": 0, "settings": QUICK, "session_timeout_s": 2.0, **changes}
    config = ApiConfig(**values, ready_file=ready)
    log_path = folder / f"{name}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
    assert process.stdin is not None
    with process.stdin as stdin:
        pickle.dump(config, stdin)
    return ApiProcess(process, log_path, ready)


@dataclass
class World:
    """`http` speaks to the API."""

    folder: Path
    hosts: str
    farm: AgentFarm
    api: ApiProcess
    http: httpx.Client

    def deploy(self, **body: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/deployments", json={"image": "web", "flavor": "Small", "count": 1, **body})
        assert answer.status_code == 202, answer.text
        found = answer.json()
        assert isinstance(found, dict)
        return found

    def settled(self, deployment: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Waits, by long-polls, until it is at rest."""

        def probe() -> dict[str, Any]:
            found = self.http.get(f"/v1/deployments/{deployment}")
            assert found.status_code == 200, found.text
            if found.json()["final"]:
                return dict(found.json())
            self.http.get(f"/v1/deployments/{deployment}", params={"index": found.headers["X-Index"], "wait": "2s"})
            return {}

        return wait_until(probe, timeout_s, f"{deployment} to be at rest")

    def push(self, name: str, content: bytes, **headers: str) -> httpx.Response:
        return self.http.put(f"/v1/images/{name}", content=content, headers=headers)

    def delete(self, deployment: str) -> dict[str, Any]:
        assert self.http.delete(f"/v1/deployments/{deployment}").status_code == 202
        return self.settled(deployment)


@contextmanager
def world(
    folder: Path,
    zookeeper: str,
    compute: int = 2,
    storage: int = 1,
    racks: int = 2,
    driver: str = "null",
    settings: Settings = QUICK,
    limits: ApiLimits | None = None,
    api_zookeeper: str = "",
) -> Iterator[World]:
    """`compute` and `storage` agents in each of `racks`, all in one process; waits until all are seen. `api_zookeeper`:
    the servers as the API is to reach them, if it is not as the agents do."""
    chroot = f"test-{uuid.uuid4().hex}"
    hosts = f"{zookeeper}/{chroot}"
    with agent_processes(folder) as farm:
        configs = [
            farm.config(hosts, f"r{rack}c{number}", f"r{rack}", driver=driver, settings=settings, log_level="info")
            for rack in range(1, racks + 1)
            for number in range(1, compute + 1)
        ]
        configs += [
            farm.config(hosts, f"r{rack}s{number}", f"r{rack}", layer="storage", settings=settings, log_level="info")
            for rack in range(1, racks + 1)
            for number in range(1, storage + 1)
        ]
        agents = farm.start(*configs)
        api_hosts = f"{api_zookeeper or zookeeper}/{chroot}"
        api = start_api(folder, api_hosts, settings=settings, limits=limits or ApiLimits())
        try:
            with httpx.Client(base_url=api.url, timeout=30, trust_env=False) as http:
                wait_until(lambda: _complete(http, len(configs)), 30, f"all agents to be seen:\n{agents.log()[-3000:]}")
                yield World(folder, hosts, farm, api, http)
        finally:
            api.end(signal.SIGKILL)


def _complete(http: httpx.Client, agents: int) -> bool:
    answer = http.get("/v1/nodes", params={"limit": 1000})
    nodes = answer.json().get("items", []) if answer.status_code == 200 else []
    return len([one for one in nodes if one["heard_ms"] >= 0]) == agents


def archive(*members: tuple[str, bytes, int]) -> bytes:
    """A tar of (path, content, mode)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, content, mode in members:
            about = tarfile.TarInfo(path)
            about.size, about.mode = len(content), mode
            tar.addfile(about, io.BytesIO(content))
    return packed.getvalue()


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem details of an answer, held to their form."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert isinstance(found, dict)
    assert found["type"] == f"urn:fabric:problem:{slug}", found
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    assert found["instance"].startswith("/")
    return found


def in_tree(hosts: str, work: Callable[[TreeClient], Coroutine[Any, Any, None]]) -> None:
    """Do something in ZooKeeper by hand."""

    async def run() -> None:
        tree = SessionTree(hosts)
        await tree.open(10)
        try:
            await work(TreeClient(tree))
        finally:
            await tree.close()

    asyncio.run(run())
