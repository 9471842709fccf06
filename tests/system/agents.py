"""Real agents as processes of their own, for tests: started, watched by their log, ended by pid."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fabric.commands import Answer, Command, Progress, Reserve, Reserved
from fabric.messages import AnyMessage, NodeAnswer, NodeCall, NodeReport
from fabric.records import Member, decode
from fabric.resources import Resources
from fabric.roles.settings import Settings
from fabric.runtime.bus import Bus, new_context
from fabric.runtime.settings import AgentConfig
from fabric.wire import Codec
from tests.waiting import wait_until
from zk.client import TreeClient
from zk.session_tree import SessionTree
from zk.tree import NoNode

T = TypeVar("T")
QUICK = Settings(
    session_timeout_s=2.0,
    heartbeat_interval_s=0.2,
    silent_after_s=1.0,
    sweep_interval_s=0.5,
    load_hint_interval_s=0.5,
)
ROOM = Resources(16, 32 * 1024, 100 * 1024)
MAIN = """
import pickle, sys
from fabric.runtime.process import run_agents
sys.exit(run_agents(pickle.load(sys.stdin.buffer)))
"""


@dataclass
class AgentProcess:
    configs: Sequence[AgentConfig]
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def terminate(self, timeout_s: float = 10.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def ends(self, code: int, timeout_s: float = 10.0) -> None:
        assert self.wait(timeout_s) == code, self.log()

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self, timeout_s: float = 10.0) -> int:
        return self.process.wait(timeout_s)

    def said(self, text: str, timeout_s: float = 10.0) -> str:
        """Waits for a line of the log that has `text`; returns it."""

        def probe() -> str:
            return next((line for line in self.log().splitlines() if text in line), "")

        return wait_until(probe, timeout_s, f"{text!r} in the log:\n{self.log()}")


@contextmanager
def agent_processes(folder: Path, lifeline: bool = True) -> Iterator[AgentFarm]:
    farm = AgentFarm(folder, lifeline)
    try:
        yield farm
    finally:
        farm.close()


class AgentFarm:
    """Agents below one folder. All hang on one lifeline, so that nothing outlives the test, instances included."""

    def __init__(self, folder: Path, lifeline: bool) -> None:
        self.folder = folder
        self.started: list[AgentProcess] = []
        self._read_end, self._write_end = os.pipe() if lifeline else (-1, -1)
        os.set_inheritable(self._read_end, True)

    def config(self, hosts: str, node: str, rack: str = "r1", **changes: object) -> AgentConfig:
        values: dict[str, object] = {
            "node": node,
            "rack": rack,
            "layer": "compute",
            "zookeeper": hosts,
            "state_dir": self.folder / node,
            "total": ROOM,
            "settings": QUICK,
            "lifeline_fd": self._read_end,
            "log_level": "debug",
            **changes,
        }
        return AgentConfig(**values)  # type: ignore[arg-type]

    def start(self, *configs: AgentConfig) -> AgentProcess:
        log_path = self.folder / f"{configs[0].node}.{len(self.started)}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", MAIN],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self._read_end,),
            )
        assert process.stdin is not None
        with process.stdin as stdin:
            pickle.dump(list(configs), stdin)
        self.started.append(AgentProcess(configs, process, log_path))
        return self.started[-1]

    def cut_lifeline(self) -> None:
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1

    def close(self) -> None:
        for agent in self.started:
            if agent.process.poll() is None:
                agent.process.kill()
                agent.process.wait(10)
        self.cut_lifeline()
        os.close(self._read_end)


# --- what they did in ZooKeeper, and talking to them ----------------------------------------------------------------


async def read_members(hosts: str, layer: str = "compute", rack: str = "r1") -> dict[str, Member]:
    """Node -> its record; empty before the first one came."""
    tree = SessionTree(hosts)
    await tree.open(10)
    try:
        client = TreeClient(tree)
        found = {}
        with suppress(NoNode):
            for node in await client.children(f"/members/{layer}/{rack}"):
                with suppress(NoNode):
                    data = (await client.get(f"/members/{layer}/{rack}/{node}")).data
                    found[node] = decode(data, Member, node)
        return found
    finally:
        await tree.close()


def members(hosts: str, layer: str = "compute", rack: str = "r1") -> dict[str, Member]:
    return asyncio.run(read_members(hosts, layer, rack))


def registered(hosts: str, *nodes: str, layer: str = "compute", timeout_s: float = 15) -> dict[str, Member]:
    """Waits until exactly these nodes of rack r1 are registered; their records."""

    def probe() -> dict[str, Member] | None:
        found = members(hosts, layer)
        return found if set(found) == set(nodes) else None

    found = wait_until(probe, timeout_s, f"members {nodes} of layer {layer}", every_s=0.1)
    assert found is not None
    return found


class Talker:
    """A peer of the agents, in the test's own process: asks, and hears how it goes."""

    def __init__(self, key: bytes | None = None) -> None:
        self.told: list[Progress] = []
        """How it goes, by answers and by reports."""
        self._answers: dict[str, asyncio.Future[NodeAnswer]] = {}
        self._context = new_context()
        self.bus = Bus(self._context, Codec(key), "feedfeed", on_message=self._take)
        self._serial = 0

    def _take(self, sender: str, message: AnyMessage) -> None:
        if isinstance(message, NodeAnswer):
            if isinstance(message.answer, Progress):
                self.told.append(message.answer)
            self._answers.pop(message.call).set_result(message)
        elif isinstance(message, NodeReport):
            self.told.append(message.progress)

    async def ask(self, address: str, command: Command, timeout_s: float = 10) -> Answer:
        self._serial += 1
        call = f"test-{self._serial}"
        self._answers[call] = asyncio.get_running_loop().create_future()
        self.bus.send(address, NodeCall(call, command))
        return (await asyncio.wait_for(self._answers[call], timeout_s)).answer

    async def close(self) -> None:
        self.bus.close()
        await asyncio.to_thread(self._context.term)


CLAIM = 1 << 40
"""The epoch of a claim later than every registration."""


async def reserve(talker: Talker, address: str, wanted: Reserve) -> None:
    """Waits until all is granted: an agent's znode is there a moment before the agent knows that it is registered."""
    deadline = asyncio.get_running_loop().time() + 5
    while True:
        answer = await talker.ask(address, wanted)
        if isinstance(answer, Reserved) and answer.granted == wanted.ordinals:
            return
        assert asyncio.get_running_loop().time() < deadline, answer
        await asyncio.sleep(0.02)


def talk(body: Callable[[Talker], Awaitable[T]], key: bytes | None = None) -> T:
    async def main() -> T:
        talker = Talker(key)
        try:
            return await body(talker)
        finally:
            await talker.close()

    return asyncio.run(main())
