"""The trace of a deployment: what was done in each step of the flow, when, by whom, and why. Bounded.

The coordinator keeps it while it works and writes it, packed, beside the record at the end (same transaction). A
deployment that is changed later (scaled, deleted) gets a further run; the last `MAX_RUNS` are kept.
Times are milliseconds: `at_ms` since 1970, `took_ms` and `after_ms` relative to the run's begin.
"""

from __future__ import annotations

import zlib

import msgspec

from fabric.commands import FetchNote

MAX_RUNS = 4
MAX_OFFERS = 200
MAX_NODES = 300
MAX_ROUNDS = 40
MAX_RACKS = 300
MAX_PACKED_BYTES = 64 * 1024
MAX_UNPACKED_BYTES = 8 * 1024 * 1024

STEPS = {
    1: "request accepted, leaders asked of ZooKeeper",
    2: "a leader picked",
    3: "deployment handed to the leader, which claims it",
    4: "discussion with all rack leaders",
    5: "each rack leader asks its agents",
    6: "placed, reserved, plan written, confirmed",
    7: "agents ask ZooKeeper for a storage leader",
    8: "storage leaders ask who holds the image",
    9: "image fetched from its holders, instances started",
}
"""The nine steps of the SmartCloud flow, as the trace names them."""


class Span(msgspec.Struct, frozen=True):
    step: int
    name: str
    after_ms: int
    took_ms: int
    detail: str = ""


class RackSeen(msgspec.Struct, frozen=True):
    """`answered_ms` -1: it did not. `silent`: agents that did not answer their leader."""

    rack: str
    leader: str
    answered_ms: int
    offers: int
    room: int
    silent: tuple[str, ...] = ()


class OfferSeen(msgspec.Struct, frozen=True):
    """`given` of `count` were taken; `why` it got no more: the placement's reason."""

    node: str
    rack: str
    count: int
    given: int
    why: str
    used: int = 0
    utilisation: float = 0.0
    cordoned: bool = False
    capacity: int = 0
    held: int = 0
    oldest: int = 0
    short: str = ""


class RoundSeen(msgspec.Struct, frozen=True):
    """One round of reservations: how many were asked, granted, and which nodes refused (`node:refused`)."""

    number: int
    after_ms: int
    asked: int
    granted: int
    conflicts: tuple[str, ...]
    why: str = ""


class NodeSeen(msgspec.Struct, frozen=True):
    node: str
    rack: str
    ordinals: str
    running_after_ms: int
    prepare_ms: int
    start_ms: int
    fetch: FetchNote | None = None
    failed: str = ""


class Run(msgspec.Struct, frozen=True):
    """One coordinator's work on one generation of a deployment."""

    generation: int
    coordinator: str
    rack: str
    epoch: int
    at_ms: int
    took_ms: int
    considered: int
    load: int
    outcome: str
    reasons: tuple[str, ...]
    spans: tuple[Span, ...]
    racks: tuple[RackSeen, ...]
    offers: tuple[OfferSeen, ...]
    offers_omitted: int
    rounds: tuple[RoundSeen, ...]
    nodes: tuple[NodeSeen, ...]
    nodes_omitted: int
    messages: int
    zookeeper_writes: int
    zookeeper_reads: int


class Trace(msgspec.Struct, frozen=True):
    runs: tuple[Run, ...] = ()


class BadTrace(Exception):
    """The znode's content is not a trace."""


def pack(trace: Trace) -> bytes:
    """At most MAX_PACKED_BYTES: what does not fit is left out, oldest run first, then offers and nodes."""
    runs = trace.runs[-MAX_RUNS:]
    while True:
        packed = zlib.compress(msgspec.json.encode(Trace(runs)), 6)
        if len(packed) <= MAX_PACKED_BYTES:
            return packed
        if len(runs) > 1:
            runs = runs[1:]
        else:
            run = runs[0]
            kept, work = run.offers[: len(run.offers) // 2], run.nodes[: len(run.nodes) // 2]
            runs = (
                msgspec.structs.replace(
                    run,
                    offers=kept,
                    offers_omitted=run.offers_omitted + len(run.offers) - len(kept),
                    nodes=work,
                    nodes_omitted=run.nodes_omitted + len(run.nodes) - len(work),
                    rounds=run.rounds[:8],
                    racks=run.racks[:64],
                ),
            )
            if not kept and not work:
                return zlib.compress(msgspec.json.encode(Trace(runs)), 6)


def unpack(data: bytes) -> Trace:
    """Raises BadTrace. An empty znode is a trace without runs."""
    if not data:
        return Trace()
    try:
        inflate = zlib.decompressobj()
        plain = inflate.decompress(data, MAX_UNPACKED_BYTES)
        if inflate.unconsumed_tail:
            raise BadTrace(f"trace: expected at most {MAX_UNPACKED_BYTES} bytes unpacked, found more")
        return msgspec.json.decode(plain, type=Trace)
    except (zlib.error, msgspec.DecodeError) as error:
        raise BadTrace(f"trace: expected packed JSON, found {error}") from error
