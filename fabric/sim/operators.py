"""Operators: they drain nodes and end it again, cordon, release the brake, and do not wait for one another.

Theory of operation. What they wish for, and when, is drawn before anything happens, like the wishes of users, and asked
in the same way (`users`). The steps are the transactions of `fabric.api.noting`: a drain is a znode and a cordon, made
together; it ends drain first; the brake is released by accepting the note of every lost node.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from fabric.records import Drain, Lost, decode, encode
from fabric.roles.brake import OPERATOR
from fabric.sim.submitter import UNANSWERED, UNAVAILABLE, WRITE_TRIES, Steps, Submitter
from zk import paths
from zk.tree import (
    BadVersion,
    Check,
    Children,
    ConnectionLost,
    Create,
    Done,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    SessionState,
    Set,
    Written,
)

if TYPE_CHECKING:
    from fabric.sim.world import World

DEADLINES_S = (0, 2, 8, 60)
KINDS = frozenset({"cordon", "uncordon", "drain", "release"})


@dataclass(frozen=True, slots=True)
class Wish:
    """`kind`: create, scale, delete a deployment; cordon, uncordon, drain a node; release the brake. `count`: of a
    deployment; of a drain the seconds that it has."""

    kind: str
    target: str
    count: int = 0


def wishes(world: World, rng: random.Random) -> Iterator[tuple[float, Wish]]:
    """(seconds from now, what)."""
    last_s = world.conditions.faults_s
    compute = [machine.name for machine in world.machines.values() if machine.layer == "compute"]
    for _ in range(rng.choice((0, 0, 1, 2))):
        node, at = rng.choice(compute), rng.uniform(0, last_s / 2)
        yield at, Wish("cordon", node)
        yield at + rng.uniform(1, last_s / 2), Wish("uncordon", node)
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        node, at = rng.choice(compute), rng.uniform(last_s / 5, last_s * 0.8)
        yield at, Wish("drain", node, rng.choice(DEADLINES_S))
        if rng.random() < 0.2:  # another deadline
            yield at + rng.uniform(0.1, 4), Wish("drain", node, rng.choice(DEADLINES_S))
        if rng.random() < 0.7:
            yield at + rng.choice((0.3, 2.0, last_s)) * rng.random() + 0.1, Wish("uncordon", node)
    for _ in range(rng.choice((0, 0, 1, 3))):
        yield rng.uniform(last_s / 4, last_s), Wish("release", "brake")


def steps(submitter: Submitter, wish: Wish) -> Steps:
    if wish.kind == "cordon":
        return submitter.put(paths.cordon(wish.target), b"")
    if wish.kind == "uncordon":
        return _uncordon(submitter, wish.target)
    if wish.kind == "drain":
        return _drain(submitter, wish.target, wish.count)
    return _release(submitter)


def _uncordon(submitter: Submitter, node: str) -> Steps:
    """As `NodeNotes.uncordon`."""
    trouble = yield from submitter.put(paths.drain(node), None)
    if not trouble:
        trouble = yield from submitter.put(paths.cordon(node), None)
    return trouble


def _drain(submitter: Submitter, node: str, for_s: int) -> Steps:
    """As `NodeNotes.drain`."""
    path, cordon, now = paths.drain(node), paths.cordon(node), submitter.world.wall_ms()
    for _ in range(WRITE_TRIES):
        if submitter.told is not SessionState.CONNECTED:
            return UNAVAILABLE
        found = yield Get(path)
        known = yield Exists(cordon)
        if not isinstance(found, Got | NoNode) or not isinstance(known, Existed):
            return UNANSWERED
        before = decode(found.data, Drain, path) if isinstance(found, Got) else None
        wanted = Drain(node, before.since_ms if before else now, now + for_s * 1000)
        if before == wanted and known.stat is not None:
            return ""
        data = encode(wanted)
        write = Set(path, data, found.stat.version) if isinstance(found, Got) else Create(path, data)
        done = yield Multi((write, Check(cordon, -1) if known.stat is not None else Create(cordon)))
        if not isinstance(done, Done | MultiFailed | ConnectionLost):
            return UNANSWERED
        if isinstance(done, MultiFailed) and not isinstance(done.cause, NodeExists | NoNode | BadVersion):
            return UNANSWERED
        if not isinstance(done, Done):
            yield 0.05 + 0.1 * submitter.rng.random()
    return UNANSWERED


def _release(submitter: Submitter) -> Steps:
    """As `Fleet.release`, but of every note there is."""
    if submitter.told is not SessionState.CONNECTED:
        return UNAVAILABLE
    listed = yield Children(paths.LOST)
    if not isinstance(listed, Listed):
        return UNANSWERED
    for node in listed.names:
        path = paths.lost(node)
        for _ in range(WRITE_TRIES):
            found = yield Get(path)
            if isinstance(found, NoNode):
                break
            if not isinstance(found, Got):
                return UNANSWERED
            lost = decode(found.data, Lost, path)
            if lost.accepted_ms and lost.by == OPERATOR:
                break
            accepted_ms = lost.accepted_ms or submitter.world.wall_ms()
            after = msgspec.structs.replace(lost, accepted_ms=accepted_ms, by=OPERATOR)
            done = yield Set(path, encode(after), found.stat.version)
            if isinstance(done, Written | NoNode):
                break
            yield 0.05 + 0.1 * submitter.rng.random()
    return ""

