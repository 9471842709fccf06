"""Who is meant by the words of a target, of those that are there."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fabric.chaos.targets import BadTarget, NobodyThere, Scene, chosen, parse_side, parse_target

SCENE = Scene(
    nodes={
        "r1c01": ("r1", "compute"), "r1c02": ("r1", "compute"), "r1s01": ("r1", "storage"),
        "r2c01": ("r2", "compute"), "r2c02": ("r2", "compute"), "r2s01": ("r2", "storage"),
    },
    leaders={("compute", "r1"): "r1c01", ("compute", "r2"): "r2c02", ("storage", "r1"): "r1s01"},
    owners=("r2c02",), holders=("r2s01", "r1s01"), instances=("d-1.0", "d-1.1", "d-2.0"),
    zookeepers=("zookeeper-1", "zookeeper-2", "zookeeper-3"), zookeeper_leader="zookeeper-2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("r1c02", [("r1c02",)]),
        ("api", [("api",)]),
        ("zookeeper-3", [("zookeeper-3",)]),
        ("leader compute r2", [("r2c02",)]),
        ("leader compute", [("r1c01",), ("r2c02",)]),
        ("leader storage", [("r1s01",)]),
        ("leader zookeeper", [("zookeeper-2",)]),
        ("follower zookeeper", [("zookeeper-1",), ("zookeeper-3",)]),
        ("coordinator", [("r2c02",)]),
        ("holder 1", [("r2s01",)]),
        ("holder 2", [("r1s01",)]),
        ("holder", [("r1s01",), ("r2s01",)]),
        ("any storage", [("r1s01",), ("r2s01",)]),
        ("any instance", [("d-1.0",), ("d-1.1",), ("d-2.0",)]),
        ("all zookeepers", [("zookeeper-1", "zookeeper-2", "zookeeper-3")]),
        ("all compute", [("r1c01", "r1c02", "r2c01", "r2c02")]),
        ("rack r1", [("r1c01", "r1c02", "r1s01")]),
        ("3 instances", [("d-1.0", "d-1.1", "d-2.0")]),
    ],
)
def test_targets_mean_those_that_are_there(words: str, expected: list[tuple[str, ...]]) -> None:
    found = {chosen(parse_target(words.split()), SCENE, random.Random(seed)) for seed in range(30)}
    assert sorted(found) == expected
    assert str(parse_target(words.split())) == words


def test_a_part_of_a_group_is_so_many_different_ones() -> None:
    for seed in range(10):
        third = chosen(parse_target(["1/3", "of", "agents"]), SCENE, random.Random(seed))
        assert len(set(third)) == len(third) == 2
    assert len(chosen(parse_target(["1/9", "of", "storage"]), SCENE, random.Random(1))) == 1


def test_a_coordinator_is_a_leader_when_nothing_is_open() -> None:
    assert chosen(parse_target(["coordinator"]), replace(SCENE, owners=()), random.Random(1))[0] in ("r1c01", "r2c02")


@pytest.mark.parametrize("words", ["holder 3", "rack r9", "leader storage r2", "any instance"])
def test_nobody_there_is_said(words: str) -> None:
    scene = replace(SCENE, instances=())
    with pytest.raises(NobodyThere, match=f"nobody is {words} now"):
        chosen(parse_target(words.split()), scene, random.Random(1))


@pytest.mark.parametrize(
    "words", ["", "r1", "leader", "leader network", "holder 9", "any rack", "0/3 of agents", "API"]
)
def test_what_names_nobody_is_refused(words: str) -> None:
    with pytest.raises(BadTarget, match="expected a node, api, zookeeper"):
        parse_target(words.split())


def test_sides_are_lists_of_targets_or_all_others() -> None:
    side = parse_side(" r1, r2c01,api ")
    assert [one.kind for one in side.targets] == ["rack", "name", "name"]
    assert parse_side("rest").rest
