"""The result of a load test, as `--output` writes it: one JSON object, typed, with a version.

A *request* is one create, scale or delete. It counts when it became due within the window, that is after the warm-up
and before the end; what is counted by the second, and what CPU is divided by, are requests that ended in the window.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from fabric.load.latency import Latency
from fabric.load.plan import Plan, Shape

FORMAT = "fabric bench load"
VERSION = 1
MAX_FILE_BYTES = 64 << 20


class BadResult(Exception):
    """A file that is none: which, what was expected, what was found."""


class Second(msgspec.Struct, frozen=True):
    """`at_s`: since the window began; below 0 in the warm-up. What ended well in it, by kind, and what did not."""

    at_s: int
    create: int = 0
    scale: int = 0
    delete: int = 0
    failed: int = 0


class Step(msgspec.Struct, frozen=True):
    """One of the nine steps, of the sampled traces in which it is. Traces count whole milliseconds."""

    step: int
    name: str
    traces: int
    median_ms: float
    p90_ms: float


class Traced(msgspec.Struct, frozen=True):
    """Of sampled creates, a request: medians. `negotiation_…`: from the begin of step 3 to the end of step 6."""

    traces: int
    steps: tuple[Step, ...]
    negotiation_ms: float
    negotiation_p90_ms: float
    messages: float
    zookeeper_writes: float
    zookeeper_reads: float


class Group(msgspec.Struct, frozen=True):
    """Processes of one role. `cpu_s`: in the window. MiB after the window; -1: not looked at."""

    role: str
    processes: int
    cpu_s: float
    cpu_ms_request: float
    pss_mib: float
    rss_mib: float


class Counted(msgspec.Struct, frozen=True):
    """What others counted in the window, a request: ZooKeeper's own transactions and packets, the API's messages, and
    its operations on ZooKeeper by kind. None, or nothing: nobody said."""

    zookeeper_transactions: float | None = None
    zookeeper_packets: float | None = None
    api_messages: float | None = None
    api_operations: dict[str, float] = {}


class Failure(msgspec.Struct, frozen=True):
    """`what`: "refused", "failed", "short", "lost", "not at rest"; `why` in the fabric's own words; `first`: the first
    deployment or request of it."""

    what: str
    why: str
    times: int
    first: str


class Check(msgspec.Struct, frozen=True):
    """A promise, and whether it held. `found`: what it held, or what was found instead."""

    name: str
    holds: bool
    found: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`ran_s`: the window's length; `interrupted`: it ended before its time. `per_s`: what ended well in a second of
    the window, by kind, and "all". `latencies`: by kind, "create accepted" (202 came), "create settled" (it runs),
    … `late_ms`: how late after it was due a request was sent. `generator_share`: of the CPU that was used on this
    machine, the part of the load generator itself; `busy`: of what the machine has, how much was in use."""

    format: str = FORMAT
    version: int = VERSION
    at: str
    machine: str
    commit: str
    fabric: str
    command: str
    against: str
    agents: int
    shape: Shape | None
    plan: Plan
    ran_s: float
    interrupted: bool
    requests: int
    due: int
    unsent: int
    skipped: int
    per_s: dict[str, float]
    latencies: dict[str, Latency]
    late_ms: Latency
    traced: Traced | None
    groups: tuple[Group, ...]
    counted: Counted
    busy: float
    generator_share: float
    exchanges: int
    failures: tuple[Failure, ...]
    checks: tuple[Check, ...]
    seconds: tuple[Second, ...]

    @property
    def holds(self) -> bool:
        return all(one.holds for one in self.checks)


def encode(result: Result) -> bytes:
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


class _Head(msgspec.Struct):
    format: str
    version: int


def read(path: Path) -> Result:
    """Raises BadResult."""
    expected = f"{path}: expected a result of `{FORMAT} --output`"
    try:
        with path.open("rb") as file:  # which may be a pipe, or a device without an end
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadResult(f"{expected}, found: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise BadResult(f"{expected}, found more than {MAX_FILE_BYTES} bytes")
    try:
        head = msgspec.json.decode(content, type=_Head)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadResult(f"{expected}, found: {error}") from None
    if (head.format, head.version) != (FORMAT, VERSION):
        raise BadResult(f"{expected} of version {VERSION}, found {head.format!r} of version {head.version}")
    try:
        return msgspec.json.decode(content, type=Result)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadResult(f"{expected}, found: {error}") from None
