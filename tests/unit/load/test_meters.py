"""Processes by role, CPU and memory of a process that this test knows, and the words of others that are read."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from fabric.load import meters
from fabric.local.folder import NODES
from fabric.local.spec import make_spec
from fabric.local.state import LocalState, Node, NodeView, Process, Service, ZooKeeper


def view(name: str, layer: str, pid: int) -> NodeView:
    return NodeView(Node(name, "r1", layer), "registered", Process(pid, 1))  # type: ignore[arg-type]


STATE = LocalState(
    phase="up", folder="/nowhere", spec=make_spec(), keeper=Process(1 << 29, 1),
    zookeeper=Service("127.0.0.1:1/x", None, True), api=Service("http://127.0.0.1:2", Process(20, 1), True),
    nodes=(
        view("r1c01", "compute", 11), view("r1c02", "compute", 12), view("r1c03", "compute", 12),
        view("r1c04", "compute", 13), view("r1s01", "storage", 14),
    ),
    leaders={"compute": {"r1": "r1c03"}, "storage": {"r1": "r1s01"}}, marks_ms={},
    zookeepers={"zookeeper": ZooKeeper("127.0.0.1:1", Process(30, 1), "standalone", False, "")},
)  # fmt: skip


def test_a_process_belongs_to_its_heaviest_role() -> None:
    """r1c02 shares its process with the leader."""
    assert meters.roles(STATE, 99) == {
        "compute agents": (11, 13),
        "compute rack leaders": (12,),
        "storage leaders": (14,),
        "API": (20,),
        "ZooKeeper": (30,),
        meters.OURS: (1 << 29,),
        meters.GENERATOR: (99,),
    }
    assert meters.roles(None, 99) == {meters.GENERATOR: (99,)}
    assert meters.servers_of(STATE) == (("127.0.0.1", 1),)


def test_servers_are_those_of_the_connect_string_when_the_fabric_has_none_of_its_own() -> None:
    """A port that is not said is ZooKeeper's, and IPv6 stands in brackets."""
    given = msgspec.structs.replace(STATE, zookeepers={}, zookeeper=Service("one,[::1]:2182/site", None, True))
    assert meters.servers_of(given) == (("one", 2181), ("::1", 2182))


def test_who_starts_instances_is_not_the_keeper(tmp_path: Path) -> None:
    """The keeper adopts the process that each agent has for it, in its node's folder."""
    folder = tmp_path / NODES / "r1c01"
    folder.mkdir(parents=True)
    state = msgspec.structs.replace(STATE, folder=str(tmp_path), keeper=Process(os.getpid(), 1))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=folder) as starter:
        found = meters.roles(state, 99)
        assert found[meters.STARTERS] == (starter.pid,)
        assert starter.pid not in found[meters.OURS]


def test_cpu_of_this_process_is_what_the_process_itself_says() -> None:
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert meters.cpu_s([os.getpid()]) == pytest.approx(time.process_time(), abs=0.05)
    assert meters.cpu_s([1 << 29]) == 0


def test_memory_of_this_process_grows_by_what_it_takes() -> None:
    before = meters.memory([os.getpid()])
    with mmap.mmap(-1, 32 << 20) as taken:  # the heap may have as much at hand
        for _ in range(32):
            taken.write(os.urandom(1 << 20))
        after = meters.memory([os.getpid()])
    for name in ("pss", "rss", "private"):
        assert getattr(after, name) - getattr(before, name) == pytest.approx(32, abs=3)
    assert meters.memory([1 << 29]) == meters.Memory(0, 0, 0)


def test_the_machine_is_busy_at_most_all_the_time() -> None:
    before = meters.machine_now()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert 0 < meters.machine_now().share_since(before) < 1.001


def test_counters_of_the_api_are_added_up() -> None:
    text = (
        "# TYPE fabric_api_bus_sent_total counter\n"
        'fabric_api_bus_sent_total{message="Submit"} 5.0\nfabric_api_bus_sent_total{message="Ask"} 2.0\n'
        'fabric_api_zookeeper_operations_total{kind="get"} 1e+03\nfabric_api_bus_stale_total 4.0\n'
    )
    assert meters.api_counters(text) == meters.ApiCounters(7.0, {"get": 1000.0})
    assert meters.api_counters("") is None
