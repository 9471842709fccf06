"""What a load test is to do: every choice of its user, checked together.

`Shape` is a fabric to bring up for the run; without it the run is against one that is there.
"""

from __future__ import annotations

from typing import Literal

import msgspec

MAX_DUE = 2_000_000
"""Requests that may become due in one run at a rate."""
MAX_IMAGE_BYTES = 1 << 30
"""Of the image that is pushed for a run: it is made in memory."""


class BadPlan(Exception):
    """Choices that do not go together: which, what was expected, what was found."""


class Shape(msgspec.Struct, frozen=True):
    """Of a fabric that is brought up for the run. `zk`: a connect string, empty for a ZooKeeper of its own."""

    racks: int = 3
    compute: int = 8
    storage: int = 2
    driver: Literal["process", "null"] = "process"
    agents_per_process: int = 1
    discussion: Literal["known", "full"] = "known"
    session_timeout_s: float = 4.0
    vcpus: int = 64
    zk: str = ""

    @property
    def agents(self) -> int:
        return self.racks * (self.compute + self.storage)


class Plan(msgspec.Struct, frozen=True):
    """`clients`: of a closed loop; or `rate_s`: of an open loop, with at most `most_open` requests (or cycles) open.
    `mix`: weights of create, scale, delete with `keep` standing; None: cycles of create and delete. `image`: "" for one
    of `image_bytes` that is pushed for the run. `traces`: how many requests are sampled, at most. `cold`: nodes have
    not got the image when the load begins."""

    flavor: str
    count: int
    for_s: float
    warm_s: float
    clients: int = 0
    rate_s: float = 0.0
    most_open: int = 200
    mix: tuple[float, float, float] | None = None
    keep: int = 0
    policy: str = ""
    max_per_node: int = 0
    image: str = ""
    image_bytes: int = 64 * 1024
    traces: int = 100
    audit: bool = True
    cold: bool = False
    seed: int = 1

    @property
    def loop(self) -> str:
        if self.clients:
            return f"closed, {self.clients} client{'s' if self.clients > 1 else ''}"
        return f"open, {self.rate_s:g}/s, at most {self.most_open} open"

    @property
    def way(self) -> str:
        if self.mix is None:
            return "create, wait until it runs, delete, wait until it is gone"
        create, scale, delete = self.mix
        return f"create {create:g}, scale {scale:g}, delete {delete:g}, with {self.keep} standing"


def checked(plan: Plan) -> Plan:
    """The plan with what follows from the rest filled in. Raises BadPlan."""
    if bool(plan.clients) == bool(plan.rate_s):
        raise BadPlan("expected --clients N (closed loop) or --rate N/s (open loop), and not both")
    if plan.rate_s and plan.rate_s * (plan.for_s + plan.warm_s) > MAX_DUE:
        due = plan.rate_s * (plan.for_s + plan.warm_s)
        raise BadPlan(f"expected at most {MAX_DUE} requests in one run, found --rate and --for that make {due:.0f}")
    if plan.image_bytes > MAX_IMAGE_BYTES:
        raise BadPlan(f"--image-size: expected at most {MAX_IMAGE_BYTES >> 20} MiB, found {plan.image_bytes >> 20} MiB")
    if plan.for_s <= 0:
        raise BadPlan("--for: expected a time above 0")
    if plan.mix is None:
        if plan.keep:
            raise BadPlan("--keep: expected --mix beside it; without a mix nothing is left standing")
        return plan
    if not sum(plan.mix):
        raise BadPlan("--mix: expected a weight above 0")
    keep = plan.keep or max(10, 2 * plan.clients)
    if keep < plan.clients:
        raise BadPlan(f"--keep: expected at least one deployment a client, found {keep} for {plan.clients} clients")
    return msgspec.structs.replace(plan, keep=keep)
