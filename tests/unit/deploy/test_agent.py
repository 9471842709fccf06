"""An agent as a managent: who it is by its path, and cordons that are its own or an operator's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import agent
from deploy.identity import BadIdentity
from fabric.runtime.settings import AgentConfig
from zk.connect import Unreachable
from zk.tree import BadVersion, Got, NodeExists, NoNode, Stat

CORDON = "/fabric/cordons/r1c01"
ENVIRONMENT = {
    "MANAGENT_ID": "/site/r1/r1c01",
    "FABRIC_ZK": "127.0.0.1:2181",
    "FABRIC_LAYER": "compute",
    "FABRIC_LISTEN": "127.0.0.1:0",
    "FABRIC_DATA_LISTEN": "127.0.0.1:0",
    "FABRIC_CAPACITY_VCPUS": "4",
    "FABRIC_CAPACITY_MEMORY_MIB": "4096",
    "FABRIC_CAPACITY_DISK_MIB": "4096",
}


class Znodes:
    """Stands for a session and its client. `after_get`: what somebody else does then."""

    def __init__(self) -> None:
        self.there: dict[str, tuple[bytes, int]] = {}
        self.after_get: Callable[[], None] = lambda: None
        self.away = False

    async def open(self, wait_s: float) -> None:
        if self.away:
            raise Unreachable("127.0.0.1:2181", 1.0)

    async def close(self) -> None: ...

    async def create(self, path: str, data: bytes) -> None:
        if path in self.there:
            raise NodeExists(path)
        self.there[path] = data, 0

    async def get(self, path: str) -> Got:
        if path not in self.there:
            raise NoNode(path)
        data, version = self.there[path]
        self.after_get()
        return Got(data, Stat(0, 0, version, 0, 0, 0, 0))

    async def delete(self, path: str, version: int = -1) -> None:
        if version not in (-1, self.there[path][1]):
            raise BadVersion(path)
        del self.there[path]


@pytest.fixture
def znodes(monkeypatch: pytest.MonkeyPatch) -> Znodes:
    there = Znodes()
    monkeypatch.setattr(agent, "SessionTree", lambda hosts, session_timeout_s: there)
    monkeypatch.setattr(agent, "TreeClient", lambda tree: tree)
    monkeypatch.setattr(agent.paths, "cordon", lambda node: f"/fabric/cordons/{node}")
    return there


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return agent.configured({**ENVIRONMENT, "AGENT_STATE_ROOT": str(tmp_path)})


def test_who_it_is_follows_from_its_path(config: AgentConfig, tmp_path: Path) -> None:
    assert (config.node, config.rack, config.state_dir) == ("r1c01", "r1", tmp_path / "r1c01")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "expected a path like /site/rack3/node7, found ''"),
        ("/site/..", "expected parts of 1 to 64"),
        ("/r1c01", "expected a node below a rack, such as /site/r1/r1c01"),
    ],
)
def test_a_path_that_is_no_nodes_is_told(path: str, said: str) -> None:
    with pytest.raises(BadIdentity, match=said):
        agent.configured({**ENVIRONMENT, "MANAGENT_ID": path})


def test_deactivated_it_is_cordoned_and_activated_no_more(znodes: Znodes, config: AgentConfig) -> None:
    agent.activate(config)
    assert znodes.there == {}, "nothing was deactivated, nothing is asked"
    for _ in range(2):  # told twice, as BMP may
        agent.deactivate(config)
        assert znodes.there[CORDON][0] == agent.OURS
    for _ in range(2):
        agent.activate(config)
        assert znodes.there == {}
    assert not (config.state_dir / agent.MARK).exists()


def test_an_operators_cordon_stays(znodes: Znodes, config: AgentConfig) -> None:
    znodes.there[CORDON] = b"", 0
    agent.deactivate(config)
    agent.activate(config)
    assert znodes.there == {CORDON: (b"", 0)}


def test_an_operators_cordon_that_takes_the_place_of_ours_meanwhile_stays(znodes: Znodes, config: AgentConfig) -> None:
    agent.deactivate(config)
    znodes.after_get = lambda: znodes.there.update({CORDON: (b"", 1)})
    agent.activate(config)
    assert znodes.there == {CORDON: (b"", 1)}
    assert not (config.state_dir / agent.MARK).exists()


def test_without_zookeeper_it_is_not_said_to_rest(znodes: Znodes, config: AgentConfig) -> None:
    znodes.away = True
    with pytest.raises(Unreachable, match=r"127.0.0.1:2181"):
        agent.deactivate(config)
