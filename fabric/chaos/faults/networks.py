"""Faults on the network: who does not hear whom any more, or late. Needs a network that can have them
(`network=namespaces` or `proxy`).

The fabric's rules are replaced as a whole, so each fault keeps its own among those of the stage, and takes them out
again when it is undone.
"""

from __future__ import annotations

import itertools

from fabric.chaos.script import Act
from fabric.chaos.stage import Skipped, Stage, Undo
from fabric.chaos.targets import Side, chosen
from fabric.net.rules import LOST, REST, Rule, Verdict

_numbers = itertools.count(1)


def cut(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """Nothing passes."""
    return _ruled(stage, act, LOST)


def slow(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """Something is lost, or late."""
    verdict = Verdict(
        drop=act.option("drop", 0.0),
        delay_ms=1000 * act.option("delay", 0.0),
        jitter_ms=1000 * act.option("jitter", 0.0),
        bytes_per_s=int(act.option("rate", 0.0)),
    )
    if verdict.healthy:
        raise Skipped("slow: expected drop, delay, jitter or rate, found none of them")
    return _ruled(stage, act, verdict)


def _ruled(stage: Stage, act: Act, verdict: Verdict) -> Undo:
    assert act.sides
    scene = stage.scene()

    def named(side: Side) -> tuple[str, ...]:
        if side.rest:
            return (REST,)
        return tuple(dict.fromkeys(name for one in side.targets for name in chosen(one, scene, stage.rng)))

    here, there = (named(side) for side in act.sides)
    rules = [Rule(here, there, verdict)]
    if not act.one_way:
        rules.append(Rule(there, here, verdict))
    number = next(_numbers)
    stage.rules[number] = tuple(rules)
    try:
        stage.networked()
    except Skipped:
        del stage.rules[number]
        raise

    def undo() -> None:
        if stage.rules.pop(number, None) is not None:
            stage.networked()

    return undo
