"""Several real ZooKeeper servers on one machine that are one ensemble, or one server alone.

Theory of operation. Each server is a child process (zk/server.py) that knows the ports of all. An ensemble of `size`
serves while more than half of it runs: of three, one may be dead. All are launched before any is waited for, as none
serves before it sees a majority. Who leads is a server's own word; nobody keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from zk.server import HOST, READY_WAIT_S, Installation, Peer, Server, free_ports


class Ensemble:
    """`size` servers in folders 1 … size of `data_dir`; a single one is no member of anything, and has `data_dir` for
    itself. `ports`: as many as `ports_needed` says; picked when not given. `addresses`: of each, when they are not
    all at 127.0.0.1."""

    def __init__(
        self,
        installation: Installation,
        data_dir: Path,
        *,
        size: int = 3,
        tick_ms: int = 500,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> None:
        ports = ports or free_ports(ports_needed(size))
        if len(ports) != ports_needed(size):
            raise ValueError(f"expected {ports_needed(size)} ports for {size} servers, found {len(ports)}")
        addresses = addresses or (HOST,) * size
        if size == 1:
            alone = Server(installation, data_dir, host=addresses[0], port=ports[0], tick_ms=tick_ms, say=say)
            self.servers: tuple[Server, ...] = (alone,)
            return
        each = zip(ports[0::3], ports[1::3], ports[2::3], addresses, strict=True)
        peers = [Peer(number, *ports_and_host) for number, ports_and_host in enumerate(each, start=1)]
        self.servers = tuple(
            Server(installation, data_dir / str(peer.my_id), tick_ms=tick_ms, peers=peers, me=peer, say=say)
            for peer in peers
        )

    @property
    def hosts(self) -> str:
        """The connect string with all of them."""
        return ",".join(server.hosts for server in self.servers)

    def launch(self) -> None:
        """Start those that are not running, without waiting for them to serve."""
        for server in self.servers:
            if server.pid is None:
                server.launch()

    def wait_ready(self, wait_s: float = READY_WAIT_S) -> None:
        """Wait until all serve. Raises ServerFailed."""
        for server in self.servers:
            server.wait_ready(wait_s)

    def start(self, wait_s: float = READY_WAIT_S) -> None:
        """Start those that are not running, and wait until all serve. Raises ServerFailed."""
        self.launch()
        self.wait_ready(wait_s)

    def leader(self) -> Server | None:
        """The server that leads the ensemble now, by its own word; None while there is none."""
        for server in self.servers:
            status = server.status() if server.pid is not None else None
            if status is not None and status.mode == "leader":
                return server
        return None

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def __enter__(self) -> Ensemble:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def ports_needed(size: int) -> int:
    """One for clients; and in an ensemble two more a server, for each other."""
    return 1 if size == 1 else 3 * size
