"""The simulated world: everything of one seed, wired together.

Theory of operation. One clock, one set of servers, one network, machines with their agents, API processes, users,
faults, checkers. Whatever is random comes from generators that are derived from the seed by name, so that one part's
draws do not shift another's. The same seed is the same run, event by event, in any process.

Whoever acts tells the world (`decided`, `launched`, …), and the world tells the checkers and the story.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from fabric.effects import Effect, Input, Note
from fabric.images.mates import MateTable
from fabric.records import Image, LayerName, encode
from fabric.resources import Resources
from fabric.roles.settings import Settings
from fabric.sim import conditions as drawn
from fabric.sim.checkers.awards import Awards
from fabric.sim.checkers.base import Checker
from fabric.sim.checkers.capacity import Capacity, Room
from fabric.sim.checkers.contents import Contents
from fabric.sim.checkers.exactly import Exactly
from fabric.sim.checkers.limits import Limits
from fabric.sim.checkers.patience import Patience
from fabric.sim.checkers.records import Records
from fabric.sim.checkers.settled import Settled
from fabric.sim.checkers.view import View
from fabric.sim.clock import Clock
from fabric.sim.conditions import Conditions, Storm
from fabric.sim.driver import Instance
from fabric.sim.faults import Faults
from fabric.sim.fetches import Fetches
from fabric.sim.host import Process
from fabric.sim.images import Content, Store, make_content
from fabric.sim.machine import Machine
from fabric.sim.network import Network, SimBus
from fabric.sim.submitter import Submitter
from fabric.sim.transcript import Story
from fabric.sim.users import Users
from fabric.traffic import OnMessage
from fabric.wire import Codec
from zk import paths
from zk.memory import Ensemble
from zk.memory_session import MemoryTree
from zk.paths import LAYERS
from zk.tree import Create
from zk.znodes import Change

PROMISES = (
    "capacity",
    "once",
    "returning",
    "planned",
    "limits",
    "patience",
    "brake",
    "alone",
    "room",
    "epochs",
    "marker",
    "outage",
    "leading",
    "rotten",
    "strangers",
    "ends",
    "orphans",
    "heal",
    "repair",
    "drain",
    "rest",
)
"""Everything that is checked, by name."""

BEGIN_S = 4.0
"""For all agents to register, before users and faults begin."""


@dataclass(frozen=True, slots=True)
class Options:
    """`without`: promises that are not looked at. `story`: keep a transcript."""

    nodes: int = 40
    without: frozenset[str] = frozenset()
    story: bool = False
    settings: Settings = drawn.SETTINGS
    scenario: str = ""
    """Its name, when a script says what happens."""


class World:
    """Made from a seed; `begin` it, let its clock run, `faults.stop()`."""

    EPOCH_MS = 1_700_000_000_000

    def __init__(self, seed: int, options: Options, conditions: Conditions | None = None) -> None:
        self.seed = seed
        self.options = options
        self.promises = frozenset(PROMISES) - options.without
        self.clock = Clock()
        self.story: Story | None = Story(self) if options.story else None
        self.conditions = conditions or drawn.draw(self._rng("conditions"), options.nodes)
        self.settings = options.settings
        if conditions is None:
            self.settings = replace(self.settings, discussion=self.conditions.discussion)
        self.habits = replace(self.conditions.habits)
        self.spoilt = self.conditions.spoilt
        self.rng_faults = self._rng("faults")
        self.rng_disk = self._rng("disk")
        self.rng_driver = self._rng("driver")
        self.rng_data = self._rng("data")
        self._rng_zk = self._rng("zookeeper")
        self.codec = Codec(self._rng("key").randbytes(32))
        self.weather = Storm(
            self._rng("network"),
            loss=self.conditions.loss,
            repeat=self.conditions.repeat,
            overtaken=self.conditions.overtaken,
            late_s=self.conditions.late_s,
        )
        self.network = Network(self.clock, self.weather)
        self.ensemble = Ensemble(self.clock.after, self.wall_ms, lag=self._lag())
        self.agent_sessions: dict[int, str] = {}
        self.contents: dict[str, Content] = {}
        self.pushed: list[Content] = []
        self.machines: dict[str, Machine] = {}
        self.submitters: list[Submitter] = []
        self._submitters_made = 0
        self.view = View(self)
        self.checkers: list[Checker] = [
            self.view,
            Capacity(self),
            Exactly(self, self.view),
            Records(self, self.view),
            Limits(self, self.view),
            Patience(self, self.view),
            Awards(self),
            Contents(self),
            Room(self),
            Settled(self, self.view),
        ]
        self._on_decided = _those("decided", self.checkers)
        self._on_launched = _those("launched", self.checkers)
        self._on_ended = _those("ended", self.checkers)
        self._on_committed = _those("committed", self.checkers)
        self.ensemble.observe(self._committed)
        self.faults = Faults(self, self.rng_faults)
        self.users = Users(self, self._rng("users"))

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")

    def _lag(self) -> Callable[[], float] | None:
        """Of ZooKeeper's servers: mostly short, up to `lag_s`; they are in step as long as that is 0."""
        most_s, rng = self.conditions.lag_s, self._rng("lag")
        return (lambda: most_s * rng.random() ** 3) if most_s else None

    def begin(self) -> None:
        """Machines boot; a while later users and faults begin."""
        self.boot()
        self.clock.after(BEGIN_S, self.users.begin)
        self.clock.after(BEGIN_S, self.faults.begin)

    def boot(self) -> None:
        shape, rng = self.conditions, self._rng("machines")
        for rack in range(1, shape.racks + 1):
            for layer in LAYERS:
                for index in range(1, (shape.compute if layer == "compute" else shape.storage) + 1):
                    self._add_machine(f"r{rack}{layer[0]}{index:02d}", f"r{rack}", layer, rng)
        self._push_images(rng)
        for machine in self.machines.values():
            machine.boot_later(rng.uniform(0.0, 1.0))
        for _ in range(2):
            self.add_submitter()

    def _add_machine(self, name: str, rack: str, layer: LayerName, rng: random.Random) -> None:
        skew_s = rng.uniform(-1, 1) * self.conditions.skew_s
        share = rng.choice((2, 2, 2, 1))
        whole = drawn.NODE
        total = Resources(whole.vcpus * share // 2, whole.memory_mib * share // 2, whole.disk_mib * share // 2)
        self.machines[name] = Machine(self, name, rack, layer, total, skew_s)

    def _push_images(self, rng: random.Random) -> None:
        """Each to as many holders, in different racks, as an API process would have pushed it to."""
        stores = [one for one in self.machines.values() if one.layer == "storage"]
        for number in range(self.conditions.images):
            content = make_content(f"image{number}", rng.randint(1, 4), rng)
            self.contents[content.digest] = content
            self.pushed.append(content)
            holders: list[Machine] = []
            for machine in rng.sample(stores, len(stores)):
                if len(holders) < self.settings.redundancy and machine.rack not in {one.rack for one in holders}:
                    machine.store.put(content.digest, content.manifest, content.chunks)
                    holders.append(machine)
            record = Image(
                content.name, content.digest, content.manifest.size, "tar", tuple(one.name for one in holders), 0
            )
            self.ensemble.carry_out(Create(paths.image(content.name), encode(record)))

    def add_submitter(self) -> None:
        self.submitters = [one for one in self.submitters if one.alive]
        self._submitters_made += 1
        self.submitters.append(Submitter(self, f"api{self._submitters_made}"))

    # --- what everybody needs ----------------------------------------------------------------------------------------

    def wall_ms(self) -> int:
        """By a clock that is right."""
        return int(self.clock.now * 1000) + self.EPOCH_MS

    def new_tree(self, name: str) -> MemoryTree:
        rng, mean_s = self._rng_zk, self.conditions.zk_s
        return MemoryTree(
            self.ensemble,
            delay=lambda: mean_s * (0.5 + rng.random()),
            retry=lambda: 0.05 + 0.5 * rng.random(),
            session_timeout_s=self.settings.session_timeout_s,
        )

    def new_bus(
        self, name: str, guid: str, on_message: OnMessage, on_lost: Callable[[str], None] = lambda endpoint: None
    ) -> SimBus:
        endpoint = f"tcp://{name}:7000"
        return SimBus(self.network, self.codec, guid, endpoint, on_message=on_message, on_lost=on_lost)

    # --- the way to stores (fetches.Wire) ----------------------------------------------------------------------------

    def store_at(self, machine: str, endpoint: str) -> Store | None:
        holder = self._holder(endpoint)
        return holder.store if holder is not None and holder.process is not None else None

    def mates_at(self, machine: str, endpoint: str) -> MateTable | None:
        holder = self.pieces_at(machine, endpoint)
        return holder.mates if holder is not None else None

    def pieces_at(self, machine: str, endpoint: str) -> Fetches | None:
        mate = self._holder(endpoint)
        return mate.process.fetches if mate is not None and mate.process is not None else None

    def is_cut(self, machine: str, endpoint: str) -> bool:
        holder = self._holder(endpoint)
        if holder is None:
            return False
        stands = not holder.powered or (holder.process is not None and holder.process.paused)
        cuts = self.weather.cuts
        return stands or (machine, holder.name) in cuts or (holder.name, machine) in cuts

    def took_s(self) -> float:
        return 0.001 + self.rng_data.expovariate(100)

    def spoilt_on_the_way(self, data: bytes) -> bytes:
        if self.spoilt and self.rng_data.random() < self.spoilt:
            return data[:-1] + bytes([data[-1] ^ 0x80])
        return data

    def _holder(self, endpoint: str) -> Machine | None:
        return self.machines.get(endpoint.removeprefix("tcp://").partition(":")[0])

    # --- what happens ------------------------------------------------------------------------------------------------

    def opened(self, process: Process) -> None:
        for checker in self.checkers:
            checker.opened(process)
        self.tell(process.machine.name, f"starts, the {process.machine.starts}. time")

    def gone(self, process: Process) -> None:
        for checker in self.checkers:
            checker.gone(process)
        process.machine.gone(process)

    def decided(self, process: Process, news: Input | None, effects: list[Effect]) -> None:
        for told in self._on_decided:
            told(process, news, effects)
        if self.story is not None:
            self.story.decided(process, news, effects)

    def launched(self, machine: str, instance: Instance) -> None:
        self.tell(machine, f"runs {instance.name}, attempt {instance.attempt}")
        for told in self._on_launched:
            told(machine, instance)

    def ended(self, machine: str, instance: Instance) -> None:
        self.tell(machine, f"no longer runs {instance.name}")
        for told in self._on_ended:
            told(machine, instance)

    def cached(self, machine: Machine, digest: str) -> None:
        self.tell(machine.name, f"has image {digest[3:11]} in its cache")
        for checker in self.checkers:
            checker.cached(machine, digest)

    def _committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        if self.story is not None:
            self.story.committed(zxid, session, changes)
        for told in self._on_committed:
            told(zxid, session, changes)

    def note(self, who: str, note: Note) -> None:
        if self.story is not None:
            self.story.note(who, note)

    def tell(self, who: str, what: str) -> None:
        """A line of the story."""
        if self.story is not None:
            self.story.tell(who, what)

    # --- checks ------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        for checker in self.checkers:
            checker.sweep()


def _those(method: str, checkers: Iterable[Checker]) -> list[Callable[..., None]]:
    """The bound methods of those checkers that have one of their own."""
    return [getattr(one, method) for one in checkers if getattr(type(one), method) is not getattr(Checker, method)]
