"""Requests and results for tests, made from a few words."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric.load.history import Asked, Attempt, End, Kind
from fabric.load.latency import summary
from fabric.load.plan import Plan
from fabric.load.results import Check, Counted, Failure, Group, Result, Second, Step, Traced


def asked(
    number: int, kind: Kind, due_s: float, end_s: float | None = None, state: str = "", status: int = 202, **more: Any
) -> Asked:
    """`end_s` None: it has no end. More: sent_s, answered_s, count, placed, reason, detail."""
    sent_s = more.get("sent_s", due_s)
    count = more.get("count", 3)
    attempt = Attempt(
        number, kind, f"d-{number}", count, sent_s, more.get("answered_s", sent_s + 0.01), status, False, 1,
        more.get("detail", ""), due_s,
    )  # fmt: skip
    state = state or {"create": "running", "scale": "running", "delete": "deleted"}[kind]
    end = End(number, kind, f"d-{number}", end_s, state, more.get("placed", count), more.get("reason", ""))
    return Asked(number, kind, (attempt,), end if end_s is not None else None)


RESULT = Result(
    at="2026-01-01T00:00:00Z", machine="2 cores", commit="abc", fabric="0.1.0", command="fabric bench load --clients 2",
    against="the fabric here", agents=10, shape=None, plan=Plan("Small", 4, 10.0, 1.0, clients=2), ran_s=10.0,
    interrupted=False, requests=100, due=100, unsent=0, skipped=0, per_s={"create": 5.0, "delete": 5.0, "all": 10.0},
    latencies={"create settled": summary([0.02, 0.03, 0.04]), "delete settled": summary([0.3])},
    late_ms=summary([0.0]),
    traced=Traced(2, (Step(4, "discussion", 2, 10.0, 12.0),), 20.0, 25.0, 36.0, 4.0, 1.0),
    groups=(Group("API", 1, 1.0, 10.0, 50.0, 60.0), Group("load generator", 1, 0.1, 1.0, 20.0, 30.0)),
    counted=Counted(3.4, 14.0, 1.0, {"get": 5.0}), busy=0.5, generator_share=0.02, exchanges=400,
    failures=(Failure("failed", "failed: no room", 2, "d-7"),),
    checks=(Check("no request is lost", True, "0 lost"),), seconds=(Second(-1), Second(0, create=5, delete=5)),
)  # fmt: skip


def result(**changes: Any) -> Result:
    return msgspec.structs.replace(RESULT, **changes)
