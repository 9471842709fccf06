"""One seed: a tree, a network and faults drawn from it; then everything heals, and must become what is described.

PYTHONPATH=. python -m tests.unit.deploy.initiator.chaos 0 1000
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from deploy.configuration import Children, InitiatorRole
from deploy.initiator import effects as fx
from deploy.initiator.bringing import ORPHANS, PASSIVE
from deploy.messages import Entry
from deploy.records import Prints
from deploy.settings import Settings
from deploy.states import ALIVE
from tests.unit.deploy.initiator.stub import Stub
from tests.unit.deploy.initiator.world import Broken, Network, Wanted, World

FAULTS_S = 60.0
CALM_S = 60.0
"""For boot stubs to be found again: an order to one that is lost comes to nothing."""
HEAL_S = 200.0
LOOK_S = 0.2
"""Between two looks at whether everything is as described, which takes a while."""
CALM = Network()
SETTINGS = Settings(
    beat_s=5.0,
    stub_lost_s=6.0,
    lease_margin_s=8.0,
    command_repeat_s=1.0,
    command_repeat_max_s=4.0,
    call_repeat_s=1.0,
    call_repeat_max_s=4.0,
    give_up_s=30.0,
)
"""More patience is more virtual time, and nothing else. (A seed that finds something finds it with these.)"""
TAKEN_OUT = 0.3
"""Of the boot stubs that die, an operator takes so many out of the directory."""
LOSSY = Network(loss=0.2, repeat=0.1, max_s=0.1)
KINDS = (
    "boot stub dies", "boot stub is cut off", "boot stub is not heard", "top dies", "initiator dies", "program ends",
    "directory away", "managent changes", "code changes", "fewer children", "role changes", "deployment fails",
    "order", "wave",
)  # fmt: skip


@dataclass
class Seed:
    number: int
    world: World
    rng: random.Random
    other: random.Random
    """What is drawn from it changes nothing else of a seed."""
    kinds: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)


def draw(number: int) -> Seed:
    rng = random.Random(f"{number}/chaos")
    failover = rng.choice(("none", "domain", "domain"))
    role = {
        "failover": failover,
        "lease_s": rng.choice((0.0, 12.0)) if failover == "domain" else 0.0,
        "parallel": rng.choice((1, 2, 32)),
    }
    shape = rng.choice(("count", "count", "stub", "domain"))
    domains: tuple[str, ...] = ("",)
    if shape == "domain":
        domains = ("/site/r1", "/site/r2")
        top = InitiatorRole((Children("domain"),))
        levels = [InitiatorRole((Children("domain"),), **role), InitiatorRole((Children("stub"),), **role), None]
    else:
        top = InitiatorRole((Children("names", names=("a", "b")[: rng.randint(1, 2)]),), **role)
        last = Children("stub") if shape == "stub" else Children("count", count=rng.randint(1, 3), prefix="l")
        levels = [
            InitiatorRole((Children("count", count=rng.randint(1, 3), prefix="m"),), **role),
            InitiatorRole((last,), **role),
            None,
        ]
    world = World(top, levels, rng.randint(3, 5), number, SETTINGS, domains)
    world.doubles_allowed = failover == "domain" and not role["lease_s"]
    world.network = Network(
        loss=rng.choice((0.0, 0.02, 0.2)), repeat=rng.choice((0.0, 0.1)), max_s=rng.choice((0.01, 0.3, 3.0))
    )
    return Seed(number, world, rng, random.Random(f"{number}/other"))


def run(number: int) -> Seed:
    """Raises Broken."""
    seed = draw(number)
    world, rng = seed.world, seed.rng
    world.start_top()
    world.roll()
    for _ in range(rng.randint(2, 7)):
        kind = rng.choice(KINDS)
        world.at(rng.random() * FAULTS_S, lambda kind=kind: fault(seed, kind))
    world.run_for(FAULTS_S)
    heal(seed)
    world.run_for(CALM_S)
    world.order("activate")
    final = world.roll(retry=True)
    for _ in range(4):
        world.run(
            lambda final=final: world.is_settled(final) and (clean(world) or said(world)),
            HEAL_S,
            "settled, nothing left",
        )
        if not said(world):
            break
        if any(one.reason == ORPHANS and one.path not in world.target() for one in world.settled[-1].problems):
            return seed  # it would have to be described at all, which is no matter of waiting
        if ORPHANS in said(world):
            world.special.clear()
        world.order("activate")
        final = world.roll(retry=True)
    world.check_complete()
    if any(one.outcome != "done" for one in told(world).values()):
        raise Broken("entries", f"expected all of them done, found {list(world.order('status').values())}")
    world.network = LOSSY
    told(world)
    return seed


def told(world: World) -> dict[str, Entry]:
    """What a status says: of everybody, by name."""
    status = world.order("status", wait_s=60.0)
    if sorted(status) != sorted(world.target()) or any(one.outcome == "unreachable" for one in status.values()):
        raise Broken("entries", f"expected {sorted(world.target())}, found {list(status.values())}")
    return status


def clean(world: World) -> bool:
    """Strays are removed when a beat names them, which may be after the rollout has settled."""
    if world.now < world.looked_at + LOOK_S:
        return False
    world.looked_at = world.now
    try:
        world.check_complete()
    except Broken as broken:
        world.unfinished = str(broken)
        return False
    return True


def said(world: World) -> set[str]:
    """What only people can mend, as the reasons say. An initiator that was placed elsewhere just when it stopped being
    one; an order to activate that came while there was nothing to activate."""
    return {problem.reason for problem in world.settled[-1].problems} & {ORPHANS, PASSIVE}


def heal(seed: Seed) -> None:
    world = seed.world
    world.network = CALM
    world.cut.clear()
    world.mute.clear()
    world.directory_away = False
    world.troubles.clear()
    for stub in world.stubs.values():
        if not stub.alive:
            revive(world, stub)


def fault(seed: Seed, kind: str) -> None:
    world, rng = seed.world, seed.rng
    seed.kinds.add(kind)
    stub = world.stubs[rng.choice(sorted(world.stubs))]
    for_s = rng.choice((0.5, 5.0, 20.0, 45.0))
    if kind == "boot stub dies" and stub.alive:
        stub.crash()
        if seed.other.random() < TAKEN_OUT and len(world.gone) < len(world.stubs) - 1:
            world.gone.add(stub.name)
        world.at(for_s, lambda: None if stub.alive else revive(world, stub))
    elif kind == "boot stub is cut off":
        world.cut.add(stub.name)
        world.at(for_s, lambda: world.cut.discard(stub.name))
    elif kind == "boot stub is not heard":
        world.mute.add(stub.name)
        world.at(for_s, lambda: world.mute.discard(stub.name))
    elif kind == "top dies":
        world.start_top()
        world.at(rng.random(), lambda: world.roll(retry=rng.random() < 0.5))
    elif kind == "initiator dies":
        hosted = [key for key in world.hosted if key[0] != "top" and key[1] in world.stubs[key[0]].managents]
        if hosted:
            world.restart(rng.choice(sorted(hosted)))
    elif kind == "program ends":
        found = sorted(one.path for one in stub.managents.values() if one.life in ALIVE)
        if found and stub.alive:
            stub.end(rng.choice(found))
    elif kind == "directory away":
        world.directory_away = True
        world.at(for_s, lambda: setattr(world, "directory_away", False))
    elif kind in ("managent changes", "code changes"):
        world.version["code" if kind == "code changes" else "managent"] += 1
        world.roll()
    elif kind == "fewer children":
        number = rng.choice((0, 1))
        role = world.levels[number]
        assert role is not None
        children = Children("count", count=rng.randint(1, 3), prefix=rng.choice("mx"))
        world.levels[number] = InitiatorRole((children,), role.parallel, failover=role.failover, lease_s=role.lease_s)
        world.version["managent"] += 1
        world.roll()
    elif kind == "role changes":
        path = rng.choice(world.target())
        world.special[path] = Wanted(Prints("f" * 16, "f" * 16, f"f{rng.randint(1, 9):015x}"), None)
        world.roll(prune=rng.random() < 0.8)
    elif kind == "deployment fails":
        path = rng.choice(world.target())
        world.troubles.setdefault(path, []).extend([("exit 1", rng.random() < 0.2)] * rng.randint(1, 6))
    elif kind == "order":
        order(seed)
    elif kind == "wave":
        target = world.target()
        rollout = world.roll(until=rng.choice(target))
        if rng.random() < 0.5:
            world.at(3.0, lambda: move_on(world, rollout, rng.choice(target)))


def revive(world: World, stub: Stub) -> None:
    """It registers when it boots. A machine that was taken out comes back empty: of who was to be removed nobody
    remembers that it was there."""
    if stub.name in world.gone:
        world.gone.discard(stub.name)
        for path in stub.managents:  # what it is told again it does again, as it knows of no attempt
            world.deployments -= Counter({key: count for key, count in world.deployments.items() if key[0] == path})
        stub.managents.clear()
    stub.start()


def order(seed: Seed) -> None:
    """It may come to nothing, as things are; but it ends."""
    world, rng = seed.world, seed.rng
    call = f"chaos{next(world.serial)}"
    what = rng.choice(("deactivate", "activate", "shutdown", "start", "restart"))
    world.tell(world.top, fx.Order(call, rng.choice(("/**", rng.choice(world.target()))), what, 20.0))


def move_on(world: World, rollout: str, until: str) -> None:
    last = world.top.initiator._house.rollout
    if last is not None and last.id == rollout:
        world.move_on(rollout, until)


def main(first: int, last: int) -> None:
    broken = 0
    for number in range(first, last):
        began = time.process_time()
        try:
            seed = run(number)
            took = time.process_time() - began
            if took > 1:
                print(f"{number}: {took:.1f} s, {seed.world.events} events")
        except Exception as error:
            broken += 1
            print(f"{number}: {type(error).__name__} {str(error)[:600]}")
            if broken >= 5:
                break


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
