"""The trace of a deployment: what was done in each step of the flow, when, by whom, and why. Bounded.

The coordinator keeps it while it works and writes it, packed, beside the record at the end (same transaction). A
deployment that is changed later (scaled, deleted) gets a further run; the last `MAX_RUNS` are kept.
Times are milliseconds: `at_ms` since 1970, `took_ms` and `after_ms` relative to the run's begin.
"""

from __future__ import annotations

import zlib

import msgspec

from fabric.commands import FetchNote
from fabric.ordinals import check_ordinals
from fabric.records import OrdinalText, Policy, Share

MAX_RUNS = 4
MAX_OFFERS = 1000
"""Nodes whose offers are kept of a search for places: with more, it can't be replayed."""
MAX_CHANGES = 4 * MAX_OFFERS
MAX_PLACINGS = 40
MAX_SEARCHES = 8
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
    """A `placement.NodeOffer` as `place` was given it: what it decides by is exact."""

    node: str
    rack: str
    count: int
    used: int = 0
    utilisation: float = 0.0
    cordoned: bool = False
    capacity: int = 0
    held: int = 0
    oldest: int = 0
    short: str = ""


class PlacingSeen(msgspec.Struct, frozen=True):
    """One call of `place`. `missing`: the ordinals that a place was looked for. `offers`: all at the first placing of
    a search, later those that are new or different; `gone`: nodes that offer no more. `short`: how many found none.
    `given`: what the nodes were asked to reserve, and `granted` what of it they did; empty when nothing was asked,
    because the request waited for others or found too little."""

    missing: OrdinalText
    offers: tuple[OfferSeen, ...]
    gone: tuple[str, ...]
    short: int
    given: tuple[Share, ...] = ()
    granted: OrdinalText = ""

    def __post_init__(self) -> None:
        check_ordinals(self.missing)
        check_ordinals(self.granted)


class SearchSeen(msgspec.Struct, frozen=True):
    """One search for places: what it wished but for the count, and its placings. `kept`: the plan before; `plan`: the
    plan that was written at its end (empty: none was). `waits_omitted`: placings that were left out, for room, because
    nothing was asked. `omitted`: other placings and offers that were left out: then it can't be replayed."""

    salt: str
    policy: Policy
    max_per_node: int
    max_per_rack: int
    placings: tuple[PlacingSeen, ...]
    kept: tuple[Share, ...]
    plan: tuple[Share, ...]
    waits_omitted: int = 0
    omitted: int = 0


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
    searches: tuple[SearchSeen, ...]
    searches_omitted: int
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
    """At most MAX_PACKED_BYTES: what does not fit is left out, oldest run first, then nodes and searches."""
    runs = trace.runs[-MAX_RUNS:]
    while True:
        packed = zlib.compress(msgspec.json.encode(Trace(runs)), 6)
        if len(packed) <= MAX_PACKED_BYTES:
            return packed
        if len(runs) > 1:
            runs = runs[1:]
        else:
            smaller = _smaller(runs[0])
            if smaller == runs[0]:
                return packed
            runs = (smaller,)


def _smaller(run: Run) -> Run:
    """About half of it. What the nodes did goes before the searches, and of these the last is kept longest."""
    work = run.nodes[: len(run.nodes) // 2]
    run = msgspec.structs.replace(
        run, nodes=work, nodes_omitted=run.nodes_omitted + len(run.nodes) - len(work), rounds=run.rounds[:8],
        racks=run.racks[:64],
    )  # fmt: skip
    if work or not run.searches:
        return run
    if len(run.searches) > 1:
        kept = run.searches[len(run.searches) // 2 :]
        omitted = run.searches_omitted + len(run.searches) - len(kept)
        return msgspec.structs.replace(run, searches=kept, searches_omitted=omitted)
    search = run.searches[0]
    first = search.placings[0] if search.placings else None
    if first is None or len(first.offers) < 2:
        return msgspec.structs.replace(run, searches=(), searches_omitted=run.searches_omitted + 1)
    offers = first.offers[: len(first.offers) // 2]
    cut = msgspec.structs.replace(first, offers=offers, given=())
    omitted = search.omitted + len(first.offers) - len(offers) + len(search.placings) - 1
    left = msgspec.structs.replace(search, placings=(cut,), kept=(), plan=(), omitted=omitted)
    return msgspec.structs.replace(run, searches=(left,))


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
