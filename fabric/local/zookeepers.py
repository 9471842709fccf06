"""The ZooKeeper servers of a local fabric, as the keeper has them: by name, each with what became of its process.

Theory of operation. A single server is called "zookeeper", several "zookeeper-1" … They are children of the keeper,
which reaps all of its children itself and tells here which of them was a server: what the server's own object knows of
its process is not asked, as asking would reap it unseen. Nobody starts a server again but who asks for it (`restart`):
one that is dead stays dead, to be seen. When the user has given an ensemble there are none here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fabric.local import nursery
from fabric.local.network import Address, Network, Reach, zookeeper_names
from fabric.local.state import LocalSpec, Process, ZooKeeper, process
from fabric.net.rules import OPERATOR
from zk import connect
from zk.ensemble import Ensemble, ports_needed
from zk.server import Server, ServerFailed, find_zookeeper, wait_serving
from zk.slow_disk import SlowDiskRefused, slow

READY_WAIT_S = 60.0
TICKS_A_SESSION = 10
"""ZooKeeper ends sessions at ticks: a session of somebody dead lives on for up to one more."""
RESTART_GRACE_S = 1.0
SLOW_WAIT_S = 3.0
_SLOW_NOW = b"slow"
PORTS = (2181, 2888, 3888)
"""For clients, for followers, for elections: of a server that has an address of its own."""
NEVER = Process(0, 0)


@dataclass(slots=True)
class Member:
    """One server. `process`: its last one, begun at `since` (time.monotonic). `ended`: how that ended, empty while it
    runs. `disk_delay_ms`: how much longer each write to its log takes, by the process `slowed_by` (0: none)."""

    name: str
    server: Server
    reach: Reach
    network: Network
    process: Process = NEVER
    since: float = 0.0
    paused: bool = False
    ended: str = ""
    disk_delay_ms: int = 0
    slowed_by: int = 0

    @property
    def running(self) -> bool:
        return not self.ended

    def signal(self, number: int) -> int:
        """Returns the pid. It must be running."""
        os.kill(self.process.pid, number)
        self.paused = number == signal.SIGSTOP or (self.paused and number != signal.SIGCONT)
        return self.process.pid

    def restart(self) -> int:
        """TERM, KILL after a grace time, a new process with the same port and data; start it if it is dead. Does not
        wait until it serves. Returns the old pid."""
        old = self.process.pid
        self.server.stop(grace_s=0.0 if self.paused else RESTART_GRACE_S)
        self.launch()
        return old

    def exited(self, how: str) -> None:
        """The keeper has seen its end, and this reaps it."""
        self.server.kill()
        self.ended, self.paused = how, False
        self._fast_disk()

    def slow_disk(self, delay_ms: int) -> None:
        """From now on, as long as this process lives; 0: as it was. Raises SlowDiskRefused, OSError."""
        self._fast_disk()
        if delay_ms == 0:
            return
        reader, writer = os.pipe()
        try:
            body = partial(_slow_disk, self.process.pid, delay_ms / 1000, writer)
            self.slowed_by = nursery.fork(body, name="slow-disk", log=self.server.log_path, keep=(writer,))
            os.close(writer)
            said = os.read(reader, 1000) if select.select([reader], (), (), SLOW_WAIT_S)[0] else b"no answer in time"
        finally:
            os.close(reader)
        if said != _SLOW_NOW:
            self._fast_disk()
            raise SlowDiskRefused(said.decode())
        self.disk_delay_ms = delay_ms

    def _fast_disk(self) -> None:
        if self.slowed_by:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.slowed_by, signal.SIGKILL)
        self.disk_delay_ms = self.slowed_by = 0

    def launch(self) -> None:
        with self.network.inside(self.name):
            self.server.launch()
        self.process, self.paused, self.ended = process(self.server.pid or 0), False, ""
        self.since = time.monotonic()
        self.network.forked(self.name, self.process.pid)

    def view(self, mode: str, seen_from: float) -> ZooKeeper:
        serves = self.running and not self.paused and seen_from > self.since
        return ZooKeeper(
            _joined(self.reach.outside),
            self.process if self.running else None,
            mode if serves else "",
            self.paused,
            self.ended,
            self.disk_delay_ms,
        )


class Zookeepers:
    """`peers`: the connect string, as nodes and API have it."""

    def __init__(self, spec: LocalSpec, data: Path, network: Network) -> None:
        self.spec, self.data, self.network = spec, data, network
        self.peers = ""
        self._members: dict[str, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    @property
    def own(self) -> bool:
        return not self.spec.zk

    def launch(self) -> str:
        """Begin to start them, unless an ensemble is given; the connect string, as it is outside of the fabric's
        network. Raises ServerFailed, OSError."""
        if self.spec.zk:
            chroot = "" if connect.parse(self.spec.zk).chroot else f"/fabric-local-{secrets.token_hex(4)}"
            self.peers = self.spec.zk.rstrip("/") + chroot
            return self.peers
        installation = find_zookeeper()
        if installation is None:
            raise ServerFailed(
                "expected a ZooKeeper server on this machine (ZOOKEEPER_HOME, or Debian's package `zookeeper`) or a "
                "connect string (--zk HOST:PORT), found neither; `make setup` installs one"
            )
        size = self.spec.zookeepers
        tick_ms = max(100, min(2000, int(1000 * self.spec.session_timeout_s / TICKS_A_SESSION)))
        names, each = zookeeper_names(size), PORTS[: ports_needed(size) // size]
        reached = {name: [self.network.open(name, port) for port in each] for name in names}
        ports = [reach.listen[1] for name in names for reach in reached[name]]
        addresses = [reached[name][0].listen[0] for name in names]
        ensemble = Ensemble(installation, self.data, size=size, tick_ms=tick_ms, ports=ports, addresses=addresses)
        for name, server in zip(names, ensemble.servers, strict=True):
            self._members[name] = Member(name, server, reached[name][0], self.network)
            self._members[name].launch()
        self.peers = ",".join(_joined(member.reach.peers) for member in self)
        return ",".join(_joined(member.reach.outside) for member in self)

    def wait_ready(self) -> None:
        """Until all of ours serve. Raises ServerFailed."""
        with self.network.inside(OPERATOR):
            for member in self:
                member.server.wait_ready(READY_WAIT_S)

    def wait_serving(self) -> bool:
        """In another process than the keeper: whether they come to serve, in time."""
        return all(wait_serving(port, READY_WAIT_S, host=host) for host, port in self.addresses.values())

    def named(self, name: str) -> Member | None:
        return self._members.get(name)

    def of(self, pid: int) -> Member | None:
        """Whose running process this is."""
        return next((member for member in self if member.running and member.process.pid == pid), None)

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        """Where each is asked for what it is."""
        return {member.name: member.reach.outside for member in self}

    @property
    def pids(self) -> set[int]:
        return {member.process.pid for member in self if member.running}

    @property
    def helpers(self) -> set[int]:
        """Processes that do something to a server."""
        return {member.slowed_by for member in self} - {0}

    def views(self, modes: Mapping[str, str], seen_from: float) -> dict[str, ZooKeeper]:
        """`modes`: by name, as a look that began then saw it; who did not serve is not there."""
        return {member.name: member.view(modes.get(member.name, ""), seen_from) for member in self}

    def stop(self) -> None:
        """Their data are thrown away, so they need not write them down first."""
        for member in self:
            member.server.kill()


def _slow_disk(pid: int, delay_s: float, writer: int) -> int:
    """In a child of the keeper."""
    try:
        slow(pid, delay_s, lambda: os.write(writer, _SLOW_NOW))
    except SlowDiskRefused as refused:
        os.write(writer, str(refused).encode())
        return 1
    return 0


def _joined(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
