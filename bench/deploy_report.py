"""What bench/deploy.py measured, and how it is told: sections of bench/RESULTS.md, and a plot where matplotlib is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.deploy_ansible import Best
from bench.results import ROOT
from deploy.sets import Sets

PLOTS = ROOT / "bench" / "plots"
PLOT = "deploy.svg"


@dataclass(frozen=True, slots=True)
class Measured:
    """`wall_s`: from `apply` to the exact sets. `packets`: requests that ZooKeeper had meanwhile."""

    targets: int
    stubs: int
    wall_s: float
    packets: int
    mib: float
    sets: Sets


@dataclass(frozen=True, slots=True)
class Bare:
    count: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    broken: Measured
    killed: int
    initiators: int
    resumed: Measured


@dataclass(slots=True)
class Figures:
    machine: str
    commit: str
    day: str
    lines: int
    growth: Sequence[Measured] = field(default_factory=list)
    processes: Sequence[tuple[Measured, Bare]] = ()
    failure: Failure | None = None
    ansible: tuple[Measured, Best] | None = None


def report(found: Figures, part: str, plot: bool) -> str:
    """The section of one part; "" when it was left out."""
    told = {"growth": _growth, "processes": _processes, "failure": _failure, "ansible": _ansible}[part](found)
    if not told:
        return ""
    if part == "growth" and plot and _plotted(found.growth):
        told += f"\n![growth](plots/{PLOT})\n"
    head = f"`python -m bench.deploy --part {part}` on {found.day}, commit {found.commit}; {found.machine}."
    return f"## Deployment: {part}\n\n{head}\n\n{told}"


def _sets(sets: Sets) -> str:
    counts = sets.counts
    parts = ("active", "passive", "stopped", "refused", "failed", "unreachable", "pending")
    numbers = {name: getattr(counts, name) for name in parts}
    told = " + ".join(f"{number:,} {name}" for name, number in numbers.items() if number or name == "active")
    return f"{counts.targeted:,} targeted = {told}"


def _growth(found: Figures) -> str:
    rows = [
        f"| {one.targets:,} | {one.stubs} | {one.wall_s:.2f} s | {1000 * one.wall_s / one.targets:.2f} ms "
        f"| {one.packets / one.targets:.2f} | {one.mib:.0f} MiB | {_sets(one.sets)} |"
        for one in found.growth
    ]
    return (
        f"Figure 12's tree with ten children a level, the leaves Python classes in boot stubs of two processes; "
        f"described by {found.lines} lines of XML. Wanted: 11,111 in 60 s, 3 ZooKeeper requests a managent.\n\n"
        "| managents | boot stubs | apply, to the exact sets | a managent | ZooKeeper requests a managent "
        "| memory of the boot stubs | sets |\n|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _processes(found: Figures) -> str:
    if not found.processes:
        return ""
    ours, bare = found.processes[-1]
    wall_s = sorted(each.wall_s for each, _ in found.processes)
    bare_s = sorted(each.wall_s for _, each in found.processes)
    times = sorted(each.wall_s / beside.wall_s for each, beside in found.processes)
    return (
        f"The same tree, its leaves processes of a small script: {_sets(ours.sets)}, in "
        f"**{statistics.median(wall_s):.1f} s** ({wall_s[0]:.1f} to {wall_s[-1]:.1f}; medians of {len(times)} rounds). "
        f"A bare loop in two processes started {bare.count:,} of the same in {statistics.median(bare_s):.1f} s "
        f"({bare_s[0]:.1f} to {bare_s[-1]:.1f}) beside it: **{statistics.median(times):.2f} times** that "
        f"({times[0]:.2f} to {times[-1]:.2f}; wanted: at most 2).\n"
    )


def _failure(found: Figures) -> str:
    if found.failure is None:
        return ""
    one = found.failure
    return (
        f"In the middle of 11,111, {one.killed} of {one.broken.stubs} boot stubs were killed (-9), with "
        f"{one.initiators} initiators on them. The rollout ended after {one.broken.wall_s:.1f} s: "
        f"{_sets(one.broken.sets)}. With these boot stubs started again, `resume` took "
        f"{one.resumed.wall_s:.1f} s: {_sets(one.resumed.sets)}.\n"
    )


def _ansible(found: Figures) -> str:
    if found.ansible is None:
        return ""
    ours, best = found.ansible
    tried = "; ".join(f"{how}, {forks} forks: {wall:.1f} s" for (how, forks), wall in best.tried.items())
    return (
        f"On each of {best.targets} targets, code is copied, a configuration written, an installation run and a "
        f"process started. Ours: {_sets(ours.sets)}, in **{ours.wall_s:.2f} s**. {best.version}, local connections, "
        f"{best.strategy} strategy, {best.forks} forks: {best.running} run after **{best.wall_s:.0f} s**, "
        f"**{best.wall_s / ours.wall_s:.0f} times** as long (wanted: at least 20). Tried before on a part of the "
        f"targets: {tried}.\n"
    )


def _plotted(found: Sequence[Measured]) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "deploy"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    targets = [one.targets for one in found]
    for axes, values, label in (
        (left, [one.wall_s for one in found], "seconds to the exact sets"),
        (right, [one.mib for one in found], "MiB of all boot stubs"),
    ):
        axes.loglog(targets, values, marker="o")
        axes.set_xlabel("managents")
        axes.set_ylabel(label)
        axes.grid(True, which="major", alpha=0.4)
    figure.tight_layout()
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / PLOT, metadata={"Date": None})
    return True
