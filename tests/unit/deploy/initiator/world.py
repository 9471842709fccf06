"""A world of initiators and boot stubs under virtual time: a tree, tables with claims, and a network that loses,
repeats and delays. Messages pass through the real codec. Promises are checked after every event.

- *once*: nobody runs on two boot stubs at a time, but for those whom a lost boot stub without a lease still has;
- *intent*: what is deployed stands in the table of its initiator, on this boot stub;
- *counts*: those of every report add up, and nothing is pending in a settled one;
- *attempts*: no deployment is made twice under the same epoch and attempt;
- *fenced*: nobody does anything more who was told that another incarnation owns its table.

What else must hold is held by `settle`: when the faults are over, the tree is as the description says, by name, and
the counts at the top add up.
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from deploy.configuration import Children, InitiatorRole
from deploy.hosting import InitiatorCharge
from deploy.identity import name_of, parent_of
from deploy.initiator import effects as fx
from deploy.initiator.charges import child_charge
from deploy.initiator.initiator import Initiator
from deploy.initiator.placement import children_of
from deploy.messages import (
    AnyDeployMessage,
    BipCall,
    Charge,
    Counts,
    Entry,
    Parent,
    Rollout,
    SubtreeReport,
    deploy_codec,
)
from deploy.patterns import CommandPattern
from deploy.records import Prints, StubRef, Table
from deploy.settings import Settings
from deploy.states import ALIVE
from tests.unit.deploy.initiator.stub import Managent, Stub, Wanted

CODEC = deploy_codec(b"k" * 32)
REPOSITORY = "http://repository/"
MAX_EVENTS = 200_000


class Broken(AssertionError):
    def __init__(self, promise: str, found: str) -> None:
        super().__init__(f"{promise}: {found}")
        self.promise = promise


@dataclass
class Network:
    """`loss`, `repeat`: rates. `max_s`: of delay; nothing is later than that."""

    loss: float = 0.0
    repeat: float = 0.0
    min_s: float = 0.001
    max_s: float = 0.003


@dataclass
class Hosted:
    """An initiator in its host: a boot stub's incarnation, or the top's process."""

    initiator: Initiator
    guid: str
    address: str
    alive: Callable[[], bool]
    wake_at: float | None = None
    fenced: bool = False
    """It was told so."""

    @property
    def host(self) -> str:
        return self.address.removeprefix("tcp://").partition(":")[0]


@dataclass
class Znode:
    table: Table
    epoch: int
    guid: str


class World:
    """`levels`: the roles by depth, from the top's children on; a leaf has none. `seed` is the network's."""

    def __init__(
        self,
        top: InitiatorRole,
        levels: list[InitiatorRole | None],
        stubs: int = 4,
        seed: int = 0,
        settings: Settings | None = None,
        domains: tuple[str, ...] = ("",),
    ) -> None:
        self.now = 0.0
        self.rng = random.Random(f"{seed}/world")
        self.settings = settings or Settings()
        self.network = Network()
        self.top_role = top
        self.levels = levels
        self.version = {"code": 1, "install": 1, "managent": 1}
        self.special: dict[str, Wanted | None] = {}
        self.troubles: dict[str, list[tuple[str, bool]]] = {}
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.zxid = itertools.count(100)
        self.znodes: dict[str, Znode] = {}
        self.directory_away = False
        self.operations: Counter[str] = Counter()
        self.hosted: dict[tuple[str, str], Hosted] = {}
        """(boot stub or "top", path) -> the initiator there."""
        self.guids = itertools.count(1)
        self.cut: set[str] = set()
        """Boot stubs (or "top") that neither hear nor are heard, nor reach the directory."""
        self.mute: set[str] = set()
        """Boot stubs that hear, and are not heard."""
        self.notes: list[str] = []
        self.deployments: Counter[tuple[str, int, int]] = Counter()
        self.doubles_allowed = False
        self.delivered = 0
        self.events = 0
        self.settled: list[fx.Settled] = []
        self.progress: list[fx.Progress] = []
        self.gathered: dict[str, list[Entry]] = {}
        self.ended: set[str] = set()
        self.top_alive = 0
        self.seq = 0
        self.looked_at = 0.0
        self.sent: deque[AnyDeployMessage] = deque(maxlen=20_000)
        self.commands: list[BipCall] = []
        """What boot stubs began to carry out, in order."""
        self.to_stub: list[tuple[float, str, AnyDeployMessage]] = []
        """What was sent to boot stubs themselves."""
        self.ends_at_once: set[str] = set()
        """Programs that end as soon as they are started."""
        self.gone: set[str] = set()
        """Boot stubs that were taken out of the directory."""
        self.peak = 0
        """Commands under way at once."""
        self.generation_is = ""
        """Said instead of the true one."""
        self.unfinished = ""
        """What was still missing when it was looked at last."""
        self.stubs: dict[str, Stub] = {}
        for number in range(stubs):
            name = f"s{number:02d}"
            self.stubs[name] = Stub(self, name, domains[number % len(domains)])
            self.stubs[name].start()

    # --- what there should be ----------------------------------------------------------------------------------------

    def wanted(self, path: str) -> Wanted | None:
        if path in self.special:
            return self.special[path]
        depth = path.count("/") - 1
        if depth >= len(self.levels):
            return None
        prints = Prints(*(f"{self.version[kind]:016x}" for kind in ("code", "install", "managent")))
        return Wanted(prints, self.levels[depth])

    @property
    def generation(self) -> str:
        return self.generation_is or f"{zlib.crc32(repr((self.version, self.special, self.levels)).encode()):08x}"

    def refs(self) -> tuple[StubRef, ...]:
        """As the directory has them: a boot stub's address is that of its last start."""
        return tuple(stub.ref for stub in self.stubs.values() if stub.name not in self.gone)

    def charge(self) -> Charge:
        return Charge(REPOSITORY, directory="zk", domain=self.refs(), generation=self.generation)

    def target(self) -> list[str]:
        """Every described managent, in the order of the tree."""
        found: list[str] = []

        def expand(path: str, role: InitiatorRole, charge: Charge) -> None:
            for place in children_of(path, role, charge.domain, charge.spare):
                found.append(place.path)
                wanted = self.wanted(place.path)
                if wanted is not None and wanted.role is not None:
                    expand(place.path, wanted.role, child_charge(path, role, charge, place))

        expand("", self.top_role, self.charge())
        return found

    # --- time --------------------------------------------------------------------------------------------------------

    def at(self, after_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (self.now + after_s, next(self.serial), action))

    def run(self, until: Callable[[], bool], limit_s: float = 120.0, what: str = "") -> None:
        end = self.now + limit_s
        while not until():
            if not self.heap or self.heap[0][0] > end:
                raise Broken("settles", f"after {limit_s:g} s not yet: {what or until.__name__}; {self.state()}")
            self.step()

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        while self.heap and self.heap[0][0] <= end:
            self.step()
        self.now = end

    def step(self) -> None:
        due, _, action = heapq.heappop(self.heap)
        self.now = max(self.now, due)
        action()
        self.events += 1
        if self.events > MAX_EVENTS:
            raise Broken("settles", f"{self.events} events are too many; {self.state()}")

    def state(self) -> str:
        last = self.settled[-1] if self.settled else None
        progress = self.progress[-1] if self.progress else None
        return f"{self.unfinished}; settled {last}; progress {progress}; notes {self.notes[-8:]}"

    # --- the network -------------------------------------------------------------------------------------------------

    def deliver(self, name: str, to: str, message: AnyDeployMessage) -> None:
        """From a boot stub, or "top"; `to`: an address."""
        self.sent.append(message)
        if getattr(message, "to", None) is None:
            self.to_stub.append((self.now, to.removeprefix("tcp://").partition(":")[0], message))
        frame = CODEC.encode(message, to.rpartition("/")[2])
        copies = 1 + (self.rng.random() < self.network.repeat)
        for _ in range(copies):
            if self.rng.random() >= self.network.loss:
                delay = self.network.min_s + (self.network.max_s - self.network.min_s) * self.rng.random() ** 3
                self.at(delay, lambda: self._arrive(name, to, frame))

    def _arrive(self, sender: str, to: str, frame: bytes) -> None:
        host = to.removeprefix("tcp://").partition(":")[0]
        if sender in self.cut or host in self.cut or sender in self.mute:
            return
        guid, message = CODEC.decode(frame)
        self.delivered += 1
        back = f"tcp://{sender}:1/{self._guid(sender)}"
        if host == "top":
            hosted = self.hosted.get(("top", ""))
            if hosted is not None and guid == hosted.guid:
                self.tell(hosted, fx.Received(back, message))
            return
        stub = self.stubs.get(host)
        if stub is None or not stub.alive or guid != stub.guid:
            return
        path = getattr(message, "to", None)
        if path is None:
            stub.take(back, message)
        elif (host, path) in self.hosted:
            self.tell(self.hosted[host, path], fx.Received(back, message))

    def _guid(self, name: str) -> str:
        if name == "top":
            hosted = self.hosted.get(("top", ""))
            return hosted.guid if hosted else "0"
        return self.stubs[name].guid

    # --- initiators in their hosts -----------------------------------------------------------------------------------

    def host(self, stub: Stub, managent: Managent) -> None:
        key = (stub.name, managent.path)
        hosted = self.hosted.get(key)
        if managent.role is None or managent.life not in ALIVE or not stub.alive:
            self.hosted.pop(key, None)
            return
        assert managent.charge is not None
        charge = InitiatorCharge(
            managent.path, managent.parent, managent.epoch, managent.attempt, managent.role, managent.charge
        )
        if hosted is not None and hosted.alive():
            self.tell(hosted, fx.Charged(charge))
            self.tell(hosted, fx.Activate() if managent.life == "active" else fx.Deactivate())
            return
        incarnation = stub.incarnation
        self._new(key, charge, stub.address, lambda: stub.alive and stub.incarnation == incarnation)
        self.tell(self.hosted[key], fx.Activate() if managent.life == "active" else fx.Deactivate())

    def close(self, stub: Stub, managent: Managent) -> None:
        self.hosted.pop((stub.name, managent.path), None)

    def _new(self, key: tuple[str, str], charge: InitiatorCharge, address: str, alive: Callable[[], bool]) -> None:
        guid = f"{next(self.guids):012x}" if key[0] != "top" else address.rpartition("/")[2]
        initiator = Initiator(charge, address, guid, self.settings, CommandPattern)
        self.hosted[key] = Hosted(initiator, guid, address, alive)

    def start_top(self, charge: Charge | None = None) -> None:
        self.top_alive += 1
        alive = self.top_alive
        address = f"tcp://top:1/{0xF000 + alive:08x}"
        mine = InitiatorCharge("", Parent("", ""), 0, 0, self.top_role, charge or self.charge())
        self._new(("top", ""), mine, address, lambda: self.top_alive == alive)
        self.tell(self.top, fx.Activate())

    @property
    def top(self) -> Hosted:
        return self.hosted["top", ""]

    def restart(self, key: tuple[str, str]) -> None:
        """A hosted initiator dies alone and is made anew by its boot stub, as after a fault of its own."""
        stub = self.stubs[key[0]]
        managent = stub.managents[key[1]]
        self.hosted.pop(key, None)
        self.host(stub, managent)

    def tell(self, hosted: Hosted, news: fx.Input) -> None:
        if self.current(hosted):
            if news == fx.TreeFailed("fenced"):
                hosted.fenced = True
            self.perform(hosted, hosted.initiator.handle(self.now, news))

    def current(self, hosted: Hosted) -> bool:
        return hosted.alive() and any(one is hosted for one in self.hosted.values())

    def perform(self, hosted: Hosted, effects: list[fx.Effect]) -> None:
        sender = hosted.host
        path = hosted.initiator._house.path
        for effect in effects:
            if hosted.fenced and not isinstance(effect, fx.Note):
                raise Broken("fenced", f"{path} goes on: {effect}")
            match effect:
                case fx.Send(to, message):
                    if isinstance(message, SubtreeReport):
                        self._check_counts(message.path, message.counts, message.settled)
                    self.deliver(sender, to, message)
                case fx.ClaimTable() | fx.SaveTable() | fx.DropTable():
                    self.at(0.004 + 0.01 * self.rng.random(), lambda e=effect: self._write(hosted, path, e))
                case fx.FindStubs(names):
                    refs = tuple(self.stubs[name].ref for name in names if name in self.stubs and name not in self.gone)
                    gone = tuple(name for name in names if name in self.gone)
                    self.at(0.01, lambda refs=refs, gone=gone: self.tell(hosted, fx.StubsKnown(refs, gone)))
                case fx.Note(level, text):
                    self.notes.append(f"{self.now:.1f} {level} {text}")
                case fx.Settled():
                    self._check_counts("the top", effect.counts, True)
                    self.settled.append(effect)
                case fx.Progress():
                    self._check_counts("the top", effect.counts, False)
                    self.progress.append(effect)
                case fx.Gathered(call, entries, last):
                    self.gathered.setdefault(call, []).extend(entries)
                    if last:
                        self.ended.add(call)
        self._plan(hosted)

    def _plan(self, hosted: Hosted) -> None:
        due = hosted.initiator.next_deadline()
        if due is None or (hosted.wake_at is not None and hosted.wake_at <= due):
            return
        hosted.wake_at = due

        def wake() -> None:
            if hosted.wake_at == due:
                hosted.wake_at = None
                if self.current(hosted):
                    self.perform(hosted, hosted.initiator.tick(self.now))

        self.at(max(0.0, due - self.now), wake)

    # --- the directory -----------------------------------------------------------------------------------------------

    def _write(self, hosted: Hosted, path: str, effect: fx.Effect) -> None:
        if not self.current(hosted):
            return  # in doubt; the worse case is that it was not written
        self.operations[type(effect).__name__] += 1
        answer: fx.Input
        znode = self.znodes.get(path)
        if self.directory_away or hosted.host in self.cut:
            answer = fx.TreeFailed("lost")
        elif isinstance(effect, fx.ClaimTable):
            epoch = next(self.zxid)
            old = znode.table if znode else Table(path, hosted.guid, hosted.address, "")
            table = msgspec.structs.replace(old, guid=hosted.guid, address=hosted.address)
            self.znodes[path] = Znode(table, epoch, hosted.guid)
            answer = fx.Claimed(znode.table if znode else None, epoch)
        elif znode is None or znode.guid != hosted.guid:
            answer = fx.TreeFailed("fenced")
        elif isinstance(effect, fx.SaveTable):
            znode.table = effect.table
            answer = fx.Saved()
        else:
            del self.znodes[path]
            answer = fx.Saved()
        self.at(0.002, lambda: self.tell(hosted, answer))

    # --- what is promised --------------------------------------------------------------------------------------------

    def trouble(self, stub: str, path: str) -> tuple[str, bool]:
        waiting = self.troubles.get(path)
        return waiting.pop(0) if waiting else ("", False)

    def runs_now(self, stub: str, managent: Managent, verb: str) -> None:
        others = [one.name for one in self.stubs.values() if one.name != stub and runs(one, managent.path)]
        if others and not self.doubles_allowed:
            raise Broken("once", f"{managent.path} is made to run on {stub} and runs on {others}")
        if managent.path in self.ends_at_once:
            self.at(0.5, lambda: self.stubs[stub].end(managent.path))
        if verb != "deploy":
            return
        key = (managent.path, managent.epoch, managent.attempt)
        self.deployments[key] += 1
        if self.deployments[key] > 1:
            raise Broken("attempts", f"{managent.path} was deployed twice in attempt {key[1:]}, now on {stub}")

    def begins(self, stub: str, call: BipCall) -> None:
        self.commands.append(call)
        self.peak = max(
            self.peak, sum(one.job is not None for at in self.stubs.values() for one in at.managents.values())
        )
        if call.verb != "deploy":
            return
        znode = self.znodes.get(parent_of(call.managent))
        if znode is not None and znode.epoch == call.epoch:
            rows = {row.name: row for row in znode.table.children}
            row = rows.get(name_of(call.managent))
            late = row is not None and row.attempt > call.attempt
            if not late and (row is None or row.stub.name != stub):
                raise Broken("intent", f"{call.managent} is being deployed on {stub}, its row says {row}")

    def _check_counts(self, who: str, counts: Counts, settled: bool) -> None:
        _, *parts = msgspec.structs.astuple(counts)
        if counts.targeted != sum(parts) or (settled and counts.pending):
            raise Broken("counts", f"{who} says {counts}, settled: {settled}")

    # --- the top's owner ---------------------------------------------------------------------------------------------

    def roll(self, until: str = "", **flags: bool) -> str:
        """A rollout of what is described now; returns its id. With the same description and id only `until` moves."""
        self.seq += 1
        rollout = f"r{self.seq}"
        charge = replace(self.top.initiator._house.charge, role=self.top_role, charge=self.charge())
        self.tell(self.top, fx.Charged(charge))
        self.tell(self.top, fx.Roll(Rollout(rollout, self.seq, until, self.generation, **flags)))
        return rollout

    def move_on(self, rollout: str, until: str = "", **flags: bool) -> int:
        self.seq += 1
        self.tell(self.top, fx.Roll(Rollout(rollout, self.seq, until, self.generation, **flags)))
        return self.seq

    def is_settled(self, rollout: str, seq: int | None = None) -> bool:
        last = self.settled[-1] if self.settled else None
        return bool(last and last.rollout == rollout and seq in (None, last.seq) and self.top.initiator.settled)

    def order(self, what, pattern: str = "/**", wait_s: float = 30.0) -> dict[str, Entry]:
        """Give an order and wait for its end; returns the entries by path."""
        call = f"order{len(self.ended)}-{self.seq}"
        self.tell(self.top, fx.Order(call, pattern, what, wait_s))
        self.run(lambda: call in self.ended, wait_s + 1, f"{what} {pattern}")
        entries = self.gathered.get(call, [])
        by_path = {one.path: one for one in entries}
        if len(by_path) != len(entries):
            twice = [path for path, count in Counter(one.path for one in entries).items() if count > 1]
            raise Broken("entries", f"more than one for {twice[:5]}")
        return by_path

    def calls(self, kind: str, to: str) -> int:
        """Messages of this kind that were sent to the initiator at path `to`."""
        return sum(type(one).__name__ == kind and getattr(one, "to", "") == to for one in self.sent)

    def hosted_at(self, path: str) -> Hosted:
        (found,) = [one for (_, at), one in self.hosted.items() if at == path and one.alive()]
        return found

    def running(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for stub in self.stubs.values():
            for managent in stub.managents.values():
                found.setdefault(managent.path, []).append(stub.name)
        return found

    def check_complete(self) -> None:
        """The tree is as it is described, by name; the counts say so; the tables say so."""
        target = self.target()
        there = self.running()
        if sorted(there) != sorted(target):
            missing, left = sorted(set(target) - set(there)), sorted(set(there) - set(target))
            raise Broken("exact", f"missing {missing}, left {left}")
        for path, at in there.items():
            managent = self.stubs[at[0]].managents[path]
            wanted = self.wanted(path)
            if len(at) > 1:
                raise Broken("once", f"{path} is on {at}")
            if managent.life not in ALIVE or managent.prints != wanted.prints or managent.role != wanted.role:
                raise Broken("exact", f"{path} is {managent}, expected {wanted}")
        counts = self.settled[-1].counts
        passive = sum(self.stubs[at[0]].managents[path].life == "passive" for path, at in there.items())
        expected = Counts(len(target), active=len(target) - passive, passive=passive)
        if counts != expected:
            raise Broken("counts", f"expected {expected}, found {counts}: {self.settled[-1].problems}")
        rows = {f"{path}/{row.name}": row for path, node in self.znodes.items() for row in node.table.children}
        if sorted(rows) != sorted(target):
            raise Broken("tables", f"rows differ by {sorted(set(rows) ^ set(target))}")
        for path, row in rows.items():
            if row.stub.name != there[path][0] or row.outcome != "done":
                raise Broken("tables", f"{path} is on {there[path]}, its row says {row}")


def runs(stub: Stub, path: str) -> bool:
    managent = stub.managents.get(path)
    return managent is not None and managent.life in ALIVE and stub.alive


def count(number: int, prefix: str = "n", **more) -> InitiatorRole:
    return InitiatorRole((Children("count", count=number, prefix=prefix),), **more)


__all__ = ["Broken", "World", "count", "name_of", "parent_of", "runs"]
