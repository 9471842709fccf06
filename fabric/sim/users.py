"""Users and operators: they create, scale and delete deployments, drain nodes, and ask again until they get an answer.

Theory of operation. What is asked for, and when, is drawn before anything happens. Each request goes to a living API
process; when that one dies, or says that it can't, the user asks another, with the same idempotency key. What was
answered with "done" is what the fabric has accepted: `wanted` remembers it, and in the end it must be so.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fabric.records import Deployment, Policy, Restart, Spec
from fabric.resources import Resources
from fabric.sim import operators
from fabric.sim.conditions import LARGE, SMALL
from fabric.sim.images import Content
from fabric.sim.operators import Wish
from fabric.sim.submitter import Steps, Submitter
from zk import paths

if TYPE_CHECKING:
    from fabric.sim.world import World

AGAIN_S = (0.3, 1.5)
MAX_COUNT = 30


@dataclass(slots=True)
class Wanted:
    """What was accepted of one deployment. `count` None: a change is under way whose answer is not known."""

    deployment: str
    created: bool = False
    count: int | None = None
    gone: bool = False


class Users:
    """`begin` schedules all requests; `open` are those without an answer."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.wanted: dict[str, Wanted] = {}
        self.open = 0
        self.answered = 0
        self._rng = rng
        self._records: dict[str, Deployment] = {}

    def begin(self) -> None:
        world, rng = self.world, self._rng
        last_s = world.conditions.faults_s
        for number in range(world.conditions.requests):
            record = self._record(number, rng.choice(world.pushed))
            at = world.clock.now + rng.uniform(0, last_s * 0.6)
            self.order(at, record)
            while rng.random() < 0.5:
                at = min(at + rng.choice((0.4, 3.0, last_s / 2)) * rng.random(), world.clock.now + last_s)
                self._at(at, Wish("scale", record.id, rng.randint(1, MAX_COUNT)))
            if rng.random() < 0.35:
                self._at(min(at + rng.uniform(0.1, last_s / 2), world.clock.now + last_s), Wish("delete", record.id))
        for after_s, wish in operators.wishes(world, rng):
            self._at(world.clock.now + after_s, wish)
            if wish.kind == "drain" and rng.random() < 0.4:
                self._at(world.clock.now + after_s + rng.uniform(0, 2), self._anything(rng.choice(list(self._records))))

    def _anything(self, deployment: str) -> Wish:
        """A change in the middle of something else."""
        rng = self._rng
        if rng.random() < 0.3:
            return Wish("delete", deployment)
        return Wish("scale", deployment, rng.randint(1, MAX_COUNT))

    def ask(self, wish: Wish, record: Deployment | None = None) -> None:
        """Now, by a script. `record`: what is to be created."""
        if record is not None:
            self._records[record.id] = record
            self.wanted[record.id] = Wanted(record.id)
        self._at(self.world.clock.now, wish)

    def order(self, when: float, record: Deployment) -> None:
        """One deployment, to be created then."""
        self._records[record.id] = record
        self.wanted[record.id] = Wanted(record.id)
        self._at(when, Wish("create", record.id))

    def _at(self, when: float, wish: Wish) -> None:
        self.open += 1
        self.world.clock.at(when, partial(self._ask, wish))

    def _ask(self, wish: Wish) -> None:
        alive = [one for one in self.world.submitters if one.alive]
        if not alive:
            self._later(wish)
            return
        submitter = self._rng.choice(alive)
        steps = self._steps(submitter, wish)
        if steps is None:
            self.open -= 1  # it was about something that was never created
            return
        answered: list[str] = []

        def done(trouble: str) -> None:
            answered.append(trouble)
            self.world.tell(submitter.name, f"answers {trouble or 'done'} to {wish.kind} {wish.target}")
            if trouble and trouble != "404":
                self._later(wish)
            else:
                self._answered(wish, trouble)

        def watch() -> None:
            """The user gives up waiting when the process has died."""
            if not answered and not submitter.alive:
                answered.append("gone")
                self._later(wish)
            elif not answered:
                self.world.clock.after(1.0, watch)

        to = f" to {wish.count}" if wish.count else ""
        self.world.tell(submitter.name, f"is asked to {wish.kind} {wish.target}{to}")
        submitter.request(steps, done)
        self.world.clock.after(1.0, watch)

    def _later(self, wish: Wish) -> None:
        self.world.clock.after(self._rng.uniform(*AGAIN_S), partial(self._ask, wish))

    def _answered(self, wish: Wish, trouble: str) -> None:
        self.open -= 1
        self.answered += 1
        if trouble or wish.target not in self.wanted:
            return
        wanted = self.wanted[wish.target]
        if wish.kind == "create":
            wanted.created = True
            if wanted.count is None:
                wanted.count = self._records[wish.target].count
        elif wish.kind == "scale" and not wanted.gone:
            wanted.count = wish.count
        elif wish.kind == "delete":
            wanted.gone = True

    def _steps(self, submitter: Submitter, wish: Wish) -> Steps | None:
        if wish.kind == "create":
            now = self.world.wall_ms()
            record = msgspec.structs.replace(self._records[wish.target], created_ms=now, updated_ms=now)
            return submitter.create(record, "body")
        if wish.kind in operators.KINDS:
            return operators.steps(submitter, wish)
        if self.world.ensemble.stat(paths.deployment(wish.target)) is None:
            return None
        if wish.kind == "scale":
            return submitter.change(wish.target, partial(_scaled, wish.count, self.world.wall_ms()))
        return submitter.change(wish.target, partial(_deleted, self.world.wall_ms()))

    def _record(self, number: int, content: Content) -> Deployment:
        rng = self._rng
        need: Resources = rng.choice((SMALL, SMALL, LARGE))
        count = rng.randint(3, MAX_COUNT)
        policy: Policy = rng.choice(("spread", "spread", "pack"))
        stop_after_s = rng.choice((0, 0, 0, 1, 3))
        least_s = stop_after_s + math.ceil(self.world.settings.stop_grace_s)  # the API takes no less
        lost_after_s = least_s + rng.choice((0, 1, 4)) if stop_after_s else rng.choice((0, 1, 3, 20))
        restart: Restart = rng.choice(("always", "always", "on-failure", "never"))
        return Deployment(
            id=f"d-{number:04d}{rng.getrandbits(32):08x}",
            name=content.name,
            spec=Spec(
                image=content.name,
                digest=content.digest,
                flavor="Large" if need is LARGE else "Small",
                resources=need,
                environment={},
                restart=restart,
                stop_after_s=stop_after_s,
            ),
            count=count,
            min_count=rng.choice((count, count, max(1, count // 2))),
            policy=policy,
            created_ms=0,
            updated_ms=0,
            max_per_node=rng.choice((0, 0, 1, 3)),
            max_per_rack=rng.choice((0, 0, 5, 12)),
            key=f"{rng.getrandbits(64):016x}",
            lost_after_s=lost_after_s,
            exclusive=rng.random() < 0.3,
        )


def _scaled(count: int, now_ms: int, record: Deployment) -> Deployment | None:
    """As `Deploying.scale`."""
    complete = record.state == "running" and record.placed == count
    if record.gone or (record.count == count and (complete or not record.final)):
        return None
    least = count if record.min_count == record.count else min(record.min_count, count)
    return msgspec.structs.replace(
        record,
        count=count,
        min_count=least,
        generation=record.generation + 1,
        state="accepted",
        updated_ms=now_ms,
    )


def _deleted(now_ms: int, record: Deployment) -> Deployment | None:
    """As `Deploying.delete`."""
    if record.gone:
        return None
    return msgspec.structs.replace(
        record, gone=True, generation=record.generation + 1, state="deleting", updated_ms=now_ms
    )
