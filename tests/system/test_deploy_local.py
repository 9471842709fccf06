"""A local fabric whose agents were deployed as managents: rolling out a change, what may die without anybody noticing,
and who starts what again."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.cli.main import main
from fabric.local.harness import LocalFabric
from fabric.local.state import Process, process
from tests.system.test_local_fabric import deploy, processes_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

KEEPER = "deploy.local.keeper"
RACKS, COMPUTE, STORAGE = 2, 2, 1
AGENTS = [f"r{rack}{node}" for rack in (1, 2) for node in ("c01", "c02", "s01")]
PATHS = [f"/site/{name[:2]}/{name}" for name in AGENTS]
COUNT = 4
WAIT_S = 30.0


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFabric]:
    options: dict[str, Any] = {"racks": RACKS, "compute": COMPUTE, "storage": STORAGE, "session_timeout_s": 2.0}
    with LocalFabric(keeper_module=KEEPER, parent=tmp_path_factory.mktemp("local"), **options) as made:
        yield made


@pytest.fixture(scope="module")
def api(fabric: LocalFabric) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fabric.api_url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def instances(api: httpx.Client) -> set[Process]:
    """Of a deployment that runs from the first test that wants it to the last."""
    return processes_of(deploy(api, COUNT))


def managent(fabric: LocalFabric, *words: str, code: int = 0) -> Any:
    """What `fabric managent …` says of this fabric."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = main(["managent", *words, "--dir", str(fabric.folder.path), "--format", "json"])
    assert found == code, said.getvalue()
    return json.loads(said.getvalue())


def agents(fabric: LocalFabric) -> dict[str, Process]:
    """Each one registered."""
    state = fabric.status()
    assert state.registered == len(AGENTS)
    return {view.node.name: view.process for view in state.nodes if view.process}


def settled(api: httpx.Client, instances: set[Process]) -> None:
    """The deployment is as it was: nothing was started, nothing ended."""
    (deployment,) = api.get("/v1/deployments").json()["items"]
    assert deployment["state"] == "running", deployment
    items = api.get("/v1/instances", params={"deployment": deployment["id"]}).json()["items"]
    assert {process(int(one["pid"])) for one in items} == instances
    assert all(one.alive for one in instances)


def cordoned(api: httpx.Client) -> list[str]:
    return [node["node"] for node in api.get("/v1/nodes").json()["items"] if node["cordoned"]]


def test_every_node_is_a_managent(fabric: LocalFabric, api: httpx.Client) -> None:
    nodes = api.get("/v1/nodes").json()["items"]
    assert {node["node"]: node["managent"] for node in nodes} == dict(zip(AGENTS, PATHS, strict=True))
    status = managent(fabric, "status")
    assert status["sets"]["active"] == ["/site", "/site/r1", *PATHS[:3], "/site/r2", *PATHS[3:]]
    assert [one["stub"] for one in status["entries"] if one["path"] in PATHS] == AGENTS


def test_a_change_is_rolled_out_rack_by_rack_and_no_instance_notices(
    fabric: LocalFabric, api: httpx.Client, instances: set[Process]
) -> None:
    before = agents(fabric)
    document = fabric.folder.path / "deploy" / "repository" / "agent.xml"
    document.write_text(
        document.read_text().replace('name="FABRIC_LOG_LEVEL" value="info"', 'name="FABRIC_LOG_LEVEL" value="debug"')
    )
    planned = managent(fabric, "plan", "--exit-code", code=2)
    assert planned["counts"] == {"reconfigure": len(AGENTS)}
    applied = managent(fabric, "apply", "--yes", "--wave", str(COMPUTE + STORAGE))
    assert (applied["wave"], applied["of"]) == (RACKS, RACKS)
    assert applied["sets"]["counts"]["active"] == len(AGENTS) + RACKS + 1
    fabric.wait(lambda: fabric.status().registered == len(AGENTS), "the new agents to be registered")
    after = agents(fabric)
    assert not set(before.values()) & set(after.values())
    wait_until(lambda: api.get("/v1/deployments").json()["items"][0]["state"] == "running", WAIT_S, "it to be settled")
    settled(api, instances)
    again = managent(fabric, "apply", "--yes")
    assert (again["plan"]["changes"], again["sets"]) == ([], None)
    assert agents(fabric) == after


def test_boot_stubs_that_were_killed_come_back_and_adopt_what_runs(
    fabric: LocalFabric, api: httpx.Client, instances: set[Process]
) -> None:
    before = agents(fabric)
    killed = {name: fabric.kill(name) for name in ("bootstubs1", "bootstubs2")}
    fabric.wait(lambda: all(fabric.pid(name) not in (0, pid) for name, pid in killed.items()), "new boot stubs")
    assert len(managent(fabric, "status")["sets"]["active"]) == len(AGENTS) + RACKS + 1
    assert agents(fabric) == before
    settled(api, instances)


def test_a_managent_that_is_deactivated_gets_nothing_new(
    fabric: LocalFabric, api: httpx.Client, instances: set[Process]
) -> None:
    """Told by boot stubs that did not start it."""
    assert managent(fabric, "deactivate", "/site/r1/r1c01")["sets"]["passive"] == ["/site/r1/r1c01"]
    wait_until(lambda: cordoned(api) == ["r1c01"], WAIT_S, "the API to see it")
    settled(api, instances)
    assert managent(fabric, "activate", "/site/r1/r1c01")["sets"]["active"] == ["/site/r1/r1c01"]
    wait_until(lambda: cordoned(api) == [], WAIT_S, "the API to see it")


def test_a_repository_that_was_killed_comes_back_where_it_was(fabric: LocalFabric) -> None:
    url, killed = fabric.folder.repository_url.read_text(), fabric.kill("repository")
    fabric.wait(lambda: fabric.pid("repository") not in (0, killed), "a new repository")
    fabric.wait(lambda: fabric.logs("repository").count(" serving ") == 2, "it to serve")
    assert managent(fabric, "plan", "--exit-code")["repository"] == url


def test_an_agent_that_was_killed_stays_dead_and_is_reported(fabric: LocalFabric) -> None:
    fabric.kill("r2c02", signal.SIGKILL)
    status = wait_until(lambda: fallen(fabric), WAIT_S, "its initiator to hear of it")
    assert status["failed"][0]["path"] == "/site/r2/r2c02"
    assert "its program ended" in status["failed"][0]["reason"]
    assert fabric.node("r2c02").state == "dead"


def fallen(fabric: LocalFabric) -> Any:
    sets = managent(fabric, "status", code=2)["sets"]
    return sets if sets["failed"] else None


def test_with_restart_a_killed_agent_is_started_again_by_its_boot_stub(tmp_path: Path) -> None:
    with LocalFabric(
        keeper_module=KEEPER, parent=tmp_path, racks=1, compute=1, storage=0, session_timeout_s=2.0, restart=True
    ) as fabric:
        killed = fabric.kill("r1c01")
        fabric.wait(lambda: fabric.node("r1c01").state == "registered" and fabric.pid("r1c01") != killed, "a new agent")
        status = managent(fabric, "status")
        assert status["sets"]["active"] == ["/site", "/site/r1", "/site/r1/r1c01"]
