"""A fabric of two racks that is as it should be, as the judge sees it; tests plant what is wrong into it."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric.chaos.world import Rules, Running, Sample, World
from fabric.load.history import Asked, Attempt, End, Kind
from fabric.records import Deployment, Image, Share, Spec
from fabric.resources import Resources

SMALL = Resources(1, 512, 1024)
RULES = Rules(capacity=Resources(4, 8192, 65536), flavors={"Tiny": SMALL})
DIGEST = "b3:" + "ab" * 32
SPEC = Spec(image="web", digest=DIGEST, flavor="Tiny", resources=SMALL, environment={}, restart="always")
NODES = {"r1c01": "r1", "r1c02": "r1", "r2c01": "r2", "r1s01": "r1", "r2s01": "r2"}
STORAGE = frozenset({"r1s01", "r2s01"})
D1 = "d-111111"


def record(deployment: str = D1, **changed: Any) -> Deployment:
    """Two ordinals, one in each rack, running and at rest."""
    made = Deployment(
        id=deployment, name="web", spec=SPEC, count=2, min_count=2, policy="spread", created_ms=1, updated_ms=1,
        state="running", generation=1, settled=1, had=2,
        plan=(Share("r1c01", "r1", "0"), Share("r2c01", "r2", "1")),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changed)


def process(node: str, ordinal: int, deployment: str = D1, pid: int = 0) -> Running:
    return Running(node, deployment, ordinal, pid or 100 + ordinal, 5000, "Tiny")


RUNNING = frozenset({process("r1c01", 0), process("r2c01", 1)})


def world(**changed: Any) -> World:
    made = World(
        at_s=60.0, expected=NODES, storage=STORAGE, members=NODES,
        leaders={"compute r1": "r1c01", "compute r2": "r2c01", "storage r1": "r1s01", "storage r2": "r2s01"},
        records={D1: record()}, unreadable=(), open=frozenset(),
        images={"web": Image("web", DIGEST, 10, "tar", ("r1s01", "r2s01"), 1)},
        running=RUNNING, holders={DIGEST: STORAGE},
    )  # fmt: skip
    return msgspec.structs.replace(made, **changed)


def sample(at_s: float, running: frozenset[Running] = RUNNING, **changed: Any) -> Sample:
    members = frozenset({"r1c01", "r1c02", "r2c01"})
    return msgspec.structs.replace(Sample(at_s, members, running), **changed)


def attempt(number: int, status: int = 202, kind: Kind = "create", **changed: Any) -> Attempt:
    deployment = D1 if status == 202 or kind != "create" else ""
    made = Attempt(number, kind, deployment, 0 if kind == "delete" else 2, 10.0, 10.5, status, status == 503, 1)
    return msgspec.structs.replace(made, **changed)


def asked(*attempts: Attempt, state: str = "running", reason: str = "") -> Asked:
    first = attempts[0]
    end = None if not attempts[-1].accepted else End(first.request, first.kind, D1, 12.0, state, 2, reason)
    return Asked(first.request, first.kind, attempts, end)
