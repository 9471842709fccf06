"""One agent's process in the simulated world: what `fabric.runtime.host` does, with faults.

Theory of operation. A process belongs to a machine, which outlives it (machine.py). It opens its journal, writes down
its guid, adopts what runs, registers at the network, connects to ZooKeeper, and then turns inputs into effects, in
order, through the real gate. What can happen to it:

- `crash`: at once, or between two effects (`fuse`: so many more are performed). Its session lives until it times out.
- `pause`, `resume`: everything that comes is kept, and comes in the order it came, before anything new.
- the journal can't be written, or the role quits: an orderly end, as in the runtime; the session is closed.

The role's clock has an origin of its own in every process, and the wall clock of a machine may be wrong.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fabric.effects import (
    CallTree,
    ContentDropped,
    DropContent,
    Effect,
    FetchImage,
    FetchLog,
    Input,
    Leave,
    LogFetched,
    MoreHolders,
    Note,
    PeerLost,
    Quit,
    Received,
    ReleaseImage,
    Send,
    StartInstance,
    StopInstance,
    StoreChanged,
    TreeDone,
)
from fabric.gate import Gate
from fabric.messages import AnyMessage
from fabric.resources import Resources
from fabric.roles.agent import Agent
from fabric.roles.ledger import Ledger
from fabric.roles.settings import Identity
from fabric.sim.disk import Done, Journal, Put
from fabric.sim.driver import Runner
from fabric.sim.fetches import Fetches, IntoCache, IntoStore
from fabric.sim.network import SimBus
from zk.checks import where
from zk.memory_session import MemoryTree
from zk.tree import Outcome, SessionChanged, SessionExpired, SessionState, TreeEvent

if TYPE_CHECKING:
    from fabric.sim.machine import Machine

IDENTITY_KEY = "identity"
KEEP_GUIDS = 8
LEAVE_WAIT_S = 5.0
LOOK_S = 1.0
SCRUB_S = 3.0
"""From one pass of the scrubber to the next."""
MIN_PAUSE_S = 0.001
DROP_S = 0.005


@dataclass(frozen=True, slots=True)
class _InSession(CallTree):
    """With the number of sessions that were lost when the role asked for it: see `fabric.runtime.host`."""

    lost: int


class Process:
    """From its start to its end. `ended(reason)` of the machine is called when it ends by itself."""

    def __init__(self, machine: Machine, serial: int) -> None:
        world = machine.world
        self.machine = machine
        self.world = world
        self.alive = True
        self.paused = False
        self.leaving = False
        self.fuse: int | None = None
        """So many more effects, and it crashes."""
        self.told = SessionState.LOST
        """What the role was told last of its session."""
        self.told_at = world.clock.now
        self.well_since = world.clock.now
        """It runs, and has not stood still, since then."""
        self.ledger: Ledger | None = None
        """Of its compute role, and what of it was seen last by those who check."""
        self.ledger_seen: Resources | None = None
        self.agent: Agent | None = None
        self.bus: SimBus | None = None
        self.tree: MemoryTree | None = None
        self.gate: Gate[Effect] | None = None
        self.runner: Runner | None = None
        self.fetches: Fetches | None = None
        self.prepared: set[str] = set()
        self._rng = random.Random(f"{world.seed}/agent/{machine.name}/{serial}")
        self._offset_s = round(self._rng.uniform(1, 100_000), 3)
        self._held: deque[Callable[[], None]] = deque()
        self._asked = 0
        self._lost = 0
        self._timer_at: float | None = None
        self._seen: StoreChanged | None = None
        self._journal = Journal(machine.disk)
        self.guid = f"{self._rng.getrandbits(64):016x}"
        self._known = self._journal.load()
        self.previous = msgspec.json.decode(self._known.pop(IDENTITY_KEY, b"[]"), type=tuple[str, ...])[:KEEP_GUIDS]
        mine = msgspec.json.encode([self.guid, *self.previous])
        self._journal.append([(IDENTITY_KEY, mine)], (), partial(self._when_running, self._open))

    @property
    def leads(self) -> bool:
        return self.agent is not None and self.agent.leads

    # --- the way up --------------------------------------------------------------------------------------------------

    def _open(self, error: Exception | None) -> None:
        if not self.alive:
            return
        if error is not None:
            self.end(str(error))
            return
        machine, world = self.machine, self.world
        self.bus = world.new_bus(machine.name, self.guid, self._on_message, self._on_lost)
        identity = Identity(
            node=machine.name,
            rack=machine.rack,
            layer=machine.layer,
            guid=self.guid,
            address=self.bus.address,
            total=machine.total,
            driver="sim" if machine.layer == "compute" else "none",
            host=machine.name,
            pid=1,
            data_endpoint=machine.data_endpoint,
            previous=self.previous,
        )
        self.tree = world.new_tree(machine.name)
        self.gate = Gate(self, self._perform, self.end)
        if machine.layer == "compute":
            machine.cache.unpin_all()
            self.runner = Runner(machine.supervisor, world.clock, self._take_later, self._why_unprepared)
            target: IntoCache | IntoStore = IntoCache(machine.cache)
        else:
            target = IntoStore(machine.store)
        self.fetches = Fetches(
            machine.name, machine.rack, world.clock, world.rng_data, world, target, self._take_later, self._fetched
        )
        self.agent = Agent(identity, world.settings, self._rng, self._known)
        self.ledger = self.agent._compute.ledger if self.agent._compute is not None else None
        world.opened(self)
        self._decided(None, self.agent.start(self._now))
        for found in self._first():
            self.take(found)
        if self.alive:
            self.tree.listen(self._on_tree_event)
            self.tree.open()

    def _first(self) -> Sequence[Input]:
        if self.runner is not None:
            return self.runner.adopt()
        self.world.clock.after(LOOK_S, self._look)
        self.world.clock.after(SCRUB_S * self._rng.random(), self._scrub)
        self._seen = self.machine.store_state()
        return [self._seen]

    # --- faults ------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """kill -9."""
        if not self.alive:
            return
        self._stop()
        self._journal.crash()
        if self.tree is not None:
            self.tree.crash()
        self.world.gone(self)

    def pause(self) -> None:
        if self.alive and not self.paused:
            self.paused = True
            if self.bus is not None:
                self.bus.pause()
            if self.tree is not None:
                self.tree.pause()

    def resume(self) -> None:
        """What came meanwhile comes first: messages, timers, the disk; then ZooKeeper."""
        if not self.paused:
            return
        self.paused = False
        self.well_since = self.world.clock.now
        while self._held and self.alive and not self.paused:
            self._held.popleft()()
        if self.alive and self.bus is not None:
            self.bus.resume()
        if self.alive and self.tree is not None:
            self.tree.resume()

    def leave(self) -> None:
        """SIGTERM."""
        if not self.alive or self.leaving or self.paused:
            return
        self.leaving = True
        if self.agent is None:
            self.end("")
            return
        self.world.clock.after(LEAVE_WAIT_S, partial(self.end, ""))
        self.take(Leave())
        self._gone_if_answered()

    def end(self, reason: str) -> None:
        """In order: the session is closed, instances run on."""
        if not self.alive:
            return
        self._stop()
        self._journal.close()
        if self.tree is not None:
            self.tree.close()
        self.world.gone(self)
        self.machine.ended(self, reason)

    def _stop(self) -> None:
        self.alive = False
        self._held.clear()
        for part in (self.gate, self.bus, self.runner, self.fetches):
            if part is not None:
                part.close()

    # --- inputs ------------------------------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self.world.clock.now + self._offset_s

    def _when_running(self, call: Callable[[Exception | None], None], error: Exception | None) -> None:
        if self.paused:
            self._held.append(partial(call, error))
        elif self.alive:
            call(error)

    def take(self, news: Input) -> None:
        if self.paused:
            self._held.append(partial(self.take, news))
        elif self.alive and self.agent is not None:
            self._decided(news, self.agent.handle(self._now, self.machine.wall_ms(), news))

    def _take_later(self, news: Input) -> None:
        self.take(news)

    def _tick(self, at: float) -> None:
        if self._timer_at != at or not self.alive or self.agent is None:
            return
        if self.paused:
            self._held.append(partial(self._tick, at))
            return
        self._timer_at = None
        now = self._now
        deadline = self.agent.next_deadline()
        if deadline is not None and deadline <= now:
            self._decided(None, self.agent.tick(now, self.machine.wall_ms()))
        else:
            self._set_timer()

    def _decided(self, news: Input | None, effects: list[Effect]) -> None:
        """The role has decided: those who look from above see it, then it is done."""
        self.world.decided(self, news, effects)
        if effects:
            lost = self._lost
            assert self.gate is not None
            self.gate.put([_InSession(e.token, e.op, lost) if type(e) is CallTree else e for e in effects])
        if self.alive:
            self._set_timer()

    def _set_timer(self) -> None:
        assert self.agent is not None
        deadline = self.agent.next_deadline()
        if deadline is None:
            return
        due = deadline - self._offset_s
        if self._timer_at is not None and self._timer_at <= due:
            return
        at = max(due, self.world.clock.now + MIN_PAUSE_S)
        self._timer_at = at
        self.world.clock.at(at, partial(self._tick, at))

    def _on_message(self, sender: str, message: AnyMessage) -> None:
        self.take(Received(sender, message))

    def _on_lost(self, endpoint: str) -> None:
        self.take(PeerLost(endpoint))

    def _on_tree_event(self, event: TreeEvent) -> None:
        if isinstance(event, SessionChanged):
            self.told, self.told_at = event.state, self.world.clock.now
            self.world.tell(self.machine.name, f"is told that its session is {event.state.value}")
            if event.state is SessionState.CONNECTED:
                self.world.agent_sessions[event.session_id] = self.machine.name
            self._lost += event.state is SessionState.LOST
        self.take(event)

    def _on_outcome(self, token: str, outcome: Outcome) -> None:
        if self.paused:
            self._held.append(partial(self._on_outcome, token, outcome))
            return
        self._asked -= 1
        self.take(TreeDone(token, outcome))
        self._gone_if_answered()

    def _gone_if_answered(self) -> None:
        if self.leaving and self.alive and not self._asked and self.gate is not None and not self.gate.waiting:
            self.end("")

    # --- the journal, as the gate sees it ----------------------------------------------------------------------------

    def append(self, puts: Sequence[Put], deletes: Sequence[str], done: Done) -> None:
        if self._burnt():
            return
        self._journal.append(puts, deletes, partial(self._when_running, done))

    # --- effects -----------------------------------------------------------------------------------------------------

    def _burnt(self) -> bool:
        """Count an effect; True when the fuse has burnt down, and the process is gone."""
        if self.fuse is None:
            return False
        if self.fuse > 0:
            self.fuse -= 1
            return False
        self.world.tell(self.machine.name, "crashes between two effects")
        self.crash()
        return True

    def _perform(self, effect: Effect) -> None:
        if not self.alive or self._burnt():
            return
        kind = type(effect)
        if kind is Send:
            assert isinstance(effect, Send)
            assert self.bus is not None
            self.bus.send(effect.to, effect.message)
        elif kind is _InSession:
            self._call_tree(effect)  # type: ignore[arg-type]
        elif kind is Note:
            assert isinstance(effect, Note)
            self.world.note(self.machine.name, effect)
        elif kind is Quit:
            assert isinstance(effect, Quit)
            self.end(effect.reason)
        elif self.machine.layer == "compute":
            self._perform_compute(effect)
        else:
            self._perform_storage(effect)

    def _call_tree(self, effect: _InSession) -> None:
        assert self.tree is not None
        self._asked += 1
        if effect.lost == self._lost:
            self.tree.submit(effect.op, partial(self._on_outcome, effect.token))
        else:
            expired = SessionExpired(where(effect.op))
            self.world.clock.after(0.0, partial(self._on_outcome, effect.token, expired))

    def _perform_compute(self, effect: Effect) -> None:
        assert self.runner is not None
        assert self.fetches is not None
        cache = self.machine.cache
        match effect:
            case StartInstance():
                self.runner.start(effect)
            case StopInstance():
                self.runner.stop(effect)
            case FetchImage(digest, holders):
                cache.pin(digest, True)
                self.fetches.want(digest, holders)
            case MoreHolders(digest, holders):
                self.fetches.more(digest, holders)
            case ReleaseImage(digest):
                self.prepared.discard(digest)
                cache.pin(digest, False)
            case FetchLog(token, instance):
                known = instance in self.machine.supervisor.table
                self.world.clock.after(0.001, partial(self.take, LogFetched(token, known, b"")))
            case _:
                raise TypeError(f"expected an effect of a compute agent, found {effect}")

    def _perform_storage(self, effect: Effect) -> None:
        assert self.fetches is not None
        match effect:
            case FetchImage(digest, holders):
                self.fetches.want(digest, holders)
            case MoreHolders(digest, holders):
                self.fetches.more(digest, holders)
            case DropContent():
                self.world.clock.after(DROP_S, partial(self._drop, effect))
            case FetchLog(token):
                self.world.clock.after(0.0, partial(self.take, LogFetched(token, False, b"")))
            case _:
                raise TypeError(f"expected an effect of a storage agent, found {effect}")

    def _why_unprepared(self, digest: str) -> str:
        return "" if digest in self.prepared else f"image {digest} is not in the cache"

    def _fetched(self, digest: str) -> None:
        if self.runner is not None:
            self.prepared.add(digest)
            self.world.cached(self.machine, digest)
        else:
            self.world.clock.after(0.0, self._tell)

    # --- the store ---------------------------------------------------------------------------------------------------

    def _drop(self, effect: DropContent) -> None:
        if self.alive:
            freed = self.machine.store.drop(effect.digest)
            self._tell()
            self.take(ContentDropped(effect.token, freed))

    def _tell(self) -> None:
        if self.alive:
            self._seen = self.machine.store_state()
            self.take(self._seen)

    def _look(self) -> None:
        if self.alive:
            if not self.paused and self.machine.store_state() != self._seen:
                self._tell()
            self.world.clock.after(LOOK_S, self._look)

    def _scrub(self) -> None:
        if self.alive:
            if not self.paused:
                self.machine.store.scrub()
                if self.machine.store.damaged() != (self._seen.damaged if self._seen is not None else ()):
                    self._tell()
            self.world.clock.after(SCRUB_S, self._scrub)
