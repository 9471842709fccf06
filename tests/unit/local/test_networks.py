"""A local fabric on a network with faults, as the keeper has it: its helpers, its rules, and what is refused."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fabric.local.control import ControlError
from fabric.local.harness import LocalFabric
from fabric.local.network import NetworkError, network_of
from fabric.local.spec import NETWORK_NODES, BadSpec, make_spec
from fabric.net.namespaces import why_not
from fabric.net.rules import Rule, Verdict, cut
from tests.unit.local.test_keeper import KEEPER, assert_nothing_left


@pytest.fixture(params=["namespaces", "proxy"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "namespaces" and (reason := why_not()):
        pytest.skip(reason)
    return str(request.param)


@pytest.mark.system
def test_up_cut_killed_healed_down(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"racks": 2, "compute": 1, "storage": 0, "session_timeout_s": 2.0}
    with LocalFabric(keeper_module=KEEPER, parent=tmp_path, network=kind, **options) as fabric:
        assert urllib.request.urlopen(fabric.api_url + "/readyz").status == 200
        assert fabric.status().endpoints == ("operator", "api", "zookeeper", "r1c01", "r2c01")
        with fabric.cut(["r1c01"], ["zookeeper"]):
            assert fabric.status().rules == cut(["r1c01"], ["zookeeper"])
            fabric.wait(lambda: fabric.node("r1c01").state == "starting", "its session to be over")
            for helper in fabric.status().companions:
                fabric.kill(helper)
                fabric.wait(lambda: all(one.ready for one in fabric.status().companions.values()), "it to come back")
            fabric.restart("r2c01")
            fabric.front.control.restart("r1c01")
            with pytest.raises(TimeoutError):  # as a new process of the network knows what is wrong
                fabric.wait(lambda: fabric.node("r1c01").state == "registered", "it to be back", 0.5)
        assert fabric.status().rules == ()
        fabric.wait(lambda: fabric.node("r1c01").state == "registered", "it to be back")
        with pytest.raises(ControlError, match="expected an endpoint or a group of this fabric"):
            fabric.network(*cut(["r7"], ["r1"]))
        processes, folder = fabric.processes(), fabric.folder.path
    assert_nothing_left(processes, folder)


def test_a_fabric_without_such_a_network_has_no_rules() -> None:
    network = network_of(make_spec(racks=1))
    network.replace(())
    with pytest.raises(NetworkError, match="expected `--network namespaces` or `--network proxy`"):
        network.replace((Rule(("r1",), ("api",), Verdict(drop=1)),))


def test_servers_of_zookeeper_reach_each_other_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.net.orders.TAKEN_WAIT_S", 0.0)
    network = network_of(make_spec(racks=1, zookeepers=3, network="proxy"))
    with pytest.raises(NetworkError, match="expected no rule between two ZooKeeper servers"):
        network.replace(cut(["zookeeper-1"], ["rest"]))
    with pytest.raises(NetworkError, match="the network's process did not answer"):  # but it is no wrong rule
        network.replace(cut(["zookeeper"], ["nodes"]))
    network.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"zk": "192.0.2.1:2181"}, "a ZooKeeper of its own, found --zk"),
        ({"agents_per_process": 2}, "a process for each agent, found 2 in one"),
        ({"racks": 20, "compute": 20}, f"at most {NETWORK_NODES} agents, found 440"),
    ],
)
def test_what_such_a_network_can_not_have(options: dict[str, Any], why: str) -> None:
    with pytest.raises(BadSpec, match=f"--network proxy: expected {why}"):
        make_spec(network="proxy", **options)
