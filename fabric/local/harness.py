"""`LocalFabric`: a local fabric for tests and benchmarks, up in a temporary folder as long as its `with` block lasts.

    with LocalFabric(racks=2, compute=3, storage=1) as fabric:
        httpx.get(fabric.api_url + "/v1/nodes")
        fabric.kill("r1c02")                   # -9; its instances run on
        fabric.restart("r1c02")                # a new process, registered when this returns
        fabric.kill(fabric.zookeeper_leader()) # with `zookeepers=3`
        with fabric.paused("r2c01"): ...       # SIGSTOP … SIGCONT
        with fabric.cut(["r1"]): ...           # with `network="namespaces"` or "proxy": rack r1 is alone

Nothing of it outlives the block, nor the process that runs it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fabric.drivers.procfs import all_pids
from fabric.local.folder import passing_path
from fabric.local.front import Front
from fabric.local.spec import make_spec
from fabric.local.state import LocalState, NodeView, Process, process
from fabric.local.takedown import strays
from fabric.net.rules import REST, Rule, cut

WAIT_S = 30.0
ROOM_BYTES = 2 << 30
"""A test's or benchmark's fabric takes less in its folder."""
_numbers = itertools.count(1)
POLL_S = 0.02


class LocalFabric:
    """`options`: as `fabric.local.spec.make_spec` has them; `parent`: of its folder; `keeper_module`: see Front."""

    def __init__(
        self, *, keeper_module: str = "fabric.local.keeper", parent: Path | None = None, **options: Any
    ) -> None:
        name = f"with-{os.getpid()}-{next(_numbers)}"
        folder = parent / name if parent else passing_path(name, ROOM_BYTES)
        self.front = Front(make_spec(folder=folder, **options), keeper_module)
        self.folder = self.front.folder
        self._up: LocalState | None = None

    def __enter__(self) -> Self:
        """Raises UpFailed, FolderError."""
        try:
            self.front.start()
            self._up = self.front.wait_up(lambda report: None)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.front.stop()

    # --- what it is ----------------------------------------------------------------------------------------------

    def status(self) -> LocalState:
        return self.front.control.status()

    @property
    def up(self) -> LocalState:
        """As it was when it had just come up."""
        assert self._up, "inside the `with` block"
        return self._up

    @property
    def api_url(self) -> str:
        return self.up.api.where

    @property
    def zk_hosts(self) -> str:
        """The connect string, chroot included."""
        return self.up.zookeeper.where

    def node(self, name: str) -> NodeView:
        return next(view for view in self.status().nodes if view.node.name == name)

    def pid(self, who: str) -> int:
        """Of a node's agent, "api", a ZooKeeper server, a companion, or "keeper". 0 when it is dead."""
        state = self.status()
        known = {"api": state.api.process, "keeper": state.keeper}
        known |= {name: one.process for name, one in state.companions.items()}
        known |= {name: one.process for name, one in state.zookeepers.items()}
        found = known[who] if who in known else self.node(who).process
        return found.pid if found and found.alive else 0

    def logs(self, name: str) -> str:
        """What the agent of a node (of its process's first node), "api", "eyes" or "keeper" wrote."""
        return self.folder.log(name).read_text("utf-8", "replace")

    def processes(self) -> set[Process]:
        """Every process of the fabric now: agents, services, supervisors, instances."""
        return everyone(self.status(), strays(self.folder, None))

    # --- what can be done to it ----------------------------------------------------------------------------------

    def kill(self, who: str, number: int = signal.SIGKILL) -> int:
        """Send the signal to the process of `who`: a node, "api", a ZooKeeper server ("zookeeper", or "zookeeper-1" …
        where there are several), or a companion. After SIGKILL it is dead, and the keeper has noted it. Returns the
        pid."""
        pid = self.front.control.kill(who, number)
        if number == signal.SIGKILL:
            self.wait(lambda: self.pid(who) != pid and (self.ended(who) or self.pid(who) > 0), f"{who} to die")
        return pid

    def ended(self, who: str) -> bool:
        """Whether the keeper has noted the end of a node's process, of "api", a ZooKeeper server, or a companion's."""
        state = self.status()
        if found := state.companions.get(who) or state.zookeepers.get(who):
            return bool(found.ended)
        return bool(state.api.ended) if who == "api" else self.node(who).state == "dead"

    def restart(self, who: str) -> int:
        """End it in order if it runs, and start it again. Returns the new pid: of a node when it is registered, of a
        ZooKeeper server when it serves, for which it needs a majority of them (see `start_zookeepers`)."""
        old = self.front.control.restart(who)

        def back() -> bool:
            pid = self.pid(who)
            return pid not in (0, old) and self._ready(who)

        self.wait(back, f"{who} to be back")
        return self.pid(who)

    def start_zookeepers(self) -> None:
        """Start all ZooKeeper servers that are dead, and wait until all serve."""
        servers = self.status().zookeepers
        for name, one in servers.items():
            if one.ended:
                self.front.control.restart(name)
        self.wait(lambda: all(self._ready(name) for name in servers), "all ZooKeeper servers to serve")

    def zookeeper_leader(self) -> str:
        """The name of the server that leads the ensemble. Waits until one does."""
        leads: list[str] = []

        def probe() -> bool:
            leads[:] = [name for name, one in self.status().zookeepers.items() if one.mode == "leader"]
            return bool(leads)

        self.wait(probe, "a leader of ZooKeeper's ensemble")
        return leads[0]

    def _ready(self, who: str) -> bool:
        state = self.status()
        if who in state.zookeepers:
            return bool(state.zookeepers[who].mode) and state.zookeeper.ready
        return state.api.ready if who == "api" else self.node(who).state == "registered"

    @contextlib.contextmanager
    def slow_disk(self, who: str, delay_ms: int) -> Iterator[None]:
        """In the block each write of a ZooKeeper server to its log takes so much longer. Raises ControlError where that
        can't be done."""
        self.front.control.slow_disk(who, delay_ms)
        try:
            yield
        finally:
            self.front.control.slow_disk(who, 0)

    def network(self, *rules: Rule) -> None:
        """From now on these rules hold, and no others (fabric.net.rules); none: all is well."""
        self.front.control.network(rules)

    @contextlib.contextmanager
    def cut(self, some: Iterable[str], others: Iterable[str] = (REST,)) -> Iterator[None]:
        """In the block neither hears the other, besides what is wrong already; then it is as before."""
        before = self.status().rules
        self.network(*before, *cut(some, others))
        try:
            yield
        finally:
            self.network(*before)

    @contextlib.contextmanager
    def paused(self, who: str) -> Iterator[int]:
        """SIGSTOP, and in the end SIGCONT."""
        pid = self.front.control.kill(who, signal.SIGSTOP)
        try:
            yield pid
        finally:
            self.front.control.kill(who, signal.SIGCONT)

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:g} s in vain for {what}")
            time.sleep(POLL_S)


def everyone(state: LocalState, ours: Callable[[int], bool]) -> set[Process]:
    """The processes in `state`, and all that are `ours`."""
    return {each for each in (*state.processes(), *(process(pid) for pid in all_pids() if ours(pid))) if each.alive}
