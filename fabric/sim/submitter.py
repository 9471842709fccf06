"""An API process in the simulated world: the real `Client` role, and the transactions of `fabric.api.store`.

Theory of operation. A request is a generator that yields an operation for ZooKeeper and is sent its outcome, or yields
a number of seconds to wait. Each operation has a bound (`TREE_WAIT_S`), after which it counts as unanswered though it
may still happen; while the session is not connected nothing is begun. What a lost reply leaves open is looked up, as in
`fabric.api.store`. A crash ends every request in the middle; users ask again, through another process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING

from fabric.effects import CallTree, Effect, Input, Note, Received, Send, TreeDone
from fabric.messages import AnyMessage, RecordSeen
from fabric.records import Deployment, Image, Key, decode, encode
from fabric.roles.client import Client
from zk import paths
from zk.tree import (
    BadVersion,
    Check,
    ConnectionLost,
    Create,
    Delete,
    Done,
    Get,
    Got,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    Op,
    Outcome,
    SessionChanged,
    SessionExpired,
    SessionState,
    Set,
    TreeEvent,
    Written,
)

if TYPE_CHECKING:
    from fabric.sim.world import World

TREE_WAIT_S = 3.0
WRITE_TRIES = 6
MIN_PAUSE_S = 0.001

Steps = Generator[Op | float, Outcome | None, str]
"""Ends with "" when it was done, or why it was not; the user may ask again."""
UNAVAILABLE = "503: the session is not connected"
UNANSWERED = "503: ZooKeeper did not answer"


class Unanswered(ConnectionLost):
    """No outcome within TREE_WAIT_S: the operation may be waiting still."""


class Submitter:
    """`alive` until `crash`."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.told = SessionState.LOST
        self.rng = random.Random(f"{world.seed}/api/{name}")
        self.guid = f"{self.rng.getrandbits(64):016x}"
        self.client = Client(self.guid, world.settings, self.rng)
        self.bus = world.new_bus(name, self.guid, self._on_message)
        self.tree = world.new_tree(name)
        self.tree.listen(self._on_tree_event)
        self.open_requests = 0
        self._offset_s = round(self.rng.uniform(1, 100_000), 3)
        self._timer_at: float | None = None
        self._perform(self.client.start(self.now))
        self.tree.open()

    @property
    def now(self) -> float:
        return self.world.clock.now + self._offset_s

    def crash(self) -> None:
        self.alive = False
        self.bus.close()
        self.tree.crash()

    # --- requests ----------------------------------------------------------------------------------------------------

    def request(self, steps: Steps, done: Callable[[str], None]) -> None:
        """`done` with how it ended; never, when this process dies first."""
        self._step(steps, done, None)

    def create(self, record: Deployment, body: str) -> Steps:
        """As `Store.create`, with the idempotency key that every user here gives."""
        for _ in range(WRITE_TRIES):
            if self.told is not SessionState.CONNECTED:
                return UNAVAILABLE
            known = yield Get(paths.key(record.key))
            if isinstance(known, Got):
                self.submit(decode(known.data, Key, paths.key(record.key)).deployment)
                return ""
            if not isinstance(known, NoNode):
                return UNANSWERED
            image = yield Get(paths.image(record.spec.image))
            if not isinstance(image, Got):
                return UNANSWERED
            if decode(image.data, Image, "").digest != record.spec.digest:
                return "422: the image means another content now"
            made = yield Multi(
                (
                    Create(paths.deployment(record.id), encode(record)),
                    Create(paths.trace(record.id)),
                    Create(paths.open_marker(record.id)),
                    Check(paths.image(record.spec.image), image.stat.version),
                    Create(paths.key(record.key), encode(Key(record.id, body))),
                    Set(paths.deployment(record.id), encode(record), 0),
                )
            )
            if isinstance(made, Done):
                self.submit(record.id, _seen(record, made.results[-1]))
                return ""
            yield 0.05 + 0.1 * self.rng.random()
        return UNANSWERED

    def change(self, deployment: str, update: Callable[[Deployment], Deployment | None]) -> Steps:
        """As `Store.change`, and a leader is told."""
        path, marker = paths.deployment(deployment), paths.open_marker(deployment)
        marked: bool | None = None
        for _ in range(WRITE_TRIES):
            if self.told is not SessionState.CONNECTED:
                return UNAVAILABLE
            found = yield Get(path)
            if isinstance(found, NoNode):
                return "404"
            if not isinstance(found, Got):
                return UNANSWERED
            record = decode(found.data, Deployment, path)
            after = update(record)
            if after is None:
                if not record.final:
                    self.submit(deployment)
                return ""
            marked = not record.final if marked is None else marked
            opening = Check(marker, -1) if marked else Create(marker)
            done = yield Multi((Set(path, encode(after), found.stat.version), opening))
            if isinstance(done, Done):
                self.submit(deployment, _seen(after, done.results[0]))
                return ""
            cause = done.cause if isinstance(done, MultiFailed) else done
            if isinstance(cause, NodeExists):
                marked = True
            elif isinstance(cause, NoNode) and isinstance(done, MultiFailed) and done.index == 1:
                marked = False
            elif isinstance(cause, BadVersion | NoNode | ConnectionLost):
                yield 0.05 + 0.1 * self.rng.random()
            else:
                return UNANSWERED
        return "409: the record changes too often"

    def put(self, path: str, data: bytes | None) -> Steps:
        """A znode, there with this content or (None) not there: a cordon, a drain."""
        for _ in range(WRITE_TRIES):
            if self.told is not SessionState.CONNECTED:
                return UNAVAILABLE
            done = yield Create(path, data) if data is not None else Delete(path)
            if not isinstance(done, ConnectionLost | SessionExpired):
                return ""
            yield 0.1
        return UNANSWERED

    def submit(self, deployment: str, seen: RecordSeen | None = None) -> None:
        self._perform(self.client.submit(self.now, deployment, self.world.wall_ms(), seen))

    def _step(self, steps: Steps, done: Callable[[str], None], outcome: Outcome | None) -> None:
        if not self.alive:
            return
        try:
            wanted = steps.send(outcome)
        except StopIteration as end:
            done(end.value)
            return
        if isinstance(wanted, float):
            self.world.clock.after(wanted, partial(self._step, steps, done, None))
            return
        answered: list[Outcome] = []

        def come(outcome: Outcome) -> None:
            if not answered:
                answered.append(outcome)
                self._step(steps, done, outcome)

        self.tree.submit(wanted, come)
        self.world.clock.after(TREE_WAIT_S, lambda: come(Unanswered("/")))

    # --- the loop of the role ----------------------------------------------------------------------------------------

    def _on_message(self, sender: str, message: AnyMessage) -> None:
        self._take(Received(sender, message))

    def _on_tree_event(self, event: TreeEvent) -> None:
        if isinstance(event, SessionChanged):
            self.told = event.state
            self.world.tell(self.name, f"is told that its session is {event.state.value}")
        self._take(event)

    def _take(self, event: Input) -> None:
        if self.alive:
            self._perform(self.client.handle(self.now, event))

    def _on_outcome(self, token: str, outcome: Outcome) -> None:
        self._take(TreeDone(token, outcome))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self.bus.send(to, message)
                case CallTree(token, op):
                    self.tree.submit(op, partial(self._on_outcome, token))
                case Note():
                    self.world.note(self.name, effect)
                case _:
                    raise TypeError(f"expected an effect of a client, found {effect}")
        self._set_timer()

    def _set_timer(self) -> None:
        deadline = self.client.next_deadline()
        if deadline is None:
            return
        due = max(deadline - self._offset_s, self.world.clock.now + MIN_PAUSE_S)
        if self._timer_at is None or due < self._timer_at:
            self._timer_at = due
            self.world.clock.at(due, partial(self._tick, due))

    def _tick(self, at: float) -> None:
        if self.alive and self._timer_at == at:
            self._timer_at = None
            self._perform(self.client.tick(self.now))


def _seen(record: Deployment, written: object) -> RecordSeen:
    assert isinstance(written, Written)
    return RecordSeen(encode(record), written.stat.version, written.stat.czxid, written.stat.mzxid)
