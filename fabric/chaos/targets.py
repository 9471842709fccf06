"""Whom a fault hits, as words; and which of those that are there they mean. Pure.

    r1c01, api, zookeeper, zookeeper-2     by name
    leader compute [r1]                    who leads that rack, or any rack, of that layer; also `leader storage`
    leader zookeeper, follower zookeeper   of an ensemble
    coordinator                            who drives an open deployment; else the leader of a compute rack
    holder [2]                             of an image: any, or the second of those that had it first
    any agent | compute | storage | instance | zookeeper
    all agents | compute | storage | zookeepers
    rack r1                                all of its agents, of both layers
    1/3 of agents | compute | storage | instances
    3 instances

The sides of a cut are such targets with commas between, or `rest`: everybody else. Names on a side may also be `api`
and `operator` (who runs the fabric), as the network knows them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Group = Literal["agents", "compute", "storage", "instances", "zookeepers"]
_SINGLE = {
    "agent": "agents", "compute": "compute", "storage": "storage", "instance": "instances", "zookeeper": "zookeepers",
}  # fmt: skip
_NODE = re.compile(r"r[0-9]{1,4}[cs][0-9]{1,4}")
_SERVICE = re.compile(r"api|operator|zookeeper(-[1-9])?")
_RACK = re.compile(r"r[0-9]{1,4}")


class BadTarget(Exception):
    """Words that name nothing: what was expected, what was found."""


class NobodyThere(Exception):
    """What is meant is not there now: why."""


@dataclass(frozen=True, slots=True)
class Target:
    """`kind`: "name" (`who`), "leader" and "follower" (`who`: layer or zookeeper, `rack`), "coordinator", "holder"
    (the `count`th, 0: any), "group" (`who`: which; `count` of it, or this `share`), "rack"."""

    kind: Literal["name", "leader", "follower", "coordinator", "holder", "group", "rack"]
    who: str = ""
    rack: str = ""
    count: int = 0
    share: Fraction = Fraction(1)
    text: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Side:
    """`rest`: all that the other side has not."""

    targets: tuple[Target, ...] = ()
    rest: bool = False

    def __str__(self) -> str:
        return "rest" if self.rest else ",".join(map(str, self.targets))


def parse_target(words: Sequence[str]) -> Target:
    """Raises BadTarget."""
    text = " ".join(words)
    match list(words):
        case [name] if _NODE.fullmatch(name) or _SERVICE.fullmatch(name):
            return Target("name", name, text=text)
        case ["leader", ("compute" | "storage" | "zookeeper") as layer]:
            return Target("leader", layer, text=text)
        case ["leader", ("compute" | "storage") as layer, rack] if _RACK.fullmatch(rack):
            return Target("leader", layer, rack, text=text)
        case ["follower", "zookeeper"]:
            return Target("follower", "zookeeper", text=text)
        case ["coordinator"]:
            return Target("coordinator", text=text)
        case ["holder"]:
            return Target("holder", text=text)
        case ["holder", ("1" | "2" | "3") as which]:
            return Target("holder", count=int(which), text=text)
        case ["any", one] if one in _SINGLE:
            return Target("group", _SINGLE[one], count=1, text=text)
        case ["all", group] if group in _SINGLE.values():
            return Target("group", group, text=text)
        case ["rack", rack] if _RACK.fullmatch(rack):
            return Target("rack", rack=rack, text=text)
        case [part, "of", group] if group in _SINGLE.values() and re.fullmatch(r"[1-9]/[1-9]", part):
            if Fraction(part) <= 1:
                return Target("group", group, share=Fraction(part), text=text)
        case [count, "instances"] if re.fullmatch(r"[1-9][0-9]{0,3}", count):
            return Target("group", "instances", count=int(count), text=text)
    expected = "a node, api, zookeeper, leader LAYER [RACK], coordinator, holder, any KIND, all KIND, rack RACK"
    raise BadTarget(f"expected {expected}, or 1/3 of KIND, found {text!r}")


def parse_side(text: str) -> Side:
    """Raises BadTarget."""
    words = text.strip()
    if words == "rest":
        return Side(rest=True)
    found = []
    for part in words.split(","):
        one = part.split()
        if len(one) == 1 and _RACK.fullmatch(one[0]):
            found.append(Target("rack", rack=one[0], text=one[0]))
        else:
            found.append(parse_target(one))
    return Side(tuple(found))


@dataclass(frozen=True, slots=True)
class Scene:
    """Who is there now. `nodes`: those with a live agent -> (rack, layer); `leaders`: (layer, rack) -> node; `owners`:
    nodes that coordinate; `holders`: in the order in which they came to have the image; `instances`: names of those
    that run; `zookeepers`: live servers by name, and `zookeeper_leader` ("" when there is none, or just one server)."""

    nodes: Mapping[str, tuple[str, str]]
    leaders: Mapping[tuple[str, str], str]
    owners: Sequence[str] = ()
    holders: Sequence[str] = ()
    instances: Sequence[str] = ()
    zookeepers: Sequence[str] = ()
    zookeeper_leader: str = ""


def chosen(target: Target, scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Names, at least one. Raises NobodyThere."""
    found = _meant(target, scene, rng)
    if not found:
        raise NobodyThere(f"nobody is {target} now")
    return tuple(found)


def _meant(target: Target, scene: Scene, rng: random.Random) -> Sequence[str]:
    match target.kind:
        case "name":
            several = target.who == "zookeeper" and len(scene.zookeepers) > 1
            return scene.zookeepers if several else (target.who,)
        case "leader" if target.who == "zookeeper":
            return [scene.zookeeper_leader or one for one in scene.zookeepers[:1]]
        case "follower":
            return _one([one for one in scene.zookeepers if one != scene.zookeeper_leader], rng)
        case "leader":
            standing = sorted(
                (rack, node)
                for (layer, rack), node in scene.leaders.items()
                if layer == target.who and target.rack in ("", rack) and node in scene.nodes
            )
            return _one([node for _, node in standing], rng)
        case "coordinator":
            owners = sorted({one for one in scene.owners if one in scene.nodes})
            return _one(owners or sorted(n for (layer, _), n in scene.leaders.items() if layer == "compute"), rng)
        case "holder":
            if target.count:
                return scene.holders[target.count - 1 : target.count]
            return _one([one for one in scene.holders if one in scene.nodes], rng)
        case "rack":
            return sorted(node for node, (rack, _) in scene.nodes.items() if rack == target.rack)
        case "group":
            there = _group(target.who, scene)
            count = target.count or max(1, round(len(there) * target.share))
            return sorted(rng.sample(list(there), min(count, len(there))))


def _group(name: str, scene: Scene) -> Sequence[str]:
    if name == "instances":
        return sorted(scene.instances)
    if name == "zookeepers":
        return scene.zookeepers
    return sorted(node for node, (_, layer) in scene.nodes.items() if name in ("agents", layer))


def _one(all_of: Sequence[str], rng: random.Random) -> Sequence[str]:
    return [rng.choice(all_of)] if all_of else []
