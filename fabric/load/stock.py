"""What stands, and what is asked for next.

Two ways. *Cycles*: a deployment is made, awaited, deleted, awaited, so nothing stands for longer than that. *Mix*:
while fewer than `keep` deployments stand or are being made, one is made; else a kind is drawn by the weights. A scale
or delete takes one that stands and that no open request changes; a deployment has at most one open request, so what
users want of it is what was accepted last. No more than twice `keep` are made; so without one to change, nothing is
asked.

A create that failed is not simply tried again: what is asked for next is drawn by the weights, however few stand. Else
a fabric that is full before `keep` stand would be asked for nothing but what it can't give, for good.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fabric.load.history import Kind


@dataclass(frozen=True, slots=True)
class Cycles:
    """Each makes a deployment and deletes it."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Weights, of which not all are 0."""

    create: float
    scale: float
    delete: float
    keep: int


Way = Cycles | Mix


@dataclass(slots=True)
class Standing:
    """A deployment that users have."""

    id: str
    count: int
    busy: bool = False


@dataclass
class Stock:
    """`making`: creates that are open. `full`: what ended last was a create that failed. `counts`: of each deployment
    that ever was, what was accepted last."""

    standing: dict[str, Standing] = field(default_factory=dict)
    making: int = 0
    full: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    def choose(self, mix: Mix, rng: random.Random) -> tuple[Kind, Standing | None] | None:
        """What to ask for next; None: nothing can be."""
        there = len(self.standing) + self.making
        free = [one for one in self.standing.values() if not one.busy]
        if there < mix.keep and not (self.full and free):
            return "create", None
        if not free:
            return ("create", None) if there < 2 * mix.keep else None
        create = mix.create if there < 2 * mix.keep else 0.0
        drawn = rng.random() * (create + mix.scale + mix.delete)
        if drawn < create:
            return "create", None
        kind: Kind = "scale" if drawn < create + mix.scale else "delete"
        return kind, rng.choice(free)

    def begun(self, one: Standing | None) -> None:
        """A request for it is open from now on; None: for a new one."""
        if one is None:
            self.making += 1
        else:
            one.busy = True

    def refused(self, one: Standing | None, there: bool) -> None:
        """It was not accepted. `there`: the deployment is."""
        if one is None:
            self.making -= 1
            return
        one.busy = False
        if not there:
            self.standing.pop(one.id, None)

    def accepted(self, one: Standing | None, deployment: str, count: int) -> Standing:
        if one is None:
            self.making -= 1
            one = self.standing[deployment] = Standing(deployment, count, True)
        one.count = self.counts[deployment] = count
        return one

    def ended(self, one: Standing, stands: bool, in_vain: bool = False) -> None:
        """`in_vain`: it was a create, and failed."""
        one.busy = False
        self.full = in_vain
        if not stands:
            self.standing.pop(one.id, None)
            self.counts[one.id] = 0

    def busy(self) -> frozenset[str]:
        """Deployments that an open request changes."""
        return frozenset(one.id for one in tuple(self.standing.values()) if one.busy)

    def wanted(self, deployment: str, ordinal: int) -> bool:
        """By the last request that was accepted; also of a deployment that is not of this load."""
        return ordinal < self.counts.get(deployment, ordinal + 1)
