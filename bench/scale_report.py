"""What bench/scale.py measured, and how it is told: tables for bench/RESULTS.md, and a plot where matplotlib is."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bench.growth import FULL_MOST, KNOWN_MOST
from bench.results import ROOT, machine
from bench.wanted import Row, at_most, exponent, table, told

PLOTS = ROOT / "bench" / "plots"
PLOT = "scale.svg"


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a fabric: racks, and the agents of each."""

    racks: int
    compute: int
    storage: int

    @property
    def nodes(self) -> int:
        return self.racks * (self.compute + self.storage)


# Two racks of 20, as the holders of an image are in two racks; else racks of 40.
GROWTH = (Shape(2, 18, 2), Shape(10, 36, 4), Shape(100, 36, 4), Shape(250, 36, 4))
HUNDRED = Shape(250, 36, 4)
HUGE = Shape(500, 180, 20)


@dataclass(frozen=True, slots=True)
class Counts:
    """What had happened at one moment, or between two. `cpu_s` of this process."""

    virtual_s: float
    cpu_s: float
    events: int
    delivered: int
    messages: int
    """Sent, without heartbeats and hellos."""
    reads: int
    writes: int

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.virtual_s - before.virtual_s,
            self.cpu_s - before.cpu_s,
            self.events - before.events,
            self.delivered - before.delivered,
            self.messages - before.messages,
            self.reads - before.reads,
            self.writes - before.writes,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """`took_s`: virtual seconds of each request, in the order they were asked for; `spent`: of all of them together
    with what followed until the fabric had settled; `each`: of one after the other, where they were. `mib`: the most
    memory that was used."""

    shape: Shape
    boot: Counts
    counts: tuple[int, ...]
    took_s: tuple[float, ...]
    spent: Counts
    each: tuple[Counts, ...] = ()
    idle: Counts | None = None
    mib: int = 0


def median(values: Iterator[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f}"


def growth_rows(found: Sequence[Measured]) -> Iterator[str]:
    yield "| nodes | racks | messages | virtual s | ZooKeeper reads | writes | CPU s |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for one in found:
        cells = (
            f"{one.shape.nodes:,}",
            f"{one.shape.racks} of {one.shape.compute + one.shape.storage}",
            median(each.messages for each in one.each),
            median((took for took in one.took_s), 2),
            median(each.reads for each in one.each),
            median(each.writes for each in one.each),
            median((each.cpu_s for each in one.each), 2),
        )
        yield f"| {' | '.join(cells)} |"


def boot_rows(found: Sequence[Measured]) -> Iterator[str]:
    yield "| nodes | messages | reads | writes | CPU s | memory, MiB | KiB a node | at rest: messages/s | reads/s |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for one in found:
        boot, idle = one.boot, one.idle
        assert idle is not None
        cells = (
            f"{one.shape.nodes:,}",
            f"{boot.messages:,}",
            f"{boot.reads:,}",
            f"{boot.writes:,}",
            f"{boot.cpu_s:.0f}",
            f"{one.mib:,}",
            f"{one.mib * 1024 / one.shape.nodes:.0f}",
            f"{idle.delivered / idle.virtual_s:,.0f}",
            f"{idle.reads / idle.virtual_s:,.0f}",
        )
        yield f"| {' | '.join(cells)} |"


def hundred_rows(one: Measured) -> Iterator[str]:
    spent, requests = one.spent, len(one.counts)
    rate = spent.delivered / spent.cpu_s
    yield "| | wanted | measured |"
    yield "| --- | --- | --- |"
    yield f"| instances, each running once, where the plan says | {sum(one.counts):,} | {sum(one.counts):,} |"
    yield f"| a request, virtual s: median, most | | {statistics.median(one.took_s):.2f}, {max(one.took_s):.2f} |"
    yield f"| messages a request | | {spent.messages / requests:,.0f} |"
    yield f"| ZooKeeper reads, writes a request | | {spent.reads / requests:,.0f}, {spent.writes / requests:.1f} |"
    yield f"| messages delivered, events | | {spent.delivered:,}, {spent.events:,} |"
    yield f"| CPU, s: to boot, the requests | a few minutes | {one.boot.cpu_s:.0f}, {spent.cpu_s:.0f} |"
    yield f"| messages a second of CPU, all checkers on | at least 20,000 | {rate:,.0f} |"
    yield f"| memory, MiB | | {one.mib:,} |"


def plot(found: Sequence[Measured]) -> bool:
    """False: matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scale"
    from matplotlib import pyplot

    nodes = [one.shape.nodes for one in found]
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    lines = (
        ("messages a request", [[statistics.median(each.messages for each in one.each) for one in found]], [""]),
        (
            "ZooKeeper operations a request",
            [
                [statistics.median(each.reads for each in one.each) for one in found],
                [statistics.median(each.writes for each in one.each) for one in found],
            ],
            ["reads", "writes"],
        ),
        ("virtual seconds a request", [[statistics.median(one.took_s) for one in found]], [""]),
    )
    for axis, (title, rows, labels) in zip(axes, lines, strict=True):
        for row, label in zip(rows, labels, strict=True):
            axis.plot(nodes, row, marker="o", label=label)
        axis.set(title=title, xlabel="nodes", xscale="log")
        axis.grid(True, alpha=0.3)
        if any(labels):
            axis.legend()
    axes[0].set_yscale("log")
    axes[1].set_ylim(bottom=0)
    axes[2].set_ylim(bottom=0)
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / PLOT, metadata={"Date": None})
    return True


def head(title: str, part: str, code: str) -> list[str]:
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    return [f"## {title}", "", f"{machine()}; commit {code}; {when}; `python -m bench.scale --part {part}`."]


def growth_section(found: Sequence[Measured], code: str) -> str:
    plotted = plot(found)
    if not plotted:
        print("matplotlib is not installed (pip install '.[bench]'): the plot is left as it is", flush=True)
    lines = [
        *head("How a request grows with the fabric (simulated)", "growth", code),
        "The roles of production in the simulator, calm weather, all checkers on, heartbeats every 10 s; each row a",
        "process of its own. Four requests of 50 Small of one image, one after the other; the median. (For the first",
        "every storage agent is asked who holds it.) It is fetched by each node that has not got it. Messages are sent",
        "ones, without heartbeats.",
        "",
        *growth_rows(found),
        "",
        "Booting (all agents within a second of virtual time), and at rest:",
        "",
        *boot_rows(found),
    ]
    if plotted or (PLOTS / PLOT).exists():
        lines += ["", f"![messages, ZooKeeper operations, virtual time by nodes](plots/{PLOT})"]
    return "\n".join(lines)


def exponents_section(known: Sequence[Measured], full: Sequence[Measured], code: str) -> str:
    rows = [*_exponents("known", known, KNOWN_MOST), *_exponents("full", full, FULL_MOST)]
    nodes = ", ".join(f"{one.shape.nodes:,}" for one in known)
    lines = [
        *head("How fast a request grows with the fabric (simulated)", "exponents", code),
        f"As above, of {nodes} nodes, with the short discussion (known) and the full one: cost = a * nodes^b, by least",
        "squares on the logarithms. CPU is that of the simulator, checkers included.",
        "",
        *table(rows),
        "",
        "Known:",
        "",
        *growth_rows(known),
        "",
        "Full:",
        "",
        *growth_rows(full),
    ]
    return "\n".join(lines)


def _exponents(discussion: str, found: Sequence[Measured], most: float) -> Iterator[Row]:
    nodes = [float(one.shape.nodes) for one in found]
    costs = {
        "virtual time": [statistics.median(one.took_s) for one in found],
        "CPU": [statistics.median(each.cpu_s for each in one.each) for one in found],
    }
    for what, each in costs.items():
        yield at_most(4, f"exponent of {what} a request, discussion {discussion}", exponent(nodes, each), most)
    messages = [float(statistics.median(each.messages for each in one.each)) for one in found]
    yield told(f"exponent of messages a request, discussion {discussion}", f"{exponent(nodes, messages):.2f}", 4)


def hundred_section(found: Measured, code: str) -> str:
    lines = [
        *head("10,000 nodes, 100 requests (simulated)", "hundred", code),
        "250 racks of 36 compute and 4 storage agents; 100 requests of 50 to 500 Small, at moments within 60 s of",
        "virtual time, drawn from a seed; all checkers on; one process, one core.",
        "",
        *hundred_rows(found),
    ]
    return "\n".join(lines)


def huge_section(found: Measured, code: str) -> str:
    lines = [
        *head("100,000 nodes, one request (simulated)", "huge", code),
        f"{HUGE.racks} racks of {HUGE.compute} compute and {HUGE.storage} storage agents; one request of 500 Small.",
        "All checkers on; one process, one core.",
        "",
        *growth_rows([found]),
        "",
        *boot_rows([found]),
    ]
    return "\n".join(lines)
