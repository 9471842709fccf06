"""A small world for tests of roles: agents, a tree and a network in one thread, under virtual time.

Nothing here decides anything: it performs effects and turns them into inputs, a little later. Messages pass through the
real codec. There are no faults but those that a test makes (`crash`, `cut`, `expire`).
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from fabric import effects as fx
from fabric.messages import AnyMessage, NodeAnswer, Submit
from fabric.records import Deployment, Spec, decode, encode
from fabric.resources import Resources
from fabric.roles.agent import Agent
from fabric.roles.settings import Identity, Settings
from fabric.wire import Codec
from zk import paths
from zk import tree as zt
from zk.client import with_parents
from zk.znodes import Change, Znodes

LARGE = Resources(4, 8192, 40960)
NODE = Resources(64, 262144, 4194304)
DIGEST = "b3:" + "ab" * 32
HOP_S = 0.001
FETCH_S = 0.05


class Tree:
    """The znodes of the tree in memory, with sessions that are just numbers."""

    def __init__(self) -> None:
        self.znodes = Znodes(lambda: 0, with_parents(paths.ROOTS))
        self.nodes = self.znodes.nodes
        self.data_watches: dict[str, set[int]] = {}
        self.child_watches: dict[str, set[int]] = {}
        self.fired: list[tuple[int, str]] = []
        self.writes = 0
        self.reads = 0

    def children(self, path: str) -> list[str]:
        return sorted(self.nodes[path].children) if path in self.nodes else []

    def apply(self, session: int, op: zt.Op) -> zt.Outcome:
        if not isinstance(op, zt.Get | zt.Exists | zt.Children):
            self.writes += 1
            outcome, changes = self.znodes.write(op, session)
            self._fire(changes)
            return outcome
        self.reads += not isinstance(op, zt.Exists)
        node = self.nodes.get(op.path)
        if node is None and not isinstance(op, zt.Exists):
            return zt.NoNode(op.path)
        if op.watch:
            watches = self.child_watches if isinstance(op, zt.Children) else self.data_watches
            watches.setdefault(op.path, set()).add(session)
        if isinstance(op, zt.Exists):
            return zt.Existed(node and node.stat())
        assert node is not None
        return zt.Got(node.data, node.stat()) if isinstance(op, zt.Get) else zt.Listed(tuple(self.children(op.path)))

    def expire(self, session: int) -> None:
        self._fire(self.znodes.end_session(session))

    def _fire(self, changes: list[Change]) -> None:
        for kind, path in changes:
            parent = path.rpartition("/")[0]
            self.fired.extend((session, path) for session in sorted(self.data_watches.pop(path, ())))
            if kind != "set":
                self.fired.extend((session, parent) for session in sorted(self.child_watches.pop(parent, ())))


@dataclass
class Host:
    identity: Identity
    agent: Agent
    session: int
    journal: dict[str, bytes] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=lambda: {DIGEST})
    damaged: set[str] = field(default_factory=set)
    """Images in its store (storage layer): whole, and with chunks lost."""
    free_bytes: int = 1 << 40
    alive: bool = True
    guids: tuple[str, ...] = ()
    wake_at: float | None = None
    starts: int = 0
    quit: str | None = None


class World:
    def __init__(self, racks: int = 3, compute: int = 4, storage: int = 1, total: Resources = NODE) -> None:
        self.now = 0.0
        self.tree = Tree()
        self.codec = Codec(b"k" * 32)
        self.settings = Settings(session_timeout_s=4.0)
        self.hosts: dict[str, Host] = {}
        self.by_address: dict[str, str] = {}
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.sessions = itertools.count(1)
        self.away: dict[int, list[fx.CallTree]] = {}
        """Sessions that are SUSPENDED -> the operations that wait for them."""
        self.dropped: list[tuple[str, str]] = []
        self.noted: list[str] = []
        self.fetched: list[tuple[str, str]] = []
        """(node, digest) of copies that storage agents began."""
        self.refuses: dict[str, str] = {}
        """Node -> why each copy to it fails."""
        self.cut: set[str] = set()
        self.slow: dict[str, float] = {}
        """Node -> by how much its answers to its leader are late, seconds."""
        self.delivered = 0
        self.peak: dict[str, int] = {}
        self.fetch_s: dict[str, float] = {}
        """Node -> how long a fetch takes there, seconds; FETCH_S elsewhere."""
        self.start_hook: Callable[[Host, fx.StartInstance], fx.Input | None] = lambda host, effect: None
        self.total = total
        for rack in range(1, racks + 1):
            for index in range(1, compute + 1):
                self.boot(f"r{rack}c{index:02d}", f"r{rack}", "compute")
            for index in range(1, storage + 1):
                self.boot(f"r{rack}s{index:02d}", f"r{rack}", "storage")

    # --- life and death -------------------------------------------------------------------------------------------

    def boot(self, node: str, rack: str, layer) -> Host:
        old = self.hosts.get(node)
        starts = old.starts + 1 if old else 0
        guid = f"{abs(hash_of(node)):08x}{starts:04x}"
        address = f"tcp://{node}/{guid}"
        identity = Identity(
            node, rack, layer, guid, address, self.total, "test", "localhost", 1,
            f"tcp://{node}-data" if layer == "storage" else "", old.guids if old else (),
        )
        journal = old.journal if old else {}
        agent = Agent(identity, self.settings, random.Random(hash_of(node)), dict(journal))
        host = Host(identity, agent, next(self.sessions), journal)
        if old is not None:
            host.running, host.cached = old.running, old.cached
            host.held, host.damaged, host.free_bytes = old.held, old.damaged, old.free_bytes
        host.guids = (*(old.guids if old else ()), guid)
        host.starts = starts
        self.hosts[node] = host
        self.by_address[address] = node
        self.perform(host, agent.start(self.now))
        self.give(host, zt.SessionChanged(zt.SessionState.CONNECTED, host.session, self.settings.session_timeout_s))
        if layer == "storage":
            self.tell_store(host)
        else:
            for instance in sorted(host.running):
                self.give(host, fx.InstanceStarted(instance, host.running[instance], 1, 1, "/", adopted=True))
            self.give(host, fx.Adopted(tuple(sorted(host.running)), ()))
        return host

    def crash(self, node: str, expire_after_s: float = 4.0) -> None:
        """kill -9: instances run on, the session lives until it times out."""
        host = self.hosts[node]
        host.alive = False
        self.at(expire_after_s, lambda: self._expire(host.session))

    def suspend(self, host: Host) -> None:
        """ZooKeeper is out of reach for this agent; its session lives."""
        self.away[host.session] = []
        self.give(host, zt.SessionChanged(zt.SessionState.SUSPENDED, host.session), 0)

    def resume(self, host: Host) -> None:
        """In the same session, as after an outage of the quorum, however long it was."""
        waiting = self.away.pop(host.session)
        self.give(host, zt.SessionChanged(zt.SessionState.CONNECTED, host.session, self.settings.session_timeout_s), 0)
        self.at(HOP_S / 2, lambda: self.perform(host, waiting))

    def _expire(self, session: int) -> None:
        self.tree.expire(session)
        self._watches()

    # --- time -----------------------------------------------------------------------------------------------------

    def at(self, after_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (self.now + after_s, next(self.serial), action))

    def run(self, until: Callable[[], bool], limit_s: float = 60.0, what: str = "") -> float:
        """Let time pass until `until()`; fails after `limit_s` of virtual time. Returns the time it took."""
        began = self.now
        while not until():
            assert self.heap, f"nothing left to happen before: {what}"
            due, _, action = heapq.heappop(self.heap)
            self.now = max(self.now, due)
            assert self.now - began <= limit_s, f"after {limit_s} s of virtual time still not: {what}"
            action()
        return self.now - began

    def pass_time(self, seconds: float) -> None:
        done: list[bool] = []
        self.at(seconds, lambda: done.append(True))
        self.run(lambda: bool(done), seconds + 1)

    def give(self, host: Host, event: fx.Input, after_s: float = HOP_S) -> None:
        def arrive() -> None:
            if host.alive:
                self.perform(host, host.agent.handle(self.now, int(self.now * 1000), event))

        self.at(after_s, arrive)

    # --- effects --------------------------------------------------------------------------------------------------

    def perform(self, host: Host, effects: list[fx.Effect]) -> None:
        for effect in effects:
            self._perform(host, effect)
        if host.identity.layer == "compute":
            ledger = host.agent._compute.ledger
            used = ledger.used
            assert used.vcpus <= ledger.total.vcpus, f"{host.identity.node} is over-committed"
            assert used.memory_mib <= ledger.total.memory_mib, f"{host.identity.node} is over-committed"
        due = host.agent.next_deadline()
        if due is not None and (host.wake_at is None or due < host.wake_at):
            host.wake_at = due
            self.at(max(0.0, due - self.now), lambda: self._wake(host, due))

    def _wake(self, host: Host, due: float) -> None:
        if host.wake_at == due:
            host.wake_at = None
        if host.alive:
            now_due = host.agent.next_deadline()
            if now_due is not None and now_due <= self.now:
                self.perform(host, host.agent.tick(self.now, int(self.now * 1000)))
            else:
                self.perform(host, [])

    def _perform(self, host: Host, effect: fx.Effect) -> None:
        node = host.identity.node
        if isinstance(effect, fx.Send):
            self._send(host.identity.address, effect.to, effect.message)
        elif isinstance(effect, fx.CallTree) and host.session in self.away:
            self.away[host.session].append(effect)
        elif isinstance(effect, fx.CallTree):
            outcome = self.tree.apply(host.session, effect.op)
            self.give(host, fx.TreeDone(effect.token, outcome), 2 * HOP_S)
            self._watches()
        elif isinstance(effect, fx.DropContent):
            self.dropped.append((node, effect.digest))
            host.held.discard(effect.digest)
            host.damaged.discard(effect.digest)
            self.tell_store(host, 5 * HOP_S)
            self.give(host, fx.ContentDropped(effect.token, 1), 5 * HOP_S)
        elif isinstance(effect, fx.Note):
            self.noted.append(effect.text)
        elif isinstance(effect, fx.Quit):
            host.quit, host.alive = effect.reason, False
        elif isinstance(effect, fx.Persist):
            host.journal.update(dict(effect.puts))
            for key in effect.deletes:
                host.journal.pop(key, None)
        elif isinstance(effect, fx.FetchImage) and host.identity.layer == "storage":
            self.fetched.append((node, effect.digest))
            took_s = self.fetch_s.get(node, FETCH_S)
            self.at(took_s, lambda: self._copied(host, effect))
        elif isinstance(effect, fx.FetchImage):
            if effect.digest in host.cached:
                self.give(host, fx.ImageReady(effect.digest, (), (), 1000, 0, 0, True))
            elif not effect.holders:
                self.give(host, fx.HoldersWanted(effect.digest, ()))
        elif isinstance(effect, fx.MoreHolders):
            if effect.holders:
                host.cached.add(effect.digest)
                by = tuple((holder.node, 500) for holder in effect.holders)
                took_s = self.fetch_s.get(node, FETCH_S)
                self.give(host, fx.ImageReady(effect.digest, by, (), 1000, 50, 5, False), took_s)
            else:
                self.give(host, fx.ImageFailed(effect.digest, "node", "no holder is left"))
        elif isinstance(effect, fx.StartInstance):
            other = self.start_hook(host, effect)
            if other is not None:
                self.give(host, other)
                return
            assert effect.instance not in host.running, f"{effect.instance} is started twice on {node}"
            host.running[effect.instance] = effect.attempt
            wall = int(self.now * 1000) + 1
            self.give(host, fx.InstanceStarted(effect.instance, effect.attempt, 7, wall, "/"), 5 * HOP_S)
        elif isinstance(effect, fx.StopInstance):
            host.running.pop(effect.instance, None)
            self.give(host, fx.InstanceGone(effect.instance), 3 * HOP_S)

    def _copied(self, host: Host, effect: fx.FetchImage) -> None:
        """The end of a storage agent's fetch: it has what any of its sources, if it lives, still has."""
        if not host.alive or self.hosts[host.identity.node] is not host:
            return
        sources = [other for other in self.hosts.values() if other.alive and effect.digest in other.held]
        endpoints = {other.identity.data_endpoint for other in sources}
        if host.identity.node in self.refuses:
            self.give(host, fx.ImageFailed(effect.digest, "node", self.refuses[host.identity.node]))
            return
        if not endpoints.intersection(holder.endpoint for holder in effect.holders):
            self.give(host, fx.ImageFailed(effect.digest, "node", "no holder is left"))
            return
        host.held.add(effect.digest)
        host.damaged.discard(effect.digest)
        self.tell_store(host)
        self.give(host, fx.ImageReady(effect.digest, (), (), 1000, 50, 0, False))

    def tell_store(self, host: Host, after_s: float = HOP_S) -> None:
        held, damaged = tuple(sorted(host.held)), tuple(sorted(host.damaged))
        self.give(host, fx.StoreChanged(held, host.free_bytes, 0, damaged), after_s)

    def _send(self, sender: str, to: str, message: AnyMessage) -> None:
        guid = to.rsplit("/", 1)[1]
        frame = self.codec.encode(message, guid)
        node = self.by_address.get(to, "")

        def arrive() -> None:
            host = self.hosts.get(node)
            if host is None or not host.alive or host.identity.address != to or node in self.cut:
                return
            self.delivered += 1
            self.perform(
                host,
                host.agent.handle(self.now, int(self.now * 1000), fx.Received(sender, self.codec.decode(frame)[1])),
            )

        late = self.slow.get(message.node, 0.0) if isinstance(message, NodeAnswer) else 0.0
        self.at(HOP_S + late, arrive)

    def _watches(self) -> None:
        fired, self.tree.fired = self.tree.fired, []
        for session, path in fired:
            for host in self.hosts.values():
                if host.session == session and host.alive:
                    self.give(host, zt.WatchFired(path))

    # --- what a user does -------------------------------------------------------------------------------------------

    def settle(self) -> None:
        def ready() -> bool:
            racks = {host.identity.rack for host in self.hosts.values()}
            return all(
                len(self.tree.children(f"/leaders/{layer}")) == len(racks) for layer in paths.LAYERS
            ) and all(host.agent.present for host in self.hosts.values() if host.alive)

        self.run(ready, what="all agents registered, all racks led")
        self.pass_time(1.5)

    def create(self, count: int, *, submit: bool = True, name: str | None = None, **fields) -> str:
        deployment = name or f"d-{next(self.serial):08d}"
        fields.setdefault("min_count", count)
        fields.setdefault("policy", "spread")
        need = fields.pop("resources", LARGE)
        stop_after_s = fields.pop("stop_after_s", 0)
        spec = Spec(
            image="web", digest=DIGEST, flavor="Large", resources=need, environment={"A": "b"}, restart="always",
            stop_after_s=stop_after_s,
        )
        record = Deployment(
            id=deployment, name="", spec=spec, count=count, created_ms=0, updated_ms=0, **fields
        )
        outcome = self.tree.apply(
            0,
            zt.Multi(
                (
                    zt.Create(paths.deployment(deployment), encode(record)),
                    zt.Create(paths.trace(deployment)),
                    zt.Create(paths.open_marker(deployment)),
                )
            ),
        )
        assert isinstance(outcome, zt.Done), outcome
        if submit:
            self.submit(deployment)
        return deployment

    def submit(self, deployment: str, rack: str | None = None) -> None:
        leader = self.leader(rack)
        self._send("tcp://api/0", leader.identity.address, Submit("s", deployment, 0, 3, 0))

    def leader(self, rack: str | None = None) -> Host:
        """A living compute leader: of `rack`, or any."""
        return self.leaders(rack)[0]

    def leaders(self, rack: str | None = None) -> list[Host]:
        return [
            host
            for host in self.hosts.values()
            if host.agent.leads and host.alive and host.identity.layer == "compute"
            if rack in (None, host.identity.rack)
        ]

    def record(self, deployment: str) -> Deployment:
        return _decoded(self.tree.nodes[paths.deployment(deployment)].data, deployment)

    def change(self, deployment: str, **fields) -> None:
        record = self.record(deployment)
        new = msgspec.structs.replace(record, generation=record.generation + 1, state="accepted", **fields)
        self.tree.apply(0, zt.Set(paths.deployment(deployment), encode(new)))
        if paths.open_marker(deployment) not in self.tree.nodes:
            self.tree.apply(0, zt.Create(paths.open_marker(deployment)))
        self._watches()
        self.submit(deployment)

    def until_final(self, *deployments: str, limit_s: float = 60.0) -> float:
        return self.run(
            lambda: all(self.record(one).final for one in deployments), limit_s, f"{deployments} are final"
        )

    def running(self, deployment: str) -> dict[int, list[str]]:
        """ordinal -> the nodes that run it."""
        found: dict[int, list[str]] = {}
        for host in self.hosts.values():
            for instance in host.running:
                name, ordinal = instance.rsplit(".", 1)
                if name == deployment:
                    found.setdefault(int(ordinal), []).append(host.identity.node)
        return found

    def reserved(self) -> int:
        return sum(
            host.agent._compute.ledger.reserved_count
            for host in self.hosts.values()
            if host.identity.layer == "compute" and host.alive
        )


@lru_cache(1024)
def _decoded(data: bytes, deployment: str) -> Deployment:
    """Tests look at every record after every event, and few have changed."""
    return decode(data, Deployment, deployment)


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())

