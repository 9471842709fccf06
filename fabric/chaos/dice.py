"""A seed -> a scenario of random faults. Pure: the same seed gives the same lines, on any machine.

Faults come at random times, EVERY_S apart in the mean, of the kinds in WEIGHTS that this fabric can have; each is
undone after a random while. So that the promises can be kept at all, they are within what the design is made for: what
takes away a whole service does so one at a time, and a storm passes before anybody would have to release the brake.
The last part of the run has no new faults.

The scenario is told as lines (writing.py): what a seed found can be cut down by hand to a few of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from fabric.chaos.script import Act, Load, Scenario, Shape
from fabric.chaos.targets import parse_target

EVERY_S = 4.0
QUIET_S = 10.0
"""At the end: no new fault."""
SETTLE_S = 120.0
_AGENTS = ("any agent", "any compute", "any storage", "leader compute", "leader storage", "coordinator", "holder")
Draw = Callable[[random.Random, Shape], Act]


def _act(verb: str, target: str, for_s: float | None = None) -> Act:
    return Act(verb, parse_target(target.split()), for_s=for_s)


def _while(rng: random.Random, least_s: float, most_s: float) -> float:
    return round(rng.uniform(least_s, most_s), 1)


def _kill(rng: random.Random, shape: Shape) -> Act:
    return _act("kill", rng.choice(_AGENTS), _while(rng, 0.5, 5 * shape.session))


def _stop(rng: random.Random, shape: Shape) -> Act:
    return _act("stop", rng.choice(_AGENTS), _while(rng, 0.5, 4 * shape.session))


def _restart(rng: random.Random, shape: Shape) -> Act:
    return _act("restart", rng.choice((*_AGENTS, "api")))


def _api(rng: random.Random, shape: Shape) -> Act:
    return _act(rng.choice(("kill", "stop")), "api", _while(rng, 0.2, 4.0))


def _zookeeper(rng: random.Random, shape: Shape) -> Act:
    return _act("kill", "zookeeper", _while(rng, 0.5, 6 * shape.session))


def _instance(rng: random.Random, shape: Shape) -> Act:
    verb = rng.choice(("end", "end", "hang"))
    return _act(verb, "any instance", _while(rng, 1.0, 10.0) if verb == "hang" else None)


def _disk(rng: random.Random, shape: Shape) -> Act:
    return rng.choice((_act("rot", "holder"), _act("tear", "any compute"), _act("tear", "any storage")))


def _storm(rng: random.Random, shape: Shape) -> Act:
    return _act("kill", "1/3 of agents", _while(rng, 3.0, 8.0))


WEIGHTS: tuple[tuple[int, Draw], ...] = (
    (6, _kill), (6, _stop), (3, _restart), (2, _api), (1, _zookeeper), (3, _instance), (2, _disk), (1, _storm),
)  # fmt: skip
ALONE = (_api, _zookeeper, _storm)
"""Not while another of the same kind lasts."""


def scenario(seed: int, for_s: float, per_s: float, shape: Shape | None = None) -> Scenario:
    """`for_s` long, with `per_s` requests a second."""
    rng = random.Random(seed)
    made = shape or Shape(racks=3, compute=4, storage=2, vcpus=12)
    acts: list[Act] = []
    until: dict[Draw, float] = {}
    at_s = rng.expovariate(1 / EVERY_S)
    weights, draws = [weight for weight, _ in WEIGHTS], [draw for _, draw in WEIGHTS]
    while at_s < for_s - QUIET_S:
        draw = rng.choices(draws, weights)[0]
        if draw not in ALONE or until.get(draw, 0.0) <= at_s:
            act = replace(draw(rng, made), at_s=round(at_s, 1))
            until[draw] = at_s + (act.for_s or 0.0) + 2 * made.session
            acts.append(act)
        at_s += rng.expovariate(1 / EVERY_S)
    return Scenario(
        name=f"random-{seed}",
        about=f"random faults, seed {seed}",
        shape=made,
        images=(4 << 20, 1 << 20),
        load=Load(per_s=per_s, keep=16, stubborn=0.1),
        acts=tuple(acts),
        for_s=for_s,
        settle_s=SETTLE_S,
        seed=seed,
    )
