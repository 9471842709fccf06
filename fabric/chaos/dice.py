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
from fabric.chaos.targets import parse_side, parse_target
from fabric.steps import BY_NAME

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


def _server(rng: random.Random, shape: Shape) -> Act:
    """One of the ensemble: the others go on."""
    verb = rng.choice(("kill", "stop", "restart"))
    target = rng.choice(("leader zookeeper", "follower zookeeper" if shape.zookeepers > 1 else "any zookeeper"))
    return _act(verb, target, _while(rng, 0.5, 4 * shape.session) if verb != "restart" else None)


def _outage(rng: random.Random, shape: Shape) -> Act:
    return _act("kill", "all zookeepers", _while(rng, 0.5, 6 * shape.session))


def _instance(rng: random.Random, shape: Shape) -> Act:
    verb = rng.choice(("end", "end", "hang"))
    return _act(verb, "any instance", _while(rng, 1.0, 10.0) if verb == "hang" else None)


def _disk(rng: random.Random, shape: Shape) -> Act:
    verb, target = rng.choice((("rot", "holder"), ("tear", "any compute"), ("tear", "any storage")))
    return _act(verb, target)


def _full(rng: random.Random, shape: Shape) -> Act:
    return _act("fill", rng.choice(("any compute", "any storage")), _while(rng, 2.0, 10.0))


def _cut(rng: random.Random, shape: Shape) -> Act:
    one = rng.choice(("r1", "r2", "any compute", "any storage", "leader compute", "coordinator", "leader storage r1"))
    other = rng.choice(("rest", "zookeeper", "r3"))
    sides = (parse_side(one), parse_side(other))
    return Act("cut", for_s=_while(rng, 1.0, 5 * shape.session), sides=sides, one_way=rng.random() < 0.3)


def _slow(rng: random.Random, shape: Shape) -> Act:
    sides = (parse_side(rng.choice(("r1", "r2", "any compute", "any storage", "zookeeper"))), parse_side("rest"))
    options = rng.choice((
        (("delay", 0.1), ("jitter", 0.1)), (("drop", 0.05),), (("rate", float(512 << 10)),), (("delay", 0.4),),
    ))  # fmt: skip
    return Act("slow", for_s=_while(rng, 2.0, 10.0), sides=sides, options=options)


def _step(rng: random.Random, shape: Shape) -> Act:
    step = rng.choice(sorted(BY_NAME))
    return Act(rng.choice(("kill", "kill", "stop")), for_s=_while(rng, 0.5, 4 * shape.session), step=step)


def _clock(rng: random.Random, shape: Shape) -> Act:
    by_s = rng.choice((-3600.0, -5.0, 5.0, 3600.0))
    return replace(_act("clock", "any agent", _while(rng, 2.0, 10.0)), options=(("by", by_s),))


def _drag(rng: random.Random, shape: Shape) -> Act:
    target = rng.choice(("any agent", "any zookeeper", "leader zookeeper", "api"))
    return replace(_act("drag", target, _while(rng, 2.0, 8.0)), options=(("share", rng.choice((0.1, 0.3))),))


def _slow_disk(rng: random.Random, shape: Shape) -> Act:
    target = rng.choice(("leader zookeeper", "any zookeeper"))
    delay = (("delay", rng.choice((0.05, 0.2))),)
    return replace(_act("slow-disk", target, _while(rng, 2.0, 8.0)), options=delay)


def _stranger(rng: random.Random, shape: Shape) -> Act:
    return _act("strangers", "any agent")


def _storm(rng: random.Random, shape: Shape) -> Act:
    return _act("kill", "1/3 of agents", _while(rng, 3.0, 8.0))


WEIGHTS: tuple[tuple[int, Draw], ...] = (
    (6, _kill), (6, _stop), (3, _restart), (2, _api), (3, _server), (1, _outage), (3, _instance), (2, _disk),
    (1, _full), (5, _cut), (3, _slow), (5, _step), (1, _clock), (2, _drag), (1, _stranger), (1, _storm),
    (1, _slow_disk),
)  # fmt: skip
ALONE = (_api, _server, _outage, _storm, _full)
"""Not while another of the same kind lasts."""
SHAPE = Shape(racks=3, compute=4, storage=2, vcpus=4, zookeepers=3, network="namespaces", faults=True)
"""So small that what is asked for does not always fit."""


def scenario(
    seed: int, for_s: float, per_s: float, shape: Shape | None = None, every_s: float = EVERY_S
) -> Scenario:
    """`for_s` long, with `per_s` requests a second, and a fault each `every_s` in the mean."""
    rng = random.Random(seed)
    made = shape or SHAPE
    unfit = [*((_cut, _slow) if made.network == "host" else ()), *(() if made.faults else (_step, _clock))]
    acts: list[Act] = []
    until: dict[Draw, float] = {}
    stop_after_s = rng.choice((0.0, 0.0, 3.0))
    at_s = rng.expovariate(1 / every_s)
    weights, draws = zip(*[one for one in WEIGHTS if one[1] not in unfit], strict=True)
    while at_s < for_s - QUIET_S:
        draw = rng.choices(draws, weights)[0]
        if draw not in ALONE or until.get(draw, 0.0) <= at_s:
            act = replace(draw(rng, made), at_s=round(at_s, 1))
            until[draw] = at_s + (act.for_s or 0.0) + 2 * made.session
            acts.append(act)
        at_s += rng.expovariate(1 / every_s)
    return Scenario(
        name=f"random-{seed}",
        about=f"random faults, seed {seed}",
        shape=made,
        images=(4 << 20, 1 << 20),
        load=Load(per_s=per_s, keep=16, stubborn=0.1, stop_after=stop_after_s),
        acts=tuple(acts),
        for_s=for_s,
        settle_s=SETTLE_S,
        seed=seed,
    )
