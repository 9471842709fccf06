"""The API's side of the peers' talk: who leads where, who takes a deployment in charge, what racks and nodes say.

A sans-I/O role like an agent's, for a process that is no member: it follows the leaders of both layers, submits
deployments (steps 1 to 3 of the flow), calls racks and nodes, and asks for holders of images. The whole loop of its
embedder is that of `fabric.effects`; requests go in by the methods below, and each ends in exactly one call of its
`done`, from inside `handle` or `tick`, by its deadline.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fabric.commands import Command
from fabric.effects import CallTree, Effect, Input, Received, TreeDone
from fabric.messages import (
    FindHolders,
    Holders,
    NodeCommand,
    PickStores,
    RackAnswer,
    RackStatus,
    RackStatusCall,
    RecordNews,
    RecordSeen,
    Submitted,
)
from fabric.records import LayerName
from fabric.roles.calls import Gathered, RackCalls
from fabric.roles.client_asks import Answered, Attempt, LeaderAsks
from fabric.roles.client_charge import Charges
from fabric.roles.leaders import LeaderDirectory, Seen
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Settings
from zk.paths import LAYERS
from zk.tree import SessionChanged, SessionState, WatchFired


@dataclass(frozen=True, slots=True)
class ClientLimits:
    follow_s: float = 120.0
    """A submitted deployment is followed, and submitted again when its coordinator dies, for this long."""
    max_followed: int = 2000
    max_held: int = 1000
    """Requests that wait for the list of leaders to be read; one more gets what is known, which is nothing."""


@dataclass(frozen=True, slots=True)
class Statuses:
    """What the rack leaders of a layer know. `silent_racks` have a leader that did not answer."""

    layer: LayerName
    racks: tuple[RackStatus, ...]
    silent_racks: tuple[str, ...]


@dataclass(slots=True)
class _Held:
    layer: LayerName
    until: float
    go: Callable[[float], None]


class Client:
    """Inputs: `Received`, `TreeDone`, `SessionChanged`, `WatchFired`; others are ignored."""

    def __init__(
        self, guid: str, settings: Settings, rng: random.Random, limits: ClientLimits | None = None
    ) -> None:
        self._limits = limits or ClientLimits()
        self._out = Outbox()
        self.directories: dict[LayerName, LeaderDirectory] = {
            layer: LeaderDirectory(layer, self._out) for layer in LAYERS
        }
        short = guid[:12]
        self._calls = {
            layer: RackCalls(self._out, self.directories[layer], f"{short}-{layer[0]}-", settings.hop_margin_s)
            for layer in LAYERS
        }
        self._asks = LeaderAsks(
            self._out, self.directories, settings, rng, f"{short}-q-", settings.command_wait_s + settings.hop_margin_s
        )
        self._submits = LeaderAsks(self._out, self.directories, settings, rng, f"{short}-t-", settings.submit_wait_s)
        self._charges = Charges(
            self._out, self._submits, settings, rng, self._limits.follow_s, self._limits.max_followed
        )
        self._held: list[_Held] = []
        self._reading = dict.fromkeys(LAYERS, 0)
        self._complete = dict.fromkeys(LAYERS, False)

    # --- what the embedder reads ---------------------------------------------------------------------------------

    def leaders(self, layer: LayerName) -> dict[str, Seen]:
        """Rack -> leader, as last read from ZooKeeper."""
        return self.directories[layer].leaders

    @property
    def followed(self) -> int:
        """Deployments that are being followed."""
        return len(self._charges)

    # --- the loop ------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        for directory in self.directories.values():
            directory.start()
        return self._end(now)

    def handle(self, now: float, event: Input) -> list[Effect]:
        match event:
            case Received(_, RackAnswer() as answer):
                any(calls.on_answer(now, answer) for calls in self._calls.values())
            case Received(_, RecordNews() as news):
                self._charges.on_news(news)
            case Received(_, Submitted() as answer):
                self._submits.on_answer(now, answer)
            case Received(_, Holders() | RackStatus() as answer):
                self._asks.on_answer(now, answer)
            case TreeDone(token, outcome):
                if not self._charges.on_tree(now, token, outcome):
                    for layer, directory in self.directories.items():
                        if directory.on_tree(now, token, outcome):
                            self._reading[layer] -= 1
                            self._calls[layer].on_leaders_changed()
                            self._asks.on_leaders_changed(now)
                            self._submits.on_leaders_changed(now)
            case SessionChanged():
                for directory in self.directories.values():
                    directory.on_session(event)
                if event.state is SessionState.LOST:
                    self._complete = dict.fromkeys(LAYERS, False)
                self._charges.on_session(now, event)
            case WatchFired(path):
                for directory in self.directories.values():
                    directory.on_watch(path)
                self._charges.on_watch(path)
            case _:
                pass
        return self._end(now)

    def tick(self, now: float) -> list[Effect]:
        for layer in LAYERS:
            self.directories[layer].tick(now)
            self._calls[layer].tick(now)
        self._asks.tick(now)
        self._submits.tick(now)
        self._charges.tick(now)
        return self._end(now)

    def next_deadline(self) -> float | None:
        return earliest(
            *(directory.next_deadline for directory in self.directories.values()),
            *(calls.next_deadline for calls in self._calls.values()),
            self._asks.next_deadline,
            self._submits.next_deadline,
            self._charges.next_deadline,
            *(held.until for held in self._held),
        )

    # --- requests ------------------------------------------------------------------------------------------------

    def submit(
        self, now: float, deployment: str, accepted_ms: int, seen: RecordSeen | None = None
    ) -> list[Effect]:
        """Steps 1 to 3: have a leader take `deployment` in charge, and another when that one dies before the end.
        `seen`: its record as it was written, if that is known."""
        self._charges.begin(now, deployment, accepted_ms, seen)
        return self._end(now)

    def call(
        self,
        now: float,
        layer: LayerName,
        wait_s: float,
        done: Callable[[float, Gathered], None],
        everyone: Command | None = None,
        racks: tuple[str, ...] | None = None,
        commands: dict[str, tuple[NodeCommand, ...]] | None = None,
    ) -> list[Effect]:
        """Ask `everyone` in `racks` (None: all that have a leader), or the nodes named in `commands` by rack. A leader
        that died is replaced by its successor until `wait_s` is over; who has not answered then is named."""

        def go(at: float) -> None:
            left = max(0.0, now + wait_s - at)
            self._calls[layer].gather(at, "", left, done, everyone, racks, commands)

        self._when_known(now, layer, now + wait_s / 2, go)
        return self._end(now)

    def rack_status(
        self,
        now: float,
        layer: LayerName,
        wait_s: float,
        done: Callable[[float, Statuses], None],
        racks: tuple[str, ...] | None = None,
    ) -> list[Effect]:
        """What the leaders of `racks` (None: all) know of their nodes by heartbeats."""

        def go(at: float) -> None:
            wanted = tuple(sorted(self.leaders(layer) if racks is None else racks))
            found: dict[str, RackStatus | None] = {}

            def one_more(rack: str, at: float, answered: Answered) -> None:
                found[rack] = answered.answer if isinstance(answered.answer, RackStatus) else None
                if len(found) == len(wanted):
                    told = tuple(status for name in wanted if (status := found[name]) is not None)
                    done(at, Statuses(layer, told, tuple(name for name in wanted if found[name] is None)))

            if not wanted:
                done(at, Statuses(layer, (), ()))
            for rack in wanted:
                self._asks.ask(
                    at,
                    layer,
                    rack,
                    max(0.0, now + wait_s - at),
                    lambda attempt: RackStatusCall(attempt.call),
                    partial(one_more, rack),
                )

        self._when_known(now, layer, now + wait_s / 2, go)
        return self._end(now)

    def find_holders(
        self,
        now: float,
        digest: str,
        want: int,
        wait_s: float,
        done: Callable[[float, Answered], None],
        exclude: tuple[str, ...] = (),
        salt: str = "",
    ) -> list[Effect]:
        """Ask a storage leader who holds `digest` now: who compares holders with what was just pushed or dropped must
        not be told what was found before."""

        def question(attempt: Attempt) -> FindHolders:
            return FindHolders(attempt.call, digest, want, exclude, salt, True)

        return self._ask_storage(now, wait_s, question, done)

    def pick_stores(
        self, now: float, size: int, want: int, wait_s: float, done: Callable[[float, Answered], None], salt: str = ""
    ) -> list[Effect]:
        """Ask a storage leader for `want` storage agents in different racks with room for `size` bytes."""

        def question(attempt: Attempt) -> PickStores:
            return PickStores(attempt.call, size, want, salt)

        return self._ask_storage(now, wait_s, question, done)

    # --- helpers -------------------------------------------------------------------------------------------------

    def _ask_storage(
        self,
        now: float,
        wait_s: float,
        question: Callable[[Attempt], FindHolders | PickStores],
        done: Callable[[float, Answered], None],
    ) -> list[Effect]:
        self._asks.ask(now, "storage", None, wait_s, question, done)
        return self._end(now)

    def _when_known(self, now: float, layer: LayerName, until: float, go: Callable[[float], None]) -> None:
        """Before the leaders were read (at the start, after a lost session) a request to "all racks" waits a while."""
        if self._settled(layer) or len(self._held) >= self._limits.max_held:
            go(now)
        else:
            self._held.append(_Held(layer, until, go))

    def _settled(self, layer: LayerName) -> bool:
        """The list of leaders, and then each of them, was read since the session began. Later news need no waiting."""
        self._complete[layer] = self.directories[layer].known and (self._complete[layer] or not self._reading[layer])
        return self._complete[layer]

    def _end(self, now: float) -> list[Effect]:
        effects = self._take()
        ready = [one for one in self._held if self._settled(one.layer) or now >= one.until]
        for held in ready:
            self._held.remove(held)
            held.go(now)
        return [*effects, *self._take()]

    def _take(self) -> list[Effect]:
        """What is to be done, with the reads of leaders counted."""
        effects = self._out.take()
        for effect in effects:
            if isinstance(effect, CallTree):
                for layer in LAYERS:
                    self._reading[layer] += effect.token.startswith(f"leaders:{layer}:")
        return effects
